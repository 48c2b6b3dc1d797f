# The model's description and the tokenised data sets.


rule inspect_model:
    input:
        model_files(),
    output:
        results("model.json"),
    log:
        job_log("inspect_model"),
    benchmark:
        job_benchmark("inspect_model")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        model={key: SETTINGS["model"][key] for key in ("name", "revision")},
        content=model_content,
        code=code_fingerprint("inspect_model"),
    script:
        "../workflow_scripts/inspect_model.py"


rule prepare_dataset:
    input:
        lambda wildcards: local_source(SETTINGS["datasets"][wildcards.dataset]),
        model=rules.inspect_model.output[0],
    output:
        results("datasets/{dataset}.json"),
    log:
        job_log("prepare_dataset/{dataset}"),
    benchmark:
        job_benchmark("prepare_dataset/{dataset}")
    priority: 1  # so that faults of data sets, and the room that logs take, are known before experiments begin
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        settings=dataset_settings,
        content=dataset_content,
        code=lambda wildcards: code_fingerprint(
            "prepare_dataset",
            dataset_task(wildcards),
            without=unless_of_harness(wildcards),
        ),
    script:
        "../workflow_scripts/prepare_dataset.py"
