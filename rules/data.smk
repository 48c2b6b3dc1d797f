# The model's description and the tokenised data sets.


rule inspect_model:
    input:
        model_files(),
    output:
        results("model.json"),
    log:
        job_log("inspect_model"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        model={key: SETTINGS["model"][key] for key in ("name", "revision")},
        code=code_fingerprint("inspect_model", without=CHECKS),
    script:
        "../workflow_scripts/inspect_model.py"


rule prepare_dataset:
    input:
        lambda wildcards: local_source(SETTINGS["datasets"][wildcards.dataset]),
        model=results("model.json"),
    output:
        results("datasets/{dataset}.json"),
    log:
        job_log("prepare_dataset/{dataset}"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        settings=dataset_settings,
        code=lambda wildcards: code_fingerprint(
            "prepare_dataset", dataset_task(wildcards)
        ),
    script:
        "../workflow_scripts/prepare_dataset.py"
