# The report.


rule write_report:
    input:
        unpack(report_on_difficulty),
        experiments=results("bh_routing_results.csv"),
        configurations=results("bh_routing_configurations.csv"),
        layers=results("bh_routing_layers.csv"),
        comparisons=results("bh_routing_comparisons.csv"),
        summaries=per_experiment("logs/{config}_{dataset}.json"),
        figure=results("visualizations/bh_comprehensive_comparison.png"),
        panels=panel_files("png"),
        atlas=ancient(results("routing_atlas.html")),  # linked, whatever it shows
    output:
        markdown=results("bh_routing_report.md"),
        html=report(
            results("bh_routing_report.html"),
            caption="../report/report.rst",
            category="Report",
            labels={"shows": "Answers, evidence and method"},
        ),
        summary=results("bh_routing_summary.txt"),
    log:
        job_log("write_report"),
    conda:
        "../envs/adaptive_routing.yaml"
    params:
        baseline=SETTINGS["baseline"],
        settings=SETTINGS,
        code=code_fingerprint("write_report", *map(panel_module, PANELS)),
    script:
        "../workflow_scripts/write_report.py"
