"""What a run shows: its picture or its lines, and the errors of its jobs."""

import logging
import os
import re
import sys
import threading
import time
from collections import deque
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_adaptive_routing.capture import Capture
from snakemake_logger_plugin_adaptive_routing.picture import EXPERIMENTS, Progress, draw
from snakemake_logger_plugin_adaptive_routing.records import is_chatter, job_name, snakemakes_own
from snakemake_logger_plugin_adaptive_routing.screen import open_screen

RED = "31"
SPEED = re.compile(r"; ([\d,]+ tokens/s)$")
INTERRUPTED = "Terminating processes on user request"
DOWNLOAD = re.compile(r"(?:model|data set) \S+: (.+ downloaded, .+/s.*)$")
# What jobs say that is shown in another way, or of which their logs are enough.
SHOWN_OTHERWISE = re.compile(r"loaded .+ in [\d.]+ s$|interrupted$|.+ tokens/s$|.*\r")


class Run:
    """Shows a run from its first record to its end.

    Args:
        settings: Snakemake's output settings.
    """

    def __init__(self, settings):
        self._settings = settings
        self._own = snakemakes_own(settings)
        self._lock = threading.RLock()
        self._progress = self._screen = self._capture = None
        self._counts = {}  # jobs by rule, as Snakemake counts what it has to do
        self._jobs = {}  # records of the jobs that began
        # What Snakemake says of an ended script, before it says which job that was.
        self._held = deque(maxlen=100)
        self._errors = []  # what jobs said on their terminal: a log on a full disk may lack it or end early
        self._told = []  # the errors that are shown
        self._heard = set()
        self._is_in_traceback = self._is_interrupted = self._is_over = False
        self._ending = "Interrupted"
        self._previous_hook, sys.excepthook = sys.excepthook, self._hook

    # What Snakemake says

    def take(self, record):
        """Show one record."""
        event = getattr(record, "event", None)
        if hasattr(record, "study_jobs"):
            self._begin(record.study_jobs)
            self._ending = record.if_interrupted
        elif event == LogEvent.RUN_INFO:
            self._counts = {rule: (n, 0) for rule, n in record.stats.items() if rule not in ("total", "all")}
        elif event == LogEvent.JOB_INFO:
            self._start(record)
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.job_id)
        elif event == LogEvent.JOB_ERROR:
            self._fail(record)
        elif event == LogEvent.GROUP_ERROR:
            self._fail_group(record)
        elif event == LogEvent.ERROR and getattr(record, "exception", None) == "RuleException":
            self._held.append(record)
        elif event not in (LogEvent.PROGRESS, LogEvent.GROUP_INFO) and not is_chatter(record):
            self._is_interrupted |= str(record.msg).startswith(INTERRUPTED)
            self._show(record)

    def close(self):
        """End the picture and give the terminal back."""
        if self._capture:
            self._capture.close()
        if not self._is_interrupted:  # what belongs to no job that failed would be lost
            for record in self._held:
                self._show(record)
            for sentence in self._errors:
                if not any(told in sentence for told in self._told):
                    self._say(f"error: {sentence}", RED)
        self._is_over = True
        if self._screen:
            self._screen.close()
        self._own.flush()

    def _show(self, record):
        """A record as Snakemake shows it."""
        if not self._screen:
            self._own.handle(record)
        elif self._own.filter(record):
            color = RED if record.levelno >= logging.ERROR else None
            self._screen.say(self._own.format(record), color)

    # The run's jobs

    @property
    def _is_quiet(self):
        return bool({"ALL", "PROGRESS", "RULES"} & {one.name for one in self._settings.quiet or ()})

    def _begin(self, jobs):
        """The run's first job is to begin: show how far it is from here on."""
        with self._lock:
            self._progress = Progress(jobs, time.monotonic())
            descriptor = 1 if self._settings.stdout else 2
            self._screen = open_screen(descriptor, self._lock, self._draw, not self._settings.nocolor)
            # Elsewhere than on the screen stdout is left alone: it has the answer.
            self._capture = Capture([2, 1] if os.isatty(1) else [2], self._hear)

    def _draw(self, width):
        if self._is_quiet:
            return []
        return draw(self._progress, width, self._screen.signs, time.monotonic(), self._is_over)

    def _say(self, text, color=None):
        self._screen.say(text, color)

    def _say_line(self, text):
        """A line of the run's progress, where no picture shows it."""
        if not self._screen.has_picture and not self._is_quiet:
            self._say(text)

    def _start(self, record):
        if self._progress is None:  # a run without hooks (--no-hooks)
            self._begin(self._counts)
        with self._lock:
            self._jobs[record.jobid] = record
            if record.output:  # collections of targets make nothing
                self._progress.start(record.jobid, record.rule_name, record.wildcards, time.monotonic())

    def _finish(self, jobid):
        with self._lock:
            progress, now = self._progress, time.monotonic()
            if jobid not in progress.running:
                return
            record = self._jobs[jobid]
            stage = progress.finish(jobid, now)
            if stage == EXPERIMENTS:
                self._say_experiment(record, now)
            if progress.is_complete(stage) and stage != EXPERIMENTS:
                self._say_line(f"{stage}: all {progress.asked[stage]} done")

    def _say_experiment(self, record, now):
        progress = self._progress
        result = next((line for line in reversed(_log_lines(record.log)) if SPEED.search(line)), None)
        if result:
            progress.speed = SPEED.search(result)[1]
        count = f"{progress.done[EXPERIMENTS]} of {progress.asked[EXPERIMENTS]}"
        parts = [f"{count}: {result or job_name(record.rule_name, record.wildcards)}", progress.left(now)]
        self._say_line("; ".join(filter(None, parts)))

    # Errors

    def _fail(self, record):
        """A job failed: its sentence, and where its log is."""
        with self._lock:
            if record.jobid not in self._jobs:  # of a group, and said already
                return
            begun = self._jobs.pop(record.jobid)
            if self._progress:
                self._progress.running.pop(record.jobid, None)
            if self._is_interrupted:
                return
            lines = _log_lines(record.log)
            self._tell(self._sentence(lines, record.rule_name))
            where = f"; its log is {record.log[0]}" if record.log else ""
            self._say(f"  in {job_name(record.rule_name, begun.wildcards)}{where}")
            if self._settings.show_failed_logs:
                self._say("\n".join(f"  {line}" for line in lines))

    def _fail_group(self, record):
        """A Slurm job failed: the sentences of those of its jobs that have one, or its own log."""
        with self._lock:
            failed = False
            if self._is_interrupted:
                return
            for job in record.job_error_info:
                begun = self._jobs.pop(job["jobid"], None)
                self._progress.running.pop(job["jobid"], None)
                said = _error(_log_lines(job["log"]))
                if begun and said:
                    failed = True
                    self._tell(said)
                    name = job_name(job["rule_name"], begun.wildcards)
                    self._say(f"  in {name}; its log is {job['log'][0]}")
            if not failed:
                where = f"; its log is {', '.join(record.aux_logs)}" if record.aux_logs else ""
                self._say(f"error: the group {record.groupid} failed{where}", RED)

    def _tell(self, sentence):
        self._told.append(sentence)
        self._say(f"error: {sentence}", RED)

    def _sentence(self, lines, rule):
        """Why a job failed, in one sentence."""
        held = next((one for one in self._held if _is_of(rule, one)), None)
        if held:
            self._held.remove(held)
        text = str(held.msg) if held else ""
        said = _error(lines)
        heard = (one for one in self._errors if one.startswith(said or "") and one not in self._told)
        if said := next(heard, said):
            return said
        if found := re.search(r"died with <Signals\.(\w+)", text):
            return f"the job's process was ended by {found[1]}"
        if lines and "Traceback (most recent call last):" in lines:
            return lines[-1]
        if found := re.search(r"non-zero exit status (\d+)", text):
            return f"the job's process ended with exit status {found[1]}"
        return " ".join(text.split()) or f"{rule} failed"

    # What is written behind the picture's back

    def _hear(self, line):
        """Show a line that a job, or a part of Snakemake, wrote to its terminal, if its log is not enough."""
        with self._lock:
            if line.startswith("Traceback (most recent call last)"):
                self._is_in_traceback = True
            elif self._is_in_traceback:
                self._is_in_traceback = line.startswith(" ") or not line
            elif self._screen.has_picture and (found := DOWNLOAD.match(line)):
                self._progress.downloaded = found[1]
            elif line.startswith("error: "):
                self._errors.append(line.removeprefix("error: "))
            elif line.strip() and not SHOWN_OTHERWISE.match(line) and line not in self._heard:
                self._heard.add(line)  # once is enough of what each of sixty jobs says
                if not self._is_interrupted:
                    self._say(line)

    def _hook(self, kind, value, traceback):
        """An interruption that ends Snakemake itself is no error of its code."""
        if issubclass(kind, KeyboardInterrupt):
            print(self._ending, file=sys.stderr)
        else:
            self._previous_hook(kind, value, traceback)


def _is_of(rule, record):
    """Whether a record speaks of a rule's script, as ".snakemake/scripts/tmpab12cd34.run_experiment.py"."""
    script = re.search(r"/tmp\w+\.(\w+)\.py'", str(record.msg))
    return bool(script) and rule.endswith(script[1])


def _log_lines(paths):
    """The lines of a job's log that say something; none where there is no log."""
    try:
        return [line for line in Path(paths[0]).read_text(errors="replace").splitlines() if line.strip()]
    except (IndexError, OSError):
        return []


def _error(lines):
    """The sentence after "error: " that a log ends with."""
    sentences = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return sentences[-1] if sentences else None
