# Settings, paths and the helper functions of all rules. No rules here.

import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

from snakemake.io import strip_wildcard_constraints
from snakemake.logging import logger

# The workflow's own folder, also where another workflow imports it as a module. This file is in rules/.
WORKFLOW = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
IS_IMPORTED = not workflow.modifier.is_main_snakefile()

sys.path.insert(0, str(WORKFLOW / "workflow_scripts"))

from adaptive_routing.jobs.ending import how_to_go_on, print_last
from adaptive_routing.jobs.fingerprint import FOLDER, code_fingerprint
from adaptive_routing.jobs.host.client import start_early
from adaptive_routing.jobs.host.gpus import JOBS_OF_A_HOST
from adaptive_routing.jobs.script import tell_jobs
from adaptive_routing.jobs.version import code_version
from adaptive_routing.figures.panels import PANELS, TITLES, panel_module
from adaptive_routing.routing_log.json_file import COMPRESSED
from adaptive_routing.system.errors import InputError, OutputError
from adaptive_routing.system.processes import children_import_from, identity
from adaptive_routing.settings.configurations import CONTROL, DEFAULTS
from adaptive_routing.settings.config_files import ConfigFileError, check_config_file
from adaptive_routing.settings.left_over import (
    left_over,
    left_over_list,
    left_over_sentence,
    remove,
)
from adaptive_routing.settings.load import (
    imported_config,
    load_settings,
    needs_p_values,
    null_distributions,
    task_of,
)
from adaptive_routing.data.tasks import task_module
from adaptive_routing.system.content import content_fingerprint
from adaptive_routing.system.cores import keep_user_limit
from adaptive_routing.system.text import visible

if not FOLDER.samefile(WORKFLOW / "workflow_scripts"):
    sys.exit(
        f"error: the workflow in {WORKFLOW} cannot run beside the one in {FOLDER.parent}, whose code Python has "
        "loaded; import all instances from one folder"
    )
keep_user_limit()
# Jobs run the code that was read here, whatever else is installed under its name.
children_import_from(WORKFLOW / "workflow_scripts")
tell_jobs(process=identity(), code_version=code_version(WORKFLOW))

try:
    for config_file in () if IS_IMPORTED else workflow.configfiles:
        check_config_file(config_file)
    SETTINGS = load_settings(
        imported_config(config, WORKFLOW) if IS_IMPORTED else config,
        command_line=workflow.config_settings.config,
    )
except (InputError, ConfigFileError) as error:
    sys.exit(f"error: {error}")

CONFIGURATIONS = {one.name: one for one in SETTINGS.pop("configurations")}
DATASETS = list(SETTINGS["datasets"])
RESULTS = SETTINGS["results"]
# What decides how a job runs and not what comes out, as the device, is read by the scripts from `config`:
# a change of it makes nothing stale. An importing workflow's own config stays as it is.
config = SETTINGS


wildcard_constraints:
    config="|".join(CONFIGURATIONS),
    dataset="|".join(DATASETS),
    null="(_[A-Za-z0-9]+)?",


def results(*parts):
    """A path below the results folder; wildcards stay as they are."""
    return Path(RESULTS, *parts).as_posix()


def job_log(*parts):
    """A job's log. `results/logs/` holds the experiments' own."""
    return results("job_logs", *parts) + ".log"


def job_benchmark(*parts):
    """Where Snakemake writes what a job took."""
    return results("benchmarks", *parts) + ".tsv"


def each_attempt(amount):
    """A resource of which a job gets more each time it is tried again."""
    return lambda wildcards, attempt: amount * attempt


def per_experiment(paths, configurations=CONFIGURATIONS):
    """Paths with the wildcards config and dataset, for every configuration and data set.

    Prompts have no controls: what is generated, and so the number of tokens, depends on the routing.
    """
    return [
        path
        for name in configurations
        for dataset in DATASETS
        if dataset != "prompts" or CONFIGURATIONS[name].control_of is None
        for path in expand(paths, config=name, dataset=dataset)
    ]


def local_source(settings):
    """The file of a data set that is one; nothing for a hub data set, or a task of the harness."""
    return [settings["source"]] if settings.get("local") else []


def dataset_task(wildcards):
    """The module of a data set's task."""
    return task_module(
        task_of(SETTINGS, wildcards.dataset),
        SETTINGS["datasets"][wildcards.dataset].get("protocol"),
    )


def uses_null_distribution(name):
    """Whether a configuration needs p-values."""
    return needs_p_values(CONFIGURATIONS[name])


# The null distributions that the study needs, by their names.
NULLS_USED = list(
    dict.fromkeys(
        CONFIGURATIONS[name].null
        for name in CONFIGURATIONS
        if uses_null_distribution(name)
    )
)


def null_suffix(name):
    """What stands for a null distribution in file names: nothing for the default one."""
    return "" if name == DEFAULTS["null"] else f"_{name}"


def null_name(wildcards):
    """The name of the null distribution that a job is about."""
    return wildcards.null.removeprefix("_") or DEFAULTS["null"]


def null_setting(key):
    """A setting of the null distribution that a job is about."""
    return lambda wildcards: null_distributions(SETTINGS)[null_name(wildcards)][key]


def null_alphas(wildcards):
    """The levels at which the study tests with the null distribution that a job is about, ascending."""
    null = null_name(wildcards)
    return sorted(
        {
            one.alpha
            for name, one in CONFIGURATIONS.items()
            if uses_null_distribution(name) and one.null == null and one.alpha
        }
    )


# The null distributions that are checked: all, where there is calibration text. Tables need none.
CALIBRATION = SETTINGS["null_distribution"]["calibration"]
HAS_CALIBRATION = not CALIBRATION["local"] or Path(CALIBRATION["source"]).exists()
NULLS_CHECKED = NULLS_USED if HAS_CALIBRATION else []


# Whether the study has the data set of prompts in levels of difficulty.
HAS_PROMPTS = "prompts" in DATASETS
# The data sets that are tasks of lm-evaluation-harness.
HARNESS_DATASETS = [name for name in DATASETS if task_of(SETTINGS, name) == "harness"]


# Model and data


def model_files():
    """The files of a model in a local folder; a hub model is identified by its revision."""
    if not SETTINGS["model"]["local"]:
        return []
    folder = Path(SETTINGS["model"]["name"])
    patterns = ("config.json", "tokenizer*.json", "*.safetensors")
    return sorted(str(path) for pattern in patterns for path in folder.glob(pattern))


def model_content(wildcards):
    """What a model in a local folder holds: Snakemake itself does not see that an older file came."""
    return content_fingerprint(model_files())


def dataset_content(wildcards):
    """What a local data file holds, or the folder of a task of the harness."""
    settings = SETTINGS["datasets"][wildcards.dataset]
    files = local_source(settings)
    if settings.get("include_path"):
        below = Path(settings["include_path"]).rglob("*")
        files += sorted(
            path for path in below if path.is_file() and "__pycache__" not in path.parts
        )
    return content_fingerprint(files)


# What only tasks of the harness need.
HARNESS_CODE = "adaptive_routing.data.harness"


def unless_of_harness(wildcards):
    """The code that a data set does without: all but tasks of the harness need none of it."""
    return [] if wildcards.dataset in HARNESS_DATASETS else [HARNESS_CODE]


def metrics_minutes(wildcards, attempt):
    """How long metrics take at most: those of the harness may be bootstrapped."""
    return attempt * (10 if wildcards.dataset in HARNESS_DATASETS else 1)


def harness_requests(wildcards):
    """The requests of a task of the harness, which its metrics are made of."""
    if wildcards.dataset not in HARNESS_DATASETS:
        return {}
    return {"dataset": rules.prepare_dataset.output[0]}


def calibration_content(wildcards):
    """What a local file of calibration text holds."""
    return content_fingerprint(
        local_source(SETTINGS["null_distribution"]["calibration"])
    )


def table_content(wildcards):
    """What a null distribution's table that was made elsewhere holds."""
    table = null_setting("table")(wildcards)
    return content_fingerprint([table] if table else [])


def dataset_settings(wildcards):
    """What decides which samples of a data set are scored, and how they are tokenised."""
    settings = SETTINGS["datasets"][wildcards.dataset]
    decisive = {key: value for key, value in settings.items() if key != "local"}
    if settings.get("protocol") == "rows":  # all others are as long as the model reads
        decisive["max_length"] = SETTINGS["evaluation"]["max_length"]
    if task_of(SETTINGS, wildcards.dataset) not in ("wikitext", "prompts"):
        # These have no contexts to share.
        decisive["share_contexts"] = SETTINGS["evaluation"]["share_contexts"]
    return decisive


# Null distributions and experiments


def null_distribution_source(wildcards):
    """A table made elsewhere, or the router logits that the estimate is fitted to."""
    table = null_setting("table")(wildcards)
    return (
        {"table": table}
        if table
        else {"router_logits": rules.collect_router_logits.output[0]}
    )


# What a routing log keeps, and how the name of its JSON ends.
KEPT_IN_LOGS = dict(SETTINGS["routing_log"])
JSON_ENDING = COMPRESSED if KEPT_IN_LOGS.pop("json_compression") == "zstd" else ""


def experiment_null_distribution(wildcards):
    """The null distribution, for the configurations that use one."""
    if uses_null_distribution(wildcards.config):
        null = null_suffix(CONFIGURATIONS[wildcards.config].null)
        path = rules.fit_null_distribution.output[0].format(null=null)
        return {"null_distribution": path}
    return {}


def controlled_experiment(wildcards):
    """The tensors of the configuration that a control is of."""
    name = CONFIGURATIONS[wildcards.config].control_of
    if name is None:
        return {}
    tensors = "logs/{config}_{dataset}_internal_routing.safetensors"
    return {
        "controlled": results(tensors.format(config=name, dataset=wildcards.dataset))
    }


def experiment_control(wildcards):
    """What decides a control's expert counts beside those of its configuration."""
    if CONFIGURATIONS[wildcards.config].control_of is None:
        return None
    return {"seed": SETTINGS["controls"]["seed"]}


def experiment_configuration(wildcards):
    """The configuration's name, strategy and parameters."""
    one = CONFIGURATIONS[wildcards.config]
    return {
        "name": one.name,
        "strategy": one.strategy,
        "max_experts": one.max_experts,
        # Weights are among the routing settings, and what is usual need not be said: a list that is added to the
        # settings makes no experiment stale that was there before.
        "parameters": {
            key: value
            for key, value in one.parameters.items()
            if key != "weights" and value != DEFAULTS.get(key)
        },
        "control_of": one.control_of,
    }


def experiment_routing(wildcards):
    """The routing settings that apply: a fixed number of experts has no minimum.

    The baseline keeps the router's own weights, whatever the others have.
    """
    routing = dict(SETTINGS["routing"])
    parameters = CONFIGURATIONS[wildcards.config].parameters
    routing["weights"] = parameters.get("weights", routing["weights"])
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


# Controls

# Adaptive configurations that have controls, and the controls.
CONTROLLED = list(
    dict.fromkeys(
        one.control_of for one in CONFIGURATIONS.values() if one.control_of is not None
    )
)
CONTROLS_OF_STUDY = [
    name for name, one in CONFIGURATIONS.items() if one.control_of is not None
]
# Prompts have no controls: see `per_experiment`.
CONTROLLED_DATASETS = [dataset for dataset in DATASETS if dataset != "prompts"]
HAS_CONTROLS = bool(CONTROLLED and CONTROLLED_DATASETS)
# Whether tokens can be compared with a fixed number of experts.
HAS_FIXED_CONTROLS = HAS_CONTROLS and "fixed" in SETTINGS["controls"]["kinds"]


def per_controlled_experiment(path, instead=lambda name: name):
    """A path for every configuration with controls and every data set that these have.

    instead: the configuration, by name, that stands for it.
    """
    return [
        path.format(config=instead(name), dataset=dataset)
        for name in CONTROLLED
        for dataset in CONTROLLED_DATASETS
    ]


# What is left over

# The targets that list and remove files that jobs made with other settings.
LEFT_OVER = ("left_over", "remove_left_over")


def files_of_study():
    """Every file that a job of the whole study writes: results, logs and benchmarks."""
    suffixes = list(map(null_suffix, NULLS_USED))
    files = set()
    for maker in workflow.rules:
        written = [*maker.output, *maker.log, maker.benchmark]
        for path in map(strip_wildcard_constraints, filter(None, written)):
            files.update(
                per_experiment(path)
                if "{config}" in path
                else expand(path, dataset=DATASETS, null=suffixes)
            )
    return files


def refuse_beside_a_run():
    """End with a sentence where what is left over is asked for while a run has locked the working directory.

    That run may have other settings and need it. Snakemake itself would not mind, since no file is a target, and
    would remove the other run's lock at the end.
    """
    asked = set(LEFT_OVER).intersection(sys.argv[1:])
    if asked and any(Path(".snakemake/locks").glob("*.lock")):
        sys.exit(
            f"error: {asked.pop()} cannot be asked for while a run goes on in {Path.cwd()} (if one was killed "
            "there, `snakemake --unlock` says so)"
        )


# Figures and report

# Controls route as their configurations do, but for the numbers of experts.
IN_ATLAS = [name for name, one in CONFIGURATIONS.items() if one.control_of is None]


def atlas_of_fixed_controls():
    """What the atlas says on which tokens adapting gains by; nothing in a study without such controls."""
    if not HAS_FIXED_CONTROLS:
        return {}
    path = results("atlas/{config}_{dataset}.safetensors")
    fixed = lambda name: CONFIGURATIONS[name].control("fixed").name
    return {"fixed": per_controlled_experiment(path, fixed)}


ATLAS_FIGURES = {
    "counts": "How many experts, layer by layer",
    "usage": "Which experts",
    "position_loss": "Experts over the sequence, and loss",
}


def atlas_page_fingerprint():
    """A fingerprint of what the atlas's page is made with and is not Python: its script and its looks."""
    folder = WORKFLOW / "workflow_scripts/adaptive_routing/atlas/page"
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


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


CONTROL_FIGURES = {
    "same_compute": "Adaptive against fixed at the same compute",
    "decomposition": "What layers, spread and token information are worth",
    **({"where": "Where adaptive wins and loses"} if HAS_FIXED_CONTROLS else {}),
}


def control_figures():
    """The figures of a study with controls, as PNG and SVG by name."""
    png = {
        f"{name}_png": report(
            results(f"visualizations/{name}.png"),
            caption=f"../report/{name}.rst",
            category="At the same compute",
            labels={"shows": title},
        )
        for name, title in CONTROL_FIGURES.items()
    }
    svg = {
        f"{name}_svg": results(f"visualizations/{name}.svg") for name in CONTROL_FIGURES
    }
    return png | svg


def report_on_controls():
    """What the report shows of the comparisons with controls; nothing in a study without them."""
    if not HAS_CONTROLS:
        return {}
    figures = rules.plot_same_compute.output
    return {
        **CONTROL_TABLES,
        **{
            f"{name}_figure": getattr(figures, f"{name}_png")
            for name in CONTROL_FIGURES
        },
    }


def report_on_null_distributions():
    """What the report shows of the checks of the null distributions; nothing where none was checked."""
    if not NULLS_CHECKED:
        return {}
    suffixes = list(map(null_suffix, NULLS_CHECKED))
    return {
        "null_checks": expand(
            rules.check_null_distribution.output.table, null=suffixes
        ),
        "null_check_figures": expand(rules.plot_null_check.output.png, null=suffixes),
    }


def model_card():
    """The card of a model in a local folder, which may hold a note for reports."""
    card = Path(SETTINGS["model"]["name"]) / "README.md"
    return {"card": str(card)} if SETTINGS["model"]["local"] and card.is_file() else {}


def report_on_difficulty():
    """What the report shows of the prompts; nothing in a study without them."""
    if not HAS_PROMPTS:
        return {}
    tables = rules.tabulate_difficulty.output
    return {
        "difficulty": tables.levels_csv,
        "difficulty_trend": tables.trend_csv,
        "difficulty_figure": rules.plot_difficulty.output.png,
    }


# How a run begins, and what it says


def keep_devices_busy():
    """On one machine: have Snakemake start jobs soon enough that no device waits for the next experiment."""
    if not workflow.local_exec:
        return
    scheduler = workflow.scheduler
    # A limit on the jobs started a second has the scheduler look once more, a second later, after each time that
    # it looked: with each job that ends, one more such look a second goes on for the rest of the run.
    scheduler.job_rate_limiter = None
    if SETTINGS["execution"] == "host":
        for amounts in (scheduler.global_resources, scheduler.resources):
            if "gpu" in amounts:
                amounts["gpu"] *= JOBS_OF_A_HOST


def start_model_host():
    """On one machine: start the model host before its first job, where there will be one."""
    # With conda or containers the jobs, and so their host, have a Python of their own.
    deployed = workflow.deployment_settings.deployment_method
    if not workflow.local_exec or workflow.touch or deployed:
        return
    needed = {job.rule.name for job in workflow.dag.needrun_jobs()}
    if needed & {"collect_router_logits", "run_experiment"}:
        start_early(SETTINGS["model"], SETTINGS["execution"], RESULTS)


def front_page():
    """What the front page of Snakemake's report shows: the report's main sentences, if any, and the model's name.

    They are reStructuredText that shows them as they are.
    """
    summary = Path(results("bh_routing_summary.txt"))
    sentences = (
        summary.read_text(encoding="utf-8").splitlines() if summary.exists() else []
    )
    escaped = lambda text: re.sub(r"([^\w\s]|_)", r"\\\1", visible(text))
    return {
        "answers": list(map(escaped, sentences)),
        "model_name": escaped(SETTINGS["model"]["name"]),
    }


def say_what_is_asked():
    """Tell whatever shows the run how many of each rule's jobs were asked for, and how many are done."""
    asked, done = Counter(), Counter()
    for job in workflow.dag.jobs:
        if job.output:
            asked[job.rule.name] += 1
            done[job.rule.name] += not workflow.dag.needrun(job)
    experiments = "run_experiment"
    logger.info(
        f"{asked[experiments]} experiments asked for, {done[experiments]} done before",
        extra={
            "study_jobs": {rule: (asked[rule], done[rule]) for rule in asked},
            "if_interrupted": how_to_go_on("Interrupted"),
        },
    )


def tell_what_is_planned():
    """Tell the jobs which experiments this run makes, and the fewest and most experts of each."""
    planned = {}
    for job in workflow.dag.jobs:
        if job.rule.name == "run_experiment" and workflow.dag.needrun(job):
            one = CONFIGURATIONS[job.wildcards.config]
            fewest = one.max_experts
            if one.is_adaptive or one.control_of is not None:
                fewest = SETTINGS["routing"]["min_k"]
            of_configuration = {
                "experts": (fewest, one.max_experts),
                "p_values": uses_null_distribution(one.name),
                "datasets": [],
            }
            planned.setdefault(one.name, of_configuration)["datasets"].append(
                job.wildcards.dataset
            )
    tell_jobs(planned=planned)


def print_answer():
    """Print the report's main sentences and where the report is; list or remove what is left over, if asked to."""
    covered = {job.rule.name for job in workflow.dag.jobs}
    summary = Path(results("bh_routing_summary.txt"))
    found, lines = left_over(RESULTS, files_of_study()), []
    if covered.intersection(LEFT_OVER):
        lines = ["", left_over_list(RESULTS, found)]
        if found and "remove_left_over" in covered:
            try:
                lines.append(remove(found))
            except OutputError as error:
                sys.exit(f"error: {error}")
        elif found:
            lines.append("The target remove_left_over removes them.")
    if "write_report" in covered and summary.exists():
        lines += ["", *summary.read_text(encoding="utf-8").splitlines(), ""]
        if found and not covered.intersection(LEFT_OVER):
            sentence = left_over_sentence(RESULTS, found)
            lines.append(f"{sentence} The target left_over lists them.")
        lines.append(f"Report: {results('bh_routing_report.html')}")
    if lines:
        print_last("\n".join(lines))


def print_how_to_go_on():
    """Print how to go on with a run that was interrupted, or in which jobs failed."""
    failed = len(workflow.scheduler.failed)
    jobs = "1 job" if failed == 1 else f"{failed} jobs"
    print_last(how_to_go_on(f"{jobs} failed" if failed else "Interrupted"), sys.stderr)
