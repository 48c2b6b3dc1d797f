# Settings, paths and the helper functions of all rules. No rules here.

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from adaptive_routing.jobs.fingerprint import code_fingerprint
from adaptive_routing.jobs.version import code_version
from adaptive_routing.system.errors import InputError
from adaptive_routing.figures.panels import PANELS, TITLES, panel_module
from adaptive_routing.system.processes import children_import_from, identity
from adaptive_routing.settings.load import load_settings, needs_p_values
from adaptive_routing.data.tasks import task_module
from adaptive_routing.system.cores import keep_user_limit

keep_user_limit()
# Jobs run the code that was read here, whatever else is installed under its name.
children_import_from(Path(workflow.basedir) / "workflow_scripts")

try:
    SETTINGS = load_settings(config, command_line=workflow.config_settings.config)
except InputError as error:
    sys.exit(f"error: {error}")

CONFIGURATIONS = {one.name: one for one in SETTINGS.pop("configurations")}
DATASETS = list(SETTINGS["datasets"])
RESULTS = SETTINGS["results"].rstrip("/")
# What decides how a job runs and not what comes out, as the device, is read by the scripts from `config`:
# a change of it makes nothing stale. So is the code's version, looked up once a run; and this process, with which
# jobs end, however it ends.
config.update(
    SETTINGS,
    code_version=code_version(workflow.basedir),
    workflow_process=identity(),
)


wildcard_constraints:
    config="|".join(CONFIGURATIONS),
    dataset="|".join(DATASETS),


def results(*parts):
    """A path below the results folder; wildcards stay as they are."""
    return "/".join((RESULTS, *parts))


def job_log(*parts):
    """A job's log. `results/logs/` holds the experiments' own."""
    return results("job_logs", *parts) + ".log"


# The model


def model_files():
    """The files of a model in a local folder; a hub model is identified by its revision."""
    if not SETTINGS["model"]["local"]:
        return []
    folder = Path(SETTINGS["model"]["name"])
    patterns = ("config.json", "tokenizer*.json", "*.safetensors")
    return sorted(str(path) for pattern in patterns for path in folder.glob(pattern))


def local_source(settings):
    """The file of a data set that is one; nothing for a hub data set."""
    return [settings["source"]] if settings["local"] else []


def dataset_settings(wildcards):
    """What decides which samples of a data set are scored, and how they are tokenised."""
    settings = SETTINGS["datasets"][wildcards.dataset]
    decisive = {key: value for key, value in settings.items() if key != "local"}
    if settings.get("protocol") == "rows":  # all others are as long as the model reads
        decisive["max_length"] = SETTINGS["evaluation"]["max_length"]
    return decisive


def dataset_task(wildcards):
    """The module of a data set's task."""
    return task_module(
        wildcards.dataset, SETTINGS["datasets"][wildcards.dataset].get("protocol")
    )


# Settings that are wrong end a job; they decide nothing beside what its parameters say.
CHECKS = ("adaptive_routing.settings",)

# Null distributions


def uses_null_distribution(name):
    """Whether a configuration needs p-values."""
    return needs_p_values(CONFIGURATIONS[name])


def null_distribution_source(wildcards):
    """A table made elsewhere, or the router logits that the estimate is fitted to."""
    table = SETTINGS["null_distribution"]["table"]
    return (
        {"table": table}
        if table
        else {"router_logits": results("calibration/router_logits.safetensors")}
    )


def calibration_settings():
    """What decides the calibration text."""
    return {
        key: value
        for key, value in SETTINGS["null_distribution"]["calibration"].items()
        if key != "local"
    }


# Experiments


def experiment_null_distribution(wildcards):
    """The null distribution, for the configurations that use one."""
    if uses_null_distribution(wildcards.config):
        return {
            "null_distribution": results("calibration/null_distribution.safetensors")
        }
    return {}


def experiment_configuration(wildcards):
    """The configuration's name, strategy and parameters."""
    one = CONFIGURATIONS[wildcards.config]
    return {
        "name": one.name,
        "strategy": one.strategy,
        "max_experts": one.max_experts,
        "parameters": dict(one.parameters),
    }


def experiment_routing(wildcards):
    """The routing settings that apply: a fixed number of experts has no minimum.

    The baseline keeps the router's own weights, whatever the others have.
    """
    routing = dict(SETTINGS["routing"])
    if wildcards.config == SETTINGS["baseline"]:
        routing.update(weights="native", temperature=1.0)
    if not CONFIGURATIONS[wildcards.config].is_adaptive:
        del routing["min_k"]
    return routing


def experiment_code(wildcards):
    """A fingerprint of the code of one experiment: its own strategy and task, and only what they use."""
    unused = []
    if not uses_null_distribution(wildcards.config):
        unused.append("adaptive_routing.null_distribution")
    if "max_new_tokens" not in SETTINGS["datasets"][wildcards.dataset]:
        unused.append("adaptive_routing.evaluation.generation")
    return code_fingerprint(
        "run_experiment",
        "adaptive_routing.jobs.model_jobs.run_experiment",
        f"adaptive_routing.routing.{CONFIGURATIONS[wildcards.config].strategy}",
        dataset_task(wildcards),
        without=unused,
    )


def per_experiment(pattern):
    """A path for every configuration and data set."""
    return expand(results(pattern), config=CONFIGURATIONS, dataset=DATASETS)


# The routing atlas


def atlas_page_fingerprint():
    """A fingerprint of what the atlas's page is made with and is not Python: its script and its looks."""
    folder = Path(workflow.basedir) / "workflow_scripts" / "adaptive_routing/atlas/page"
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


# Targets


def experiment_files():
    """The files of every experiment: its logs and metrics."""
    return [
        path
        for pattern in (
            "logs/{config}_{dataset}.json",
            "logs/{config}_{dataset}_internal_routing.json",
            "logs/{config}_{dataset}_internal_routing.safetensors",
            "metrics/{config}_{dataset}.json",
        )
        for path in per_experiment(pattern)
    ]


def has_prompts():
    """Whether the study has the data set of prompts in levels of difficulty."""
    return "prompts" in DATASETS


def prompt_summaries():
    """The summaries of every configuration on the prompts."""
    return expand(results("logs/{config}_prompts.json"), config=CONFIGURATIONS)


def difficulty_tables():
    """The tables of expert counts by difficulty, by the names that rules and scripts use."""
    if not has_prompts():
        return {}
    return {
        "difficulty": results("bh_routing_difficulty.csv"),
        "difficulty_trend": results("bh_routing_difficulty_trend.csv"),
    }


def difficulty_figures():
    """The figure of expert counts by difficulty."""
    if not has_prompts():
        return []
    return [
        results(f"visualizations/experts_by_difficulty.{suffix}")
        for suffix in ("png", "svg")
    ]


def report_on_difficulty(wildcards):
    """What the report shows of the prompts; nothing in a study without them."""
    if not has_prompts():
        return {}
    return difficulty_tables() | {"difficulty_figure": difficulty_figures()[0]}


def result_tables():
    """The results tables."""
    tables = [
        results(f"bh_routing_{name}")
        for name in (
            "results.csv",
            "results.json",
            "configurations.csv",
            "configurations.json",
            "layers.csv",
            "comparisons.csv",
            "comparisons.json",
        )
    ]
    if has_prompts():
        tables += [*difficulty_tables().values(), results("bh_routing_difficulty.json")]
    return tables


def panel_files(suffix):
    """Every panel alone."""
    return [results(f"visualizations/panel_{panel}.{suffix}") for panel in PANELS]


ATLAS_FIGURES = {
    "counts": "How many experts, layer by layer",
    "usage": "Which experts",
    "position_loss": "Experts over the sequence, and loss",
}


def atlas_figures(suffix):
    """The pictures of the routing atlas."""
    return [results(f"visualizations/atlas_{name}.{suffix}") for name in ATLAS_FIGURES]


def atlas_reports():
    """Every picture's PNG by name, for Snakemake's report."""
    return {
        name: report(
            results(f"visualizations/atlas_{name}.png"),
            caption="../report/atlas_figures.rst",
            category="Routing atlas",
            labels={"shows": title},
        )
        for name, title in ATLAS_FIGURES.items()
    }


def atlas_files():
    """The routing atlas: the page and the pictures."""
    return [results("routing_atlas.html"), *atlas_figures("png"), *atlas_figures("svg")]


def panel_reports():
    """Every panel's PNG by name, each with its own caption in Snakemake's report."""
    return {
        f"panel_{panel}": report(
            results(f"visualizations/panel_{panel}.png"),
            caption=f"../report/panel_{panel}.rst",
            category="Panels",
            labels={"shows": f"{panel.split('_')[0]} {TITLES[panel]}"},
        )
        for panel in PANELS
    }


def study_figures():
    """The figure of all panels, each panel alone, and what stands beside them."""
    figures = [
        results(f"visualizations/bh_comprehensive_comparison.{suffix}")
        for suffix in ("png", "svg")
    ]
    figures += panel_files("png") + panel_files("svg") + difficulty_figures()
    if any(map(uses_null_distribution, CONFIGURATIONS)):
        figures.append(results("calibration/null_distribution.png"))
    return figures


def report_files():
    """The report, and the sentences that open it."""
    return [
        results("bh_routing_report.md"),
        results("bh_routing_report.html"),
        results("bh_routing_summary.txt"),
    ]


def print_answer():
    """Print the report's main sentences and where it is, after a run to it."""
    summary = Path(results("bh_routing_summary.txt"))
    covered = any(job.rule.name == "write_report" for job in workflow.dag.jobs)
    if covered and summary.exists():
        text = f"\n{summary.read_text(encoding='utf-8')}\nReport: {results('bh_routing_report.html')}"
        # A terminal that cannot show "−" or "α" is no reason to fail.
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding))
