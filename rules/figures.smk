# The figure of nine panels, and each panel alone.


rule plot_panels:
    input:
        experiments=results("bh_routing_results.csv"),
        configurations=results("bh_routing_configurations.csv"),
        layers=results("bh_routing_layers.csv"),
        comparisons=results("bh_routing_comparisons.csv"),
    output:
        panel_files("svg"),
        figure_png=report(
            results("visualizations/bh_comprehensive_comparison.png"),
            caption="../report/comparison.rst",
            category="Comparison",
        ),
        figure_svg=results("visualizations/bh_comprehensive_comparison.svg"),
        panels=report(
            panel_files("png"),
            caption="../report/panel.rst",
            category="Panels",
        ),
    log:
        job_log("plot_panels"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        baseline=SETTINGS["baseline"],
    script:
        "../workflow_scripts/plot_panels.py"
