# Null distributions of the router logits.


rule collect_router_logits:
    input:
        local_source(SETTINGS["null_distribution"]["calibration"]),
        model=rules.inspect_model.output[0],
    output:
        results("calibration/router_logits.safetensors"),
    log:
        job_log("collect_router_logits"),
    benchmark:
        job_benchmark("collect_router_logits")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        gpu=SETTINGS["model"]["gpus_per_experiment"],
        mem_mb=each_attempt(48000),
        runtime=each_attempt(5),
    params:
        calibration={
            key: value
            for key, value in SETTINGS["null_distribution"]["calibration"].items()
            if key != "local"
        },
        content=calibration_content,
        dtype=SETTINGS["model"]["dtype"],
        code=code_fingerprint(
            "collect_router_logits",
            "adaptive_routing.jobs.model_jobs.collect_router_logits",
        ),
    script:
        "../workflow_scripts/collect_router_logits.py"


rule fit_null_distribution:
    input:
        unpack(null_distribution_source),
        model=rules.inspect_model.output[0],
    output:
        results("calibration/null_distribution{null}.safetensors"),
    log:
        job_log("fit_null_distribution{null}"),
    benchmark:
        job_benchmark("fit_null_distribution{null}")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        kernel=null_setting("kernel"),
        bandwidth=null_setting("bandwidth"),
        trim=null_setting("trim"),
        center=null_setting("center"),
        content=table_content,
        code=code_fingerprint("fit_null_distribution"),
    script:
        "../workflow_scripts/fit_null_distribution.py"


rule check_null_distribution:
    input:
        null_distribution=rules.fit_null_distribution.output[0],
        router_logits=rules.collect_router_logits.output[0],
        model=rules.inspect_model.output[0],
    output:
        table=results("calibration/null_check{null}.csv"),
        curves=results("calibration/null_check{null}.safetensors"),
    log:
        job_log("check_null_distribution{null}"),
    benchmark:
        job_benchmark("check_null_distribution{null}")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        name=null_name,
        table=null_setting("table"),
        kernel=null_setting("kernel"),
        bandwidth=null_setting("bandwidth"),
        trim=null_setting("trim"),
        center=null_setting("center"),
        alphas=null_alphas,
        min_k=SETTINGS["routing"]["min_k"],
        code=code_fingerprint("check_null_distribution"),
    script:
        "../workflow_scripts/check_null_distribution.py"
