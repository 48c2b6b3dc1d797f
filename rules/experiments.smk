# One experiment: one routing configuration on one data set.


rule run_experiment:
    input:
        unpack(experiment_null_distribution),
        unpack(controlled_experiment),
        model=rules.inspect_model.output[0],
        dataset=rules.prepare_dataset.output[0],
    output:
        summary=results("logs/{config}_{dataset}.json"),
        internal_routing=results(
            f"logs/{{config}}_{{dataset}}_internal_routing.json{JSON_ENDING}"
        ),
        tensors=results("logs/{config}_{dataset}_internal_routing.safetensors"),
    log:
        job_log("run_experiment/{config}_{dataset}"),
    benchmark:
        job_benchmark("run_experiment/{config}_{dataset}")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        gpu=SETTINGS["model"]["gpus_per_experiment"],
        mem_mb=each_attempt(48000),  # for OLMoE-1B-7B, with room to spare; not measured
        runtime=each_attempt(3),
    params:
        configuration=experiment_configuration,
        routing=experiment_routing,
        control=experiment_control,
        dtype=SETTINGS["model"]["dtype"],
        second_pass_samples=SETTINGS["evaluation"]["second_pass_samples"],
        routing_log=KEPT_IN_LOGS,
        code=experiment_code,
    script:
        "../workflow_scripts/run_experiment.py"
