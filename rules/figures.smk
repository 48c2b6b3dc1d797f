# The figures: the nine panels together and alone, the null distributions, the prompts.


rule plot_panels:
    input:
        experiments=results("bh_routing_results.csv"),
        configurations=results("bh_routing_configurations.csv"),
        layers=results("bh_routing_layers.csv"),
        comparisons=results("bh_routing_comparisons.csv"),
    output:
        panel_files("svg"),
        **panel_reports(),
        figure_png=report(
            results("visualizations/bh_comprehensive_comparison.png"),
            caption="../report/comparison.rst",
            category="Comparison",
            labels={"shows": "The nine panels on a page"},
        ),
        figure_svg=results("visualizations/bh_comprehensive_comparison.svg"),
    log:
        job_log("plot_panels"),
    conda:
        "../envs/adaptive_routing.yaml"
    threads: 4
    params:
        baseline=SETTINGS["baseline"],
        code=code_fingerprint("plot_panels", *map(panel_module, PANELS)),
    script:
        "../workflow_scripts/plot_panels.py"


rule plot_null_distribution:
    input:
        results("calibration/null_distribution.safetensors"),
    output:
        report(
            results("calibration/null_distribution.png"),
            caption="../report/null_distribution.rst",
            category="Calibration",
            labels={"shows": "Null distributions, layer by layer"},
        ),
    log:
        job_log("plot_null_distribution"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        code=code_fingerprint("plot_null_distribution"),
    script:
        "../workflow_scripts/plot_null_distribution.py"


if has_prompts():

    rule plot_difficulty:
        input:
            experiments=results("bh_routing_results.csv"),
            configurations=results("bh_routing_configurations.csv"),
            layers=results("bh_routing_layers.csv"),
            comparisons=results("bh_routing_comparisons.csv"),
            difficulty=results("bh_routing_difficulty.csv"),
        output:
            svg=results("visualizations/experts_by_difficulty.svg"),
            png=report(
                results("visualizations/experts_by_difficulty.png"),
                caption="../report/difficulty.rst",
                category="Comparison",
                labels={"shows": "Experts by difficulty of the prompt"},
            ),
        log:
            job_log("plot_difficulty"),
        conda:
            "../envs/adaptive_routing.yaml"
        params:
            baseline=SETTINGS["baseline"],
            code=code_fingerprint("plot_difficulty"),
        script:
            "../workflow_scripts/plot_difficulty.py"
