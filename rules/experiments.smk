# One experiment: one routing configuration on one data set.


def experiment_null_distribution(wildcards):
    """The null distribution, for the configurations that use one."""
    if uses_null_distribution(wildcards.config):
        return {"null_distribution": rules.fit_null_distribution.output[0]}
    return {}


def experiment_configuration(wildcards):
    """The configuration's name, strategy and parameters."""
    one = CONFIGURATIONS[wildcards.config]
    return {
        "name": one.name,
        "strategy": one.strategy,
        "max_experts": one.max_experts,
        "parameters": dict(one.parameters),
    }


def experiment_routing(wildcards):
    """The routing settings that apply: a fixed number of experts has no minimum."""
    routing = dict(SETTINGS["routing"])
    if not CONFIGURATIONS[wildcards.config].is_adaptive:
        del routing["min_k"]
    return routing


def experiment_code(wildcards):
    """A fingerprint of the code of one experiment: its own strategy and task, and only what they use."""
    unused = []
    if not uses_null_distribution(wildcards.config):
        unused.append("adaptive_routing.null_distribution")
    if "max_new_tokens" not in SETTINGS["datasets"][wildcards.dataset]:
        unused.append("adaptive_routing.evaluation.generation")
    return code_fingerprint(
        "run_experiment",
        "adaptive_routing.jobs.model_jobs.run_experiment",
        f"adaptive_routing.routing.{CONFIGURATIONS[wildcards.config].strategy}",
        dataset_task(wildcards),
        without=unused,
    )


rule run_experiment:
    input:
        unpack(experiment_null_distribution),
        model=rules.inspect_model.output,
        dataset=rules.prepare_dataset.output,
    output:
        summary=results("logs/{config}_{dataset}.json"),
        internal_routing=results("logs/{config}_{dataset}_internal_routing.json"),
        tensors=results("logs/{config}_{dataset}_internal_routing.safetensors"),
    log:
        job_log("run_experiment/{config}_{dataset}"),
    benchmark:
        job_benchmark("run_experiment/{config}_{dataset}")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        gpu=1,
        mem_mb=each_attempt(48000),
        runtime=each_attempt(3),
    params:
        configuration=experiment_configuration,
        routing=experiment_routing,
        dtype=SETTINGS["model"]["dtype"],
        second_pass_samples=SETTINGS["evaluation"]["second_pass_samples"],
        code=experiment_code,
    script:
        "../workflow_scripts/run_experiment.py"
