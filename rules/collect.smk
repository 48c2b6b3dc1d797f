# Targets: what a run can be asked for by name.

import difflib


def experiments_of(configurations):
    """The logs of configurations on every data set."""
    return per_experiment([*rules.run_experiment.output], configurations)


def metrics_of(configurations):
    """The metrics of configurations on every data set."""
    return per_experiment(rules.compute_metrics.output.metrics, configurations)


def study_tables():
    """The results tables."""
    with_prompts = rules.tabulate_difficulty.output if HAS_PROMPTS else []
    of_harness = rules.tabulate_harness.output if HARNESS_DATASETS else []
    with_controls = [*rules.tabulate_same_compute.output] if HAS_CONTROLS else []
    with_controls += rules.tabulate_where.output if HAS_FIXED_CONTROLS else []
    return [
        *rules.tabulate_results.output,
        *with_prompts,
        *of_harness,
        *with_controls,
    ]


def study_figures():
    """The figures, and the routing atlas."""
    figures = [*rules.plot_panels.output, *rules.plot_routing_atlas.output]
    figures += rules.draw_routing_atlas.output
    if HAS_PROMPTS:
        figures += rules.plot_difficulty.output
    if HAS_CONTROLS:
        figures += rules.plot_same_compute.output
    figures += expand(
        rules.plot_null_distribution.output[0], null=map(null_suffix, NULLS_USED)
    )
    figures += expand(
        rules.plot_null_check.output, null=map(null_suffix, NULLS_CHECKED)
    )
    return figures


def by_strategy():
    """The configurations of each strategy of the study, by its target: `bh`, and `baselines` for top-k."""
    targets = {}
    for name, configuration in CONFIGURATIONS.items():
        strategy = configuration.strategy
        if strategy == CONTROL:
            strategy = "controls"
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
    "report": [*rules.write_report.output, *rules.draw_routing_atlas.output],
}
TARGETS = {
    **STAGES,
    **{target: experiments_of(names) for target, names in by_strategy().items()},
    **{name: experiments_of([name]) + metrics_of([name]) for name in CONFIGURATIONS},
    **dict.fromkeys(LEFT_OVER, []),  # they make nothing: see `print_answer`
}

for target, files in TARGETS.items():

    rule:
        name:
            target
        input:
            files,


def refuse_unknown_targets():
    """End with one sentence where the command line asks for a target, or a file, that no rule makes.

    Snakemake would say so too, but not what there is. It tells a Snakefile its targets only later.
    """
    makers = list(workflow.rules)
    names = {maker.name for maker in makers}

    def is_known(word):
        is_made = any(maker.is_producer(word) for maker in makers)
        return word in names or is_made or Path(word).exists()

    words = [
        word for word in sys.argv[1:] if not (word.startswith("-") or is_known(word))
    ]
    if not words or Path(sys.argv[0]).name not in ("snakemake", "__main__.py"):
        return  # nothing that could be one; or another program started Snakemake
    from snakemake.cli import get_argument_parser

    asked = get_argument_parser().parse_known_args(sys.argv[1:])[0].targets
    known = ["all", *TARGETS]
    for name in sorted(set(words) & set(asked)):
        closest = difflib.get_close_matches(name, known, n=1)
        sys.exit(
            f"error: there is no target {name}{f' (did you mean {closest[0]}?)' if closest else ''}; there are "
            f"{', '.join(known[:-1])} and {known[-1]}, and every file that a rule makes"
        )


if not IS_IMPORTED:
    refuse_unknown_targets()
    refuse_beside_a_run()
