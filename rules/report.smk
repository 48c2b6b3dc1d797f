# The report.


rule write_report:
    input:
        **STUDY_TABLES,
        **report_on_difficulty(),
        **report_on_controls(),
        **report_on_null_distributions(),
        **model_card(),
        setting_effects=rules.tabulate_results.output.setting_effects_csv,
        summaries=per_experiment(rules.run_experiment.output.summary),
        figure=rules.plot_panels.output.figure_png,
        panels=[rules.plot_panels.output[f"panel_{panel}"] for panel in PANELS],
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
    benchmark:
        job_benchmark("write_report")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        baseline=SETTINGS["baseline"],
        settings=SETTINGS,
        nulls_checked=NULLS_CHECKED,
        # Linked, whatever it shows. As an ancient input to be made anew it would hide other reasons to run.
        atlas=str(rules.draw_routing_atlas.output[0]),
        code=code_fingerprint("write_report", *map(panel_module, PANELS)),
    script:
        "../workflow_scripts/write_report.py"
