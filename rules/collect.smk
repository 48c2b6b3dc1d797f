# Targets: what a run can be asked for by name.


def experiments_of(configurations):
    """The logs of configurations on every data set."""
    return per_experiment([*rules.run_experiment.output], configurations)


def metrics_of(configurations):
    """The metrics of configurations on every data set."""
    return per_experiment(rules.compute_metrics.output.metrics, configurations)


def study_tables():
    """The results tables."""
    with_prompts = rules.tabulate_difficulty.output if HAS_PROMPTS else []
    return [*rules.tabulate_results.output, *with_prompts]


def study_figures():
    """The figures, and the routing atlas."""
    figures = [*rules.plot_panels.output, *rules.plot_routing_atlas.output]
    figures += rules.draw_routing_atlas.output
    if HAS_PROMPTS:
        figures += rules.plot_difficulty.output
    if any(map(uses_null_distribution, CONFIGURATIONS)):
        figures += rules.plot_null_distribution.output
    return figures


def by_strategy():
    """The configurations of each strategy of the study, by its target: `bh`, and `baselines` for top-k."""
    targets = {}
    for name, configuration in CONFIGURATIONS.items():
        strategy = configuration.strategy
        targets.setdefault("baselines" if strategy == "topk" else strategy, []).append(
            name
        )
    return targets


# All that a whole run makes; and parts of it.
STAGES = {
    "experiments": experiments_of(CONFIGURATIONS),
    "metrics": metrics_of(CONFIGURATIONS),
    "tables": study_tables(),
    "figures": study_figures(),
    "report": [*rules.write_report.output],
}
TARGETS = {
    **STAGES,
    **{target: experiments_of(names) for target, names in by_strategy().items()},
    **{name: experiments_of([name]) + metrics_of([name]) for name in CONFIGURATIONS},
}

for target, files in TARGETS.items():

    rule:
        name:
            target
        input:
            files,


def print_answer():
    """Print the report's main sentences and where it is, after a run to it."""
    summary = Path(results("bh_routing_summary.txt"))
    covered = any(job.rule.name == "write_report" for job in workflow.dag.jobs)
    if covered and summary.exists():
        text = f"\n{summary.read_text(encoding='utf-8')}\nReport: {results('bh_routing_report.html')}"
        # A terminal that cannot show "−" or "α" is no reason to fail.
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding))
