"""Nothing is lost when things break: processes killed at any moment, a full disk, folders of no use.

After every fault all files that have their final names are compared with those of an undisturbed run, so a
file that looks complete and is not cannot pass; and every process that the run started has to be gone.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image
from safetensors import safe_open
from study_folder import StudyFolder

RESULTS = "results d'une étude, β"  # spaces, an apostrophe, letters beyond ASCII
EXPERIMENTS = [
    f"{config}_{dataset}"
    for config in ("8experts_topk_baseline", "16experts_bh_a030")
    for dataset in ("wikitext", "lambada")
]
OUTPUTS = {
    "inspect_model": ["model.json"],
    "prepare_dataset": ["datasets/lambada.json", "datasets/wikitext.json"],
    "collect_router_logits": ["calibration/router_logits.safetensors"],
    "fit_null_distribution": ["calibration/null_distribution.safetensors"],
    "run_experiment": [
        f"logs/{name}{suffix}"
        for name in EXPERIMENTS
        for suffix in (".json", "_internal_routing.json", "_internal_routing.safetensors")
    ],
    "compute_metrics": [f"metrics/{name}.json" for name in EXPERIMENTS],
    "tabulate_results": ["bh_routing_results.csv", "bh_routing_comparisons.json"],
    "plot_panels": ["visualizations/panel_1_perplexity.png", "visualizations/panel_9_speed_quality.svg"],
    "write_report": ["bh_routing_report.md", "bh_routing_report.html"],
}
SPEED = ("tokens_per_second", "latency_ms_per_token", "forward_seconds")  # differ from run to run
# A machine of three cores, so that the model host has one log worker.
THREE_CORES = "import os; os.sched_getaffinity = lambda pid: {0, 1, 2}"


@dataclass(frozen=True)
class Moment:
    """When a run is struck, and where.

    Attributes:
        rule: a job of this rule has begun or, with `writing`, made a temporary file.
        victim: the process that is hit, as `Run.find` knows it.
        signal: what it gets; SIGINT goes to the whole process group, as from a terminal.
        execution: where the model is.
    """

    rule: str
    victim: str
    writing: bool = False
    signal: int = signal.SIGKILL
    execution: str = "host"


MOMENTS = [
    Moment("inspect_model", "job"),
    Moment("prepare_dataset", "snakemake"),
    Moment("prepare_dataset", "job"),
    Moment("collect_router_logits", "host"),
    Moment("collect_router_logits", "job"),
    Moment("collect_router_logits", "snakemake"),
    Moment("fit_null_distribution", "snakemake"),
    Moment("fit_null_distribution", "job"),
    Moment("run_experiment", "snakemake"),
    Moment("run_experiment", "snakemake", writing=True),
    Moment("run_experiment", "host", writing=True),
    Moment("run_experiment", "parent", writing=True),
    Moment("run_experiment", "worker", writing=True),
    Moment("run_experiment", "job", writing=True),
    Moment("run_experiment", "snakemake", writing=True, execution="process"),
    Moment("run_experiment", "job", writing=True, execution="process"),
    Moment("run_experiment", "snakemake", writing=True, signal=signal.SIGTERM),
    Moment("run_experiment", "snakemake", writing=True, signal=signal.SIGINT),
    Moment("compute_metrics", "job"),
    Moment("tabulate_results", "job"),
    Moment("plot_panels", "job", writing=True),
    Moment("plot_panels", "snakemake", writing=True),
    Moment("write_report", "job"),
]


def wait_until(condition, seconds=60):
    """Wait for a condition to hold and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


class Run:
    """A run of Snakemake, and all processes that it started: a mark in their environment tells them."""

    def __init__(self, study, *arguments):
        self.study, self.mark = study, uuid.uuid4().hex
        self.before = self._temporary_files()
        with tempfile.TemporaryFile() as output:
            self._output = os.dup(output.fileno())
            self.process = study.begin(
                *arguments, output=output, FAULTS=self.mark, TMPDIR=str(study.temporary), PYTHONPATH=str(study.site)
            )  # fmt: skip

    def _temporary_files(self):
        found = {}
        for path in self.study.results().glob("*/.tmp_*"):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_mtime_ns
        return found

    @property
    def said(self):
        """What Snakemake and its jobs have printed."""
        return os.pread(self._output, 1 << 24, 0).decode()

    def processes(self):
        """Everything of this run that still lives."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if not is_dead and process.environ().get("FAULTS") == self.mark:
                    found.append(process)
        return found

    def find(self, victim, rule):
        """A process by its part in the run, or None."""
        if victim == "snakemake":
            return self.process
        words = {
            "job": rf"^\S*python\S* \S*\.{rule}\.py$",
            "host": r"-m adaptive_routing\.host\.server ",
            "parent": r"-m adaptive_routing\.host\.lifetime ",
            "worker": r"-m adaptive_routing\.log_workers ",
        }
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if re.search(words[victim], " ".join(process.cmdline())):
                    return process
        return None

    def has_come(self, moment):
        """Whether a moment has come."""
        if not moment.writing:
            return f"rule {moment.rule}:" in self.said
        folder = Path(OUTPUTS[moment.rule][0]).parent.name
        now = self._temporary_files().items() - self.before.items()
        return any(path.parent.name == folder for path, _ in now)

    def strike(self, moment, delay):
        """Strike so many seconds after a moment has come; False if the run ended before."""
        is_over = lambda: self.process.poll() is not None  # noqa: E731
        wait_until(lambda: self.has_come(moment) or is_over(), seconds=300)
        time.sleep(delay)
        victim = wait_until(lambda: is_over() or self.find(moment.victim, moment.rule))
        if is_over():
            return False
        if moment.signal == signal.SIGINT:
            os.killpg(victim.pid, moment.signal)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(moment.signal)
        return True

    def end(self):
        """Wait for the end of Snakemake and then, a grace time, of everything that it started."""
        status = self.process.wait(300)
        wait_until(lambda: not self.processes())
        return status


def make_study(folder, temporary):
    """A study of four experiments in a folder, which may be a finished one's copy."""
    study = StudyFolder(
        folder,
        results=RESULTS,
        strategies={"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.30]}},
        evaluation={"max_samples": 6},
        datasets={"hellaswag": None},
        execution="host",
    )
    study.temporary, study.site = temporary, folder / "site"
    study.site.mkdir(exist_ok=True)
    (study.site / "sitecustomize.py").write_text(THREE_CORES)
    return study


@pytest.fixture(scope="module")
def temporary():
    """A temporary folder whose name is short enough for sockets; whatever happens, it is left empty."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="faults") as folder:
        yield Path(folder)
        left = [path.name for path in Path(folder).iterdir()]
        assert not [name for name in left if not name.startswith("snakemake")]  # its own, when it is killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, temporary):
    """A finished study that nothing has disturbed."""
    study = make_study(tmp_path_factory.mktemp("une étude") / "finished", temporary)
    run = Run(study)
    assert run.end() == 0, run.said
    return study


@pytest.fixture
def copy(undisturbed, tmp_path, temporary):
    """A copy of the finished study, to be broken."""
    shutil.copytree(undisturbed.folder, tmp_path / "copy", symlinks=True)
    return make_study(tmp_path / "copy", temporary)


def content(path):
    """What must be the same in a file of two runs: all but speed, and of figures and report that they are whole."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).view(-1).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
            return file.metadata(), tensors
    data = path.read_bytes()
    if path.suffix == ".json" and path.parent.name in ("logs", "metrics") and "_internal" not in path.name:
        value = json.loads(data)
        value.pop("timings", None)
        value["metrics"] = {name: one for name, one in value["metrics"].items() if name not in SPEED}
        return value
    if path.name.startswith("bh_routing") and path.suffix in (".csv", ".json"):
        text = io.StringIO(data.decode())
        table = pd.read_csv(text) if path.suffix == ".csv" else pd.read_json(text)
        return table.drop(columns=list(SPEED), errors="ignore").to_csv()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return image.mode
    if path.suffix == ".svg":
        return xml.etree.ElementTree.fromstring(data).tag
    if path.name.startswith("bh_routing_report"):
        return data.decode().rstrip()[-7:] if path.suffix == ".html" else data.decode().split("\n")[0]
    return data


def final_files(study):
    """Every file below the results folder that has its final name, except the jobs' logs."""
    files = (path for path in study.results().rglob("*") if path.is_file())
    paths = {path.relative_to(study.results()): path for path in files}
    return {
        name: path
        for name, path in paths.items()
        if name.parts[0] != "job_logs" and not name.name.startswith(".tmp_")
    }


def assert_whole(study, undisturbed):
    """Every file that has its final name is that of an undisturbed run."""
    expected = final_files(undisturbed)
    for name, path in final_files(study).items():
        assert content(path) == content(expected[name]), name


def assert_complete(study, undisturbed):
    """All files of an undisturbed run, and nothing besides."""
    assert final_files(study).keys() == final_files(undisturbed).keys()
    assert_whole(study, undisturbed)
    assert not list(study.folder.rglob(".tmp_*"))
    assert study.plan() == {}


def is_locked(study):
    return any(study.folder.glob(".snakemake/locks/*"))


def errors(run):
    """The sentences of a run's jobs."""
    return [line for line in run.said.splitlines() if line.startswith("error: ")]


SENTENCES = {
    "host": r"error: the model host \(process \d+\) ended by SIGKILL (during this job|before it took the job); its log is .*",
    "parent": r"error: the model host ended without a word during this job; its log is .*",
    "worker": r"error: a log worker \(process \d+\) ended by SIGKILL",
}


def test_whatever_is_killed_and_when_nothing_is_lost(tmp_path, undisturbed, temporary):
    """One study, struck again and again on its way, then finished."""
    study = make_study(tmp_path / "killed", temporary)
    chance = random.Random(20)
    for moment in MOMENTS:
        study.configure(execution=moment.execution)
        delay = chance.uniform(0, 0.3)
        run = None
        while run is None or not run.strike(moment, delay):
            if run is not None:
                assert run.end() == 0, run.said
                delay /= 2
            made = [path for path in OUTPUTS[moment.rule] if study.results(path).exists()]
            if made == OUTPUTS[moment.rule]:
                study.results(chance.choice(made)).unlink()
            run = Run(study)
        status = run.end()
        print(moment, f"{delay:.3f} s: status {status}", *errors(run), sep="\n  ")
        if moment.victim in SENTENCES:
            assert [re.fullmatch(SENTENCES[moment.victim], one) is not None for one in errors(run)] == [True]
        assert status != 0
        assert_whole(study, undisturbed)
        if moment.signal != signal.SIGKILL or moment.victim != "snakemake":
            assert not is_locked(study)
        else:
            assert is_locked(study)
            study.snakemake("--unlock")
    study.configure(execution="host")
    run = Run(study)
    assert run.end() == 0, run.said
    assert_complete(study, undisturbed)
