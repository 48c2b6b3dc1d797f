# The figures: the nine panels together and alone, the null distributions, the prompts.


rule plot_panels:
    input:
        **STUDY_TABLES,
    output:
        [results(f"visualizations/panel_{panel}.svg") for panel in PANELS],
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
    benchmark:
        job_benchmark("plot_panels")
    priority: 2
    conda:
        "../envs/adaptive_routing.yaml"
    # The report waits for it. The atlas, which nothing waits for, is drawn on the other half of the cores.
    threads: max(1, min(4, (workflow.resource_settings.cores or 8) // 2))
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        baseline=SETTINGS["baseline"],
        code=code_fingerprint("plot_panels", *map(panel_module, PANELS)),
    script:
        "../workflow_scripts/plot_panels.py"


rule plot_null_distribution:
    input:
        rules.fit_null_distribution.output[0],
    output:
        report(
            results("calibration/null_distribution{null}.png"),
            caption="../report/null_distribution.rst",
            category="Calibration",
            labels={"shows": "Null distributions, layer by layer{null}"},
        ),
    log:
        job_log("plot_null_distribution{null}"),
    benchmark:
        job_benchmark("plot_null_distribution{null}")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        code=code_fingerprint("plot_null_distribution"),
    script:
        "../workflow_scripts/plot_null_distribution.py"


rule plot_null_check:
    input:
        table=rules.check_null_distribution.output.table,
        curves=rules.check_null_distribution.output.curves,
    output:
        svg=results("calibration/null_check{null}.svg"),
        png=report(
            results("calibration/null_check{null}.png"),
            caption="../report/null_check.rst",
            category="Calibration",
            labels={"shows": "Check of the null distribution{null}"},
        ),
    log:
        job_log("plot_null_check{null}"),
    benchmark:
        job_benchmark("plot_null_check{null}")
    conda:
        "../envs/adaptive_routing.yaml"
    resources:
        mem_mb=each_attempt(4000),
        runtime=each_attempt(5),
    params:
        code=code_fingerprint("plot_null_check"),
    script:
        "../workflow_scripts/plot_null_check.py"


if HAS_PROMPTS:

    rule plot_difficulty:
        input:
            **STUDY_TABLES,
            difficulty=rules.tabulate_difficulty.output.levels_csv,
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
        benchmark:
            job_benchmark("plot_difficulty")
        conda:
            "../envs/adaptive_routing.yaml"
        resources:
            mem_mb=each_attempt(4000),
            runtime=each_attempt(5),
        params:
            baseline=SETTINGS["baseline"],
            code=code_fingerprint("plot_difficulty"),
        script:
            "../workflow_scripts/plot_difficulty.py"


if HAS_CONTROLS:

    rule plot_same_compute:
        input:
            **STUDY_TABLES,
            **CONTROL_TABLES,
        output:
            **control_figures(),
        log:
            job_log("plot_same_compute"),
        benchmark:
            job_benchmark("plot_same_compute")
        conda:
            "../envs/adaptive_routing.yaml"
        resources:
            mem_mb=each_attempt(4000),
            runtime=each_attempt(5),
        params:
            baseline=SETTINGS["baseline"],
            margins=SETTINGS["report"],
            code=code_fingerprint("plot_same_compute"),
        script:
            "../workflow_scripts/plot_same_compute.py"
