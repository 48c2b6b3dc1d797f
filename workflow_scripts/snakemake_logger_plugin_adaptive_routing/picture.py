"""How far a run is, and the picture of it: a row for each stage, what is running, how fast."""

from snakemake_logger_plugin_adaptive_routing.pace import duration, remaining_seconds
from snakemake_logger_plugin_adaptive_routing.records import job_name

EXPERIMENTS = "experiments"
# A workflow that imports this one may put a prefix before the rules' names.
STAGES = {
    "preparation": ("inspect_model", "prepare_dataset", "collect_router_logits", "fit_null_distribution"),
    EXPERIMENTS: ("run_experiment",),
    "metrics": ("compute_metrics",),
}
LAST_STAGE = "tables, figures, report"
LABEL_WIDTH = max(map(len, (*STAGES, LAST_STAGE)))
LONGEST_BAR = 40
GREEN, CYAN = "32", "36"


def stage_of(rule):
    """The stage that a rule belongs to."""
    return next((stage for stage, rules in STAGES.items() if rule.endswith(rules)), LAST_STAGE)


class Progress:
    """Counts a run's jobs.

    Args:
        jobs: (asked for, done before) by rule.
        now: the time, as of a clock that is never set.
    """

    def __init__(self, jobs, now):
        self.begun = now
        self.asked = dict.fromkeys((*STAGES, LAST_STAGE), 0)
        self.done = dict(self.asked)
        for rule, (asked, done) in jobs.items():
            self.asked[stage_of(rule)] += asked
            self.done[stage_of(rule)] += done
        self.running = {}  # job's id: (rule, wildcards, when it began)
        self.first_began = None
        self.finished = []  # when experiments were
        self.speed = None  # tokens/s of the last one, as its job says it
        self.downloaded = None  # how far a job's download is, in its words

    def start(self, jobid, rule, wildcards, now):
        """A job begins."""
        self.running[jobid] = (rule, wildcards, now)
        if stage_of(rule) == EXPERIMENTS and self.first_began is None:
            self.first_began = now

    def finish(self, jobid, now):
        """A job is done; returns its stage."""
        rule, _, _ = self.running.pop(jobid)
        self.downloaded = None
        stage = stage_of(rule)
        self.done[stage] += 1
        if stage == EXPERIMENTS:
            self.finished.append(now)
        return stage

    def is_complete(self, stage):
        """Whether all of a stage is done."""
        return self.done[stage] >= self.asked[stage]

    def left(self, now):
        """How long the other experiments will take, as "about 2 min left"; empty where nobody knows."""
        missing = self.asked[EXPERIMENTS] - self.done[EXPERIMENTS]
        seconds = remaining_seconds(self.finished, self.first_began, missing, now)
        return "" if seconds is None else f"about {duration(seconds)} left"


def draw(progress, width, signs, now, is_over=False):
    """The picture's rows, each a list of (text, colour or None).

    Args:
        progress: a `Progress`.
        width: columns that there are.
        signs: of the bar's two halves, of a finished stage and of one with a running job.
        now: the time.
        is_over: whether the run has ended.
    """
    stages = [stage for stage, asked in progress.asked.items() if asked]
    counts = {stage: f"{progress.done[stage]} of {progress.asked[stage]}" for stage in stages}
    counts_width = max((len(f"{asked} of {asked}") for asked in progress.asked.values()), default=0)
    left = "" if is_over else progress.left(now)
    # Room for all that is to come is kept from the beginning, so that the bars do not change their length.
    bar_width = min(LONGEST_BAR, width - LABEL_WIDTH - counts_width - len("   about 90 min left") - 5)
    active = {stage_of(rule) for rule, _, _ in progress.running.values()}
    rows = []
    for stage in stages:
        full, empty, finished, current = signs
        mark = current if stage in active and not is_over else " "
        if progress.is_complete(stage):
            mark = finished
        row = [(f"{mark} ", GREEN if mark == finished else CYAN), (stage.ljust(LABEL_WIDTH) + "  ", None)]
        if bar_width >= 5:
            filled = bar_width * min(progress.done[stage], progress.asked[stage]) // progress.asked[stage]
            row += [(full * filled, GREEN), (empty * (bar_width - filled) + "  ", None)]
        row.append((counts[stage].rjust(counts_width), None))
        if stage == EXPERIMENTS and left:
            row.append((f"  {left}", None))
        rows.append(row)
    if not is_over:  # between two jobs as well, so that the picture keeps its height
        rows.append([("  running: ", None), (_running(progress, now), CYAN)])
    speed = f"{progress.speed} in the last experiment; " if progress.speed and not is_over else ""
    if progress.downloaded and not is_over:
        speed = f"{progress.downloaded}; "
    rows.append([(f"  {speed}{_clock(now - progress.begun)}{'' if is_over else ' so far'}", None)])
    return rows


def _running(progress, now):
    if not progress.running:
        return "-"
    # An experiment is what one waits for: it stands first.
    jobs = sorted(progress.running.values(), key=lambda job: stage_of(job[0]) != EXPERIMENTS)
    rule, wildcards, began = jobs[0]
    others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"{job_name(rule, wildcards)}{others}, {_clock(now - began)}"


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
