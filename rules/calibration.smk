# Null distributions of the router logits.


rule collect_router_logits:
    input:
        local_source(SETTINGS["null_distribution"]["calibration"]),
        model=results("model.json"),
    output:
        results("calibration/router_logits.safetensors"),
    log:
        job_log("collect_router_logits"),
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        gpu=1,
    params:
        calibration=calibration_settings(),
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
        model=results("model.json"),
    output:
        results("calibration/null_distribution.safetensors"),
    log:
        job_log("fit_null_distribution"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        kernel=SETTINGS["null_distribution"]["kernel"],
        bandwidth=SETTINGS["null_distribution"]["bandwidth"],
        trim=SETTINGS["null_distribution"]["trim"],
        code=code_fingerprint("fit_null_distribution"),
    script:
        "../workflow_scripts/fit_null_distribution.py"
