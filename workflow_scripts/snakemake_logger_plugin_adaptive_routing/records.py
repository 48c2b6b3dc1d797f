"""What Snakemake's log records say, and which of them nobody needs to see."""

import sys

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

# Snakemake's own log file (.snakemake/log/) has them all.
CHATTER = (
    "host: ",
    "Config file ",
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Using shell: ",
    "Group jobs: inactive",
    "Conda environments: ignored",
    "Singularity containers: ignored",
    "Select jobs to execute",
    "Execute ",
    "Complete log(s): ",
    "Elapsed time: ",
    "Shutting down, this might take some time",
    "Exiting because a job execution failed",
    "Some jobs were triggered by provenance information",
    "Rules with provenance triggered jobs: ",
    "This was a dry-run (flag -n)",
)
CHATTER_EVENTS = {LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO, LogEvent.JOB_STARTED, LogEvent.SHELLCMD}
FAILED = "At least one job did not complete successfully"  # after each of them has said so


def is_chatter(record):
    """Whether a record is left out of what is shown."""
    text = record.msg if isinstance(record.msg, str) else ""
    is_of_no_interest = getattr(record, "event", None) in CHATTER_EVENTS
    return is_of_no_interest or text.lstrip().startswith(CHATTER) or FAILED in text


def snakemakes_own(settings):
    """The handler that Snakemake has without a plugin, with its filter and format."""
    return ColorizingTextHandler(
        nocolor=settings.nocolor,
        stream=sys.stdout if settings.stdout else sys.stderr,
        formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
        filter=DefaultFilter(
            settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds
        ),
    )


def job_name(rule, wildcards):
    """A job in words: "16experts_bh_a030 on lambada", "prepare dataset lambada"."""
    values = [str(value) for value in (wildcards or {}).values()]
    if rule.endswith("run_experiment") and len(values) == 2:
        return f"{wildcards['config']} on {wildcards['dataset']}"
    return " ".join((rule.replace("_", " "), *values))
