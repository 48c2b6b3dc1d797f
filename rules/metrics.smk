# Metrics of each experiment, and the tables of all.


rule compute_metrics:
    input:
        unpack(harness_requests),
        summary=rules.run_experiment.output.summary,
        tensors=rules.run_experiment.output.tensors,
    output:
        metrics=results("metrics/{config}_{dataset}.json"),
        atlas=results("atlas/{config}_{dataset}.safetensors"),
    log:
        job_log("compute_metrics/{config}_{dataset}"),
    benchmark:
        job_benchmark("compute_metrics/{config}_{dataset}")
    priority: 1  # where cores are few: before an experiment that would only wait for the model
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=metrics_minutes,
    params:
        code=lambda wildcards: code_fingerprint(
            "compute_metrics", without=unless_of_harness(wildcards)
        ),
    script:
        "../workflow_scripts/compute_metrics.py"


rule tabulate_results:
    input:
        metrics=per_experiment(rules.compute_metrics.output.metrics),
        summaries=per_experiment(rules.run_experiment.output.summary),
    output:
        experiments_csv=report(
            results("bh_routing_results.csv"),
            caption="../report/results_table.rst",
            category="Tables",
            labels={"shows": "Experiments: all metrics"},
        ),
        experiments_json=results("bh_routing_results.json"),
        configurations_csv=report(
            results("bh_routing_configurations.csv"),
            caption="../report/configurations_table.rst",
            category="Tables",
            labels={"shows": "Configurations: means over data sets"},
        ),
        configurations_json=results("bh_routing_configurations.json"),
        layers_csv=results("bh_routing_layers.csv"),
        comparisons_csv=report(
            results("bh_routing_comparisons.csv"),
            caption="../report/comparisons_table.rst",
            category="Tables",
            labels={"shows": "Comparisons with the baseline: tests"},
        ),
        comparisons_json=results("bh_routing_comparisons.json"),
        setting_effects_csv=results("bh_routing_setting_effects.csv"),
    log:
        job_log("tabulate_results"),
    benchmark:
        job_benchmark("tabulate_results")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        baseline=SETTINGS["baseline"],
        code=code_fingerprint("tabulate_results"),
    script:
        "../workflow_scripts/tabulate_results.py"


# The tables that figures and report are made from, by the names that their scripts use.
STUDY_TABLES = {
    name: rules.tabulate_results.output[f"{name}_csv"]
    for name in ("experiments", "configurations", "layers", "comparisons")
}


if HAS_PROMPTS:

    rule tabulate_difficulty:
        input:
            expand(
                rules.run_experiment.output.summary,
                config=IN_ATLAS,  # prompts have no controls
                dataset="prompts",
            ),
        output:
            levels_csv=report(
                results("bh_routing_difficulty.csv"),
                caption="../report/difficulty_table.rst",
                category="Tables",
                labels={"shows": "Prompts: expert counts by difficulty"},
            ),
            levels_json=results("bh_routing_difficulty.json"),
            trend_csv=report(
                results("bh_routing_difficulty_trend.csv"),
                caption="../report/difficulty_trend.rst",
                category="Tables",
                labels={"shows": "Prompts: trend with difficulty"},
            ),
        log:
            job_log("tabulate_difficulty"),
        benchmark:
            job_benchmark("tabulate_difficulty")
        conda:
            "../envs/adaptive_routing.yaml"
        resources:
            mem_mb=each_attempt(4000),
            runtime=each_attempt(5),
        params:
            code=code_fingerprint("tabulate_difficulty"),
        script:
            "../workflow_scripts/tabulate_difficulty.py"


if HARNESS_DATASETS:

    rule tabulate_harness:
        input:
            expand(
                rules.compute_metrics.output.metrics,
                config=CONFIGURATIONS,
                dataset=HARNESS_DATASETS,
            ),
        output:
            report(
                results("bh_routing_harness.csv"),
                caption="../report/harness_table.rst",
                category="Tables",
                labels={"shows": "Metrics of lm-evaluation-harness, task by task"},
            ),
        log:
            job_log("tabulate_harness"),
        benchmark:
            job_benchmark("tabulate_harness")
        conda:
            "../envs/adaptive_routing.yaml"
        resources:
            mem_mb=each_attempt(4000),
            runtime=each_attempt(5),
        params:
            code=code_fingerprint("tabulate_harness"),
        script:
            "../workflow_scripts/tabulate_harness.py"


# The tables of a study with controls, by the names that scripts use.
CONTROL_TABLES = {}

if HAS_CONTROLS:

    rule tabulate_same_compute:
        input:
            summaries=per_controlled_experiment(rules.run_experiment.output.summary)
            + per_experiment(rules.run_experiment.output.summary, CONTROLS_OF_STUDY),
            metrics=per_controlled_experiment(rules.compute_metrics.output.metrics)
            + per_experiment(rules.compute_metrics.output.metrics, CONTROLS_OF_STUDY),
        output:
            csv=report(
                results("bh_routing_same_compute.csv"),
                caption="../report/same_compute_table.rst",
                category="Tables",
                labels={"shows": "Adaptive against fixed at the same compute: tests"},
            ),
            json=results("bh_routing_same_compute.json"),
        log:
            job_log("tabulate_same_compute"),
        benchmark:
            job_benchmark("tabulate_same_compute")
        conda:
            "../envs/adaptive_routing.yaml"
        resources:
            mem_mb=each_attempt(4000),
            runtime=each_attempt(5),
        params:
            margins=SETTINGS["report"],
            code=code_fingerprint("tabulate_same_compute"),
        script:
            "../workflow_scripts/tabulate_same_compute.py"

    CONTROL_TABLES["same_compute"] = rules.tabulate_same_compute.output.csv


if HAS_FIXED_CONTROLS:

    rule tabulate_where:
        input:
            summaries=per_controlled_experiment(rules.run_experiment.output.summary),
            tensors=per_controlled_experiment(rules.run_experiment.output.tensors),
            fixed=per_controlled_experiment(
                rules.run_experiment.output.tensors,
                lambda name: CONFIGURATIONS[name].control("fixed").name,
            ),
            baseline=per_controlled_experiment(
                rules.run_experiment.output.tensors, lambda name: SETTINGS["baseline"]
            ),
            model=rules.inspect_model.output[0],
        output:
            csv=report(
                results("bh_routing_where.csv"),
                caption="../report/where_table.rst",
                category="Tables",
                labels={"shows": "Adaptive against fixed: where in the text"},
            ),
            json=results("bh_routing_where.json"),
        log:
            job_log("tabulate_where"),
        benchmark:
            job_benchmark("tabulate_where")
        conda:
            "../envs/adaptive_routing.yaml"
        resources:
            mem_mb=each_attempt(4000),
            runtime=each_attempt(5),
        params:
            code=code_fingerprint("tabulate_where"),
        script:
            "../workflow_scripts/tabulate_where.py"

    CONTROL_TABLES["where"] = rules.tabulate_where.output.csv
