# The routing atlas: how experts were routed, as an interactive page and as pictures.


rule draw_routing_atlas:
    input:
        **STUDY_TABLES,
        **CONTROL_TABLES,
        **atlas_of_fixed_controls(),
        atlas=per_experiment(rules.compute_metrics.output.atlas, IN_ATLAS),
        model=rules.inspect_model.output[0],
    output:
        report(
            results("routing_atlas.html"),
            caption="../report/atlas_page.rst",
            category="Routing atlas",
            labels={"shows": "Routing of every configuration, interactive"},
        ),
    log:
        job_log("draw_routing_atlas"),
    benchmark:
        job_benchmark("draw_routing_atlas")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        baseline=SETTINGS["baseline"],
        margins=SETTINGS["report"],
        page=atlas_page_fingerprint(),
        code=code_fingerprint("draw_routing_atlas"),
    script:
        "../workflow_scripts/draw_routing_atlas.py"


rule plot_routing_atlas:
    input:
        **STUDY_TABLES,
        **CONTROL_TABLES,
        atlas=per_experiment(rules.compute_metrics.output.atlas, IN_ATLAS),
    output:
        [results(f"visualizations/atlas_{name}.svg") for name in ATLAS_FIGURES],
        **atlas_reports(),
    log:
        job_log("plot_routing_atlas"),
    benchmark:
        job_benchmark("plot_routing_atlas")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        baseline=SETTINGS["baseline"],
        margins=SETTINGS["report"],
        code=code_fingerprint("plot_routing_atlas"),
    script:
        "../workflow_scripts/plot_routing_atlas.py"
