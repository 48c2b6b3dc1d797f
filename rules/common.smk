# Settings, paths and what several rules share. No rules here.

import sys
from pathlib import Path

# The workflow's own folder, also where another workflow imports it as a module. This file is in rules/.
WORKFLOW = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
IS_IMPORTED = not workflow.modifier.is_main_snakefile()

sys.path.insert(0, str(WORKFLOW / "workflow_scripts"))

from adaptive_routing.jobs.fingerprint import code_fingerprint
from adaptive_routing.jobs.script import tell_jobs
from adaptive_routing.jobs.version import code_version
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.processes import children_import_from, identity
from adaptive_routing.settings.load import (
    imported_config,
    load_settings,
    needs_p_values,
)
from adaptive_routing.data.tasks import task_module
from adaptive_routing.system.cores import keep_user_limit

keep_user_limit()
# Jobs run the code that was read here, whatever else is installed under its name.
children_import_from(WORKFLOW / "workflow_scripts")
tell_jobs(identity(), code_version(WORKFLOW))

try:
    SETTINGS = load_settings(
        imported_config(config, WORKFLOW) if IS_IMPORTED else config,
        command_line=workflow.config_settings.config,
    )
except InputError as error:
    sys.exit(f"error: {error}")

CONFIGURATIONS = {one.name: one for one in SETTINGS.pop("configurations")}
DATASETS = list(SETTINGS["datasets"])
RESULTS = SETTINGS["results"].rstrip("/")
# What decides how a job runs and not what comes out, as the device, is read by the scripts from `config`:
# a change of it makes nothing stale. An importing workflow's own config stays as it is.
config = SETTINGS


wildcard_constraints:
    config="|".join(CONFIGURATIONS),
    dataset="|".join(DATASETS),


def results(*parts):
    """A path below the results folder; wildcards stay as they are."""
    return "/".join((RESULTS, *parts))


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
    """Paths with the wildcards config and dataset, for every configuration and data set."""
    return expand(paths, config=configurations, dataset=DATASETS)


def local_source(settings):
    """The file of a data set that is one; nothing for a hub data set."""
    return [settings["source"]] if settings["local"] else []


def dataset_task(wildcards):
    """The module of a data set's task."""
    return task_module(
        wildcards.dataset, SETTINGS["datasets"][wildcards.dataset].get("protocol")
    )


def uses_null_distribution(name):
    """Whether a configuration needs p-values."""
    return needs_p_values(CONFIGURATIONS[name])


# Whether the study has the data set of prompts in levels of difficulty.
HAS_PROMPTS = "prompts" in DATASETS
