# The routing atlas: how experts were routed, as an interactive page and as pictures.


rule draw_routing_atlas:
    input:
        atlas=per_experiment("atlas/{config}_{dataset}.safetensors"),
        model=results("model.json"),
    output:
        report(
            results("routing_atlas.html"),
            caption="../report/atlas_page.rst",
            category="Routing atlas",
            labels={"shows": "Routing of every configuration, interactive"},
        ),
    log:
        job_log("draw_routing_atlas"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        baseline=SETTINGS["baseline"],
        page=atlas_page_fingerprint(),
        code=code_fingerprint("draw_routing_atlas"),
    script:
        "../workflow_scripts/draw_routing_atlas.py"


rule plot_routing_atlas:
    input:
        atlas=per_experiment("atlas/{config}_{dataset}.safetensors"),
        experiments=results("bh_routing_results.csv"),
        configurations=results("bh_routing_configurations.csv"),
        layers=results("bh_routing_layers.csv"),
        comparisons=results("bh_routing_comparisons.csv"),
    output:
        atlas_figures("svg"),
        **atlas_reports(),
    log:
        job_log("plot_routing_atlas"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        baseline=SETTINGS["baseline"],
        code=code_fingerprint("plot_routing_atlas"),
    script:
        "../workflow_scripts/plot_routing_atlas.py"
