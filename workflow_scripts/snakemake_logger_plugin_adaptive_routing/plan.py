"""What a dry run shows: each job with its wildcards and its reason, then how many each rule has."""

import re

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_adaptive_routing.records import is_chatter, snakemakes_own

NAMED = 2  # files of a reason that are named


class Plan:
    """Shows records as Snakemake does, but the jobs of a dry run in two lines each."""

    def __init__(self, settings):
        self._is_full = not settings.dryrun or settings.verbose or settings.debug_dag
        self._own = snakemakes_own(settings)
        self._counts = None

    def take(self, record):
        """Show one record."""
        event = getattr(record, "event", None)
        if self._is_full:
            self._own.handle(record)
        elif event == LogEvent.RUN_INFO:
            self._counts = record  # it comes before the jobs and after them; once is enough, at the end
        elif event == LogEvent.JOB_INFO:
            if self._own.filter(record):
                self._own.stream.write(describe_job(record) + "\n")
        elif not is_chatter(record):
            self._own.handle(record)

    def close(self):
        """Show what is held back."""
        if self._counts:
            self._own.emit(self._counts)  # with --quiet as well: that asks for the counts alone
        self._own.flush()


def describe_job(record):
    """A job's rule and wildcards, and below them its reason, with a few of the files that it names."""
    wildcards = ", ".join(f"{name}={value}" for name, value in (record.wildcards or {}).items())
    head = f"{record.rule_name}: {wildcards}" if wildcards else record.rule_name
    reasons = [_shortened(reason) for reason in re.split(r"; (?=[A-Z])", record.reason or "")]
    return "\n    ".join([head, *filter(None, reasons)])


def _shortened(reason):
    kind, colon, rest = reason.partition(": ")
    files = sorted(rest.split(", "))
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return f"{kind}{colon}{', '.join(files[:NAMED])}{more}"
