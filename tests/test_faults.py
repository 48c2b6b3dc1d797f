"""Nothing is lost when things break: processes killed at any moment, a full disk, folders of no use.

After every fault all files that have their final names are compared with those of an undisturbed run, so a
file that looks complete and is not cannot pass; and every process that the run started has to be gone.
`make test-faults` runs these tests.
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
import sys
import tempfile
import time
import uuid
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
from adaptive_routing.data.rows import COPY
from PIL import Image
from safetensors import safe_open
from study_folder import REPOSITORY, StudyFolder

pytestmark = pytest.mark.faults
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
MARK = "ADAPTIVE_ROUTING_FAULTS"
SPEED = ("tokens_per_second", "latency_ms_per_token", "forward_seconds")  # differ from run to run
# A machine of three cores, so that the model host has one log worker.
# Before a process gives a file its final name, it waits at the pipe `.hold_NAME` beside it, if there is one.
SITE = """
import contextlib, os

os.sched_getaffinity = lambda pid: {0, 1, 2}
replace = os.replace


def wait_and_replace(source, destination):
    folder, name = os.path.split(destination)
    with contextlib.suppress(FileNotFoundError):
        open(os.path.join(folder, f".hold_{name}")).close()
    replace(source, destination)


os.replace = wait_and_replace
"""


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
    Moment("collect_router_logits", "host", writing=True),  # one killed before it has a job is replaced
    Moment("collect_router_logits", "job"),
    Moment("collect_router_logits", "snakemake"),
    Moment("fit_null_distribution", "snakemake"),
    Moment("fit_null_distribution", "job"),
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


def marked(mark):
    """The living processes that were started with a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


class Run:
    """A run of Snakemake, and all processes that it started: a mark in their environment tells them."""

    def __init__(self, study, *arguments):
        self.study, self.mark = study, uuid.uuid4().hex
        self.before, self.scripts_before = self._temporary_files(), self._scripts()
        with tempfile.TemporaryFile() as output:
            self._output = os.dup(output.fileno())
            self.process = study.begin(
                *arguments,
                output=output,
                **{MARK: self.mark},
                TMPDIR=str(study.temporary),
                PYTHONPATH=os.pathsep.join([str(study.site), os.environ["PYTHONPATH"]]),
                COLUMNS="1000",  # no line is broken
                OMP_NUM_THREADS="3",  # the user's limit of cores: with fewer there is no log worker to kill
                OMP_THREAD_LIMIT="1",  # whatever torch asks for: there may be only one core
            )

    def _temporary_files(self):
        found = {}
        for path in self.study.results().glob("*/.tmp_*"):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_mtime_ns
        return found

    def _scripts(self, rule="*"):
        """The files that Snakemake makes of scripts to run them; those of killed runs stay."""
        return set(self.study.folder.glob(f".snakemake/scripts/*.{rule}.py"))

    @property
    def said(self):
        """What Snakemake and its jobs have printed."""
        return os.pread(self._output, 1 << 24, 0).decode()

    def processes(self):
        """Everything of this run that still lives."""
        return marked(self.mark)

    def find(self, victim, rule):
        """A process by its part in the run, or None."""
        if victim == "snakemake":
            return self.process
        words = {
            "job": rf"^\S*python\S* \S*\.{rule}\.py$",
            "host": r"-m adaptive_routing\.jobs\.host\.server ",
            "parent": r"-m adaptive_routing\.jobs\.host\.keeper ",
            "worker": r"-m adaptive_routing\.routing_log\.workers ",
        }
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if re.search(words[victim], " ".join(process.cmdline())):
                    return process
        return None

    def is_over(self):
        """Whether Snakemake has ended."""
        return self.process.poll() is not None

    def has_come(self, moment):
        """Whether a moment has come."""
        if not moment.writing:
            return bool(self._scripts(moment.rule) - self.scripts_before)
        folder = Path(OUTPUTS[moment.rule][0]).parent.name
        now = self._temporary_files().items() - self.before.items()
        return any(path.parent.name == folder for path, _ in now)

    def strike(self, moment, delay):
        """Strike so many seconds after a moment has come; False if the run ended before."""
        wait_until(lambda: self.has_come(moment) or self.is_over(), seconds=300)
        time.sleep(delay)
        victim = wait_until(lambda: self.is_over() or self.find(moment.victim, moment.rule))
        if self.is_over():
            return False
        if moment.signal == signal.SIGINT:
            os.killpg(victim.pid, moment.signal)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(moment.signal)
        return True

    def end_of_snakemake(self):
        """Wait for the end of Snakemake, and return its exit status."""
        return self.process.wait(300)

    def end(self):
        """Wait for the end of Snakemake and then, a grace time, of everything that it started."""
        status = self.end_of_snakemake()
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
    (study.site / "sitecustomize.py").write_text(SITE)
    return study


@pytest.fixture(scope="module")
def temporary():
    """A temporary folder whose name is short enough for sockets; whatever happens, it is left empty."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="faults") as folder:
        yield Path(folder)
        left = [path.name for path in Path(folder).iterdir()]
        # What no process can remove that is killed outright: Snakemake's own, and rows that were being read.
        assert not [name for name in left if not name.startswith(("snakemake", COPY))]


@pytest.fixture(scope="module")
def undisturbed(make_once, temporary):
    """A finished study that nothing has disturbed."""

    def make(folder):
        run = Run(make_study(folder / "finished", temporary))
        assert run.end() == 0, run.said

    return make_study(make_once("une étude", make) / "finished", temporary)


@pytest.fixture
def copy(undisturbed, tmp_path, temporary):
    """A copy of the finished study, to be broken."""
    shutil.copytree(undisturbed.folder, tmp_path / "copy", symlinks=True)
    return make_study(tmp_path / "copy", temporary)


def content(path):
    """What must be the same in a file of two runs: all but speed; figures and report must be whole."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).view(-1).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
            return file.metadata(), tensors
    data = path.read_bytes()
    if path.suffix == ".json" and path.parent.name in ("logs", "metrics") and "_internal" not in path.name:
        value = json.loads(data)
        value.pop("timings", None)
        value.get("provenance", {}).pop("run", None)
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
    if path.name == "bh_routing_summary.txt":  # speeds are among its sentences
        return len(data.decode().splitlines())
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
        if name.parts[0] not in ("job_logs", "benchmarks") and not name.name.startswith(".tmp_")
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


@contextlib.contextmanager
def held(study, rule):
    """Within, no job of a rule gets to its end: it waits before its outputs get their final names."""
    paths = map(study.results, OUTPUTS[rule])
    pipes = [path.with_name(f".hold_{path.name}") for path in paths]
    for pipe in pipes:
        pipe.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(pipe)
    try:
        yield
    finally:
        for pipe in pipes:
            # Who waits is let go, and so is who comes before the name is gone.
            writer = os.open(pipe, os.O_RDWR)
            pipe.unlink()
            os.close(writer)


def is_locked(study):
    return any(study.folder.glob(".snakemake/locks/*"))


def errors(run):
    """The sentences of a run's jobs, each once: Snakemake's logger may repeat a failed job's log."""
    return list(dict.fromkeys(line.rstrip() for line in run.said.splitlines() if line.startswith("error: ")))


SENTENCES = {
    "host": r"error: the model host \(process \d+\) ended by SIGKILL (during|before) .+",
    "parent": r"error: the model host ended without a word (during this job|before it took the job); .+",
    "worker": r"error: a log worker \(process \d+\) ended by SIGKILL",
}


def test_whatever_is_killed_and_when_nothing_is_lost(tmp_path, undisturbed, temporary):
    """One study, struck again and again on its way, then finished."""
    study = make_study(tmp_path / "struck", temporary)
    chance = random.Random(20)
    for moment in MOMENTS:
        study.configure(execution=moment.execution)
        delay = chance.uniform(0, 0.3)
        while True:
            # A log worker has done its part before its job waits there: it must be met at work.
            hold = moment.victim != "worker"
            with held(study, moment.rule) if hold else contextlib.nullcontext():
                run = begin_with(study, moment.rule, chance)
                is_struck = run.strike(moment, delay)
            status = run.end()
            if is_struck and status != 0:
                break
            # The job, or what the victim had to do for it, was quicker.
            assert status == 0, run.said
            assert delay > 1e-3, moment
            delay /= 2
        print(f"{moment} {delay:.3f} s: status {status}", *errors(run), sep="\n  ")  # for who reads a failure
        assert_whole(study, undisturbed)
        if moment.victim in SENTENCES:
            # A sentence a job: a second one may have waited at the host for its turn.
            assert errors(run)
            assert all(re.fullmatch(SENTENCES[moment.victim], said) for said in errors(run))
        if is_locked(study):
            # Only Snakemake killed outright leaves its lock, which says no word of whose it is.
            assert moment.victim == "snakemake" and moment.signal == signal.SIGKILL
            study.snakemake("--unlock")
    study.configure(execution="host")
    run = Run(study)
    assert run.end() == 0, run.said
    assert_complete(study, undisturbed)


def begin_with(study, rule, chance):
    """Begin a run in which a rule has something to do: its missing files or, where none is, one anew.

    They are named, since a run of everything does not miss a file that finished ones were made from.
    """
    missing = [path for path in OUTPUTS[rule] if not study.results(path).exists()]
    if not missing:
        missing = [chance.choice(OUTPUTS[rule])]
        study.results(missing[0]).unlink()
    return Run(study, *(f"{RESULTS}/{path}" for path in missing))


DRAWING = """
import sys, time
from adaptive_routing.figures import panels

panels._save = lambda *_: time.sleep(600)
panels.save_drawings(None, {"figure": [], "1_perplexity": [], "2_task_accuracy": []}, processes=3)
"""


def test_processes_that_draw_end_with_their_job(temporary):
    mark = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow_scripts"), MARK: mark}
    job = subprocess.Popen([sys.executable, "-c", DRAWING], env=environment)
    try:
        wait_until(lambda: len(marked(mark)) == 3)
    finally:
        job.kill()
        job.wait()
    wait_until(lambda: not marked(mark))


def test_two_runs_at_once(copy, undisturbed):
    """The second is told so and ends; the first does not notice."""
    target = copy.results("metrics", f"{EXPERIMENTS[0]}.json")
    target.unlink()
    first = Run(copy, target.relative_to(copy.folder))
    job = wait_until(lambda: first.find("job", "compute_metrics"))
    job.suspend()
    try:
        second = Run(copy)
        assert second.end_of_snakemake() != 0
    finally:
        job.resume()
    assert " ".join(second.said.split()).count("Directory cannot be locked") == 1
    assert not errors(second) and "Traceback" not in second.said
    assert first.end() == 0, first.said
    assert_whole(copy, undisturbed)
    assert target.exists()


def mount(folder, options):
    """Mount a file system in memory on a folder, or skip the test where that is not permitted."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")


@pytest.fixture
def small_disk(copy):
    """The copy, with its results on a disk of their own; gives it and a function that sets the free bytes."""
    folder, aside = copy.results(), copy.folder / "aside"
    folder.rename(aside)
    folder.mkdir()
    mount(folder, "size=1g")

    def leave(free):
        disk = os.statvfs(folder)
        size = (disk.f_blocks - disk.f_bfree) * disk.f_frsize + free
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield copy, leave
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "targets",
    [
        # Written by a log worker, and by the safetensors library.
        {
            "run_experiment": ["logs/8experts_topk_baseline_lambada_internal_routing.safetensors"],
            "collect_router_logits": ["calibration/router_logits.safetensors"],
        },
        # Drawn by several processes.
        {"plot_panels": ["visualizations/bh_comprehensive_comparison.png"]},
    ],
    ids=lambda targets: "+".join(targets),
)
def test_a_full_disk_is_one_sentence_and_with_room_the_rest_is_done(small_disk, undisturbed, targets):
    study, leave = small_disk
    paths = [study.results(path) for files in targets.values() for path in files]
    for path in paths:
        path.unlink()
    leave(free=65536)
    arguments = ["--keep-going", *(path.relative_to(study.folder) for path in paths)]
    run = Run(study, *arguments)
    assert run.end() == 1
    said = errors(run)
    assert len(said) == len(targets), run.said
    for folder in {path.parent.name for path in paths}:
        pattern = rf"error: {RESULTS}/{folder}/\S+ cannot be written: the disk is full"
        if folder == "logs":  # what they need is known before the first is written
            pattern = rf"error: writing the routing logs of .+ {RESULTS}/logs has .+ free; free some, or .+"
        assert len([one for one in said if re.fullmatch(pattern, one)]) == 1, said
    assert "Traceback" not in run.said
    assert not list(study.results().rglob(".tmp_*"))
    assert not any(path.exists() for path in paths)
    assert_whole(study, undisturbed)
    leave(free=1 << 26)
    run = Run(study, *arguments)
    assert run.end() == 0, run.said
    assert all(path.exists() for path in paths)
    assert_whole(study, undisturbed)


def assert_refused(study, words):
    run = Run(study)
    assert run.end() != 0
    (said,) = errors(run)
    assert words in said
    assert "Traceback" not in run.said and not any(study.folder.glob(".snakemake/scripts/*"))


def test_results_that_are_a_file_are_refused_before_any_job(tmp_path, temporary):
    study = make_study(tmp_path, temporary)
    study.results().write_text("mine")
    assert_refused(study, "is a file; it must be a folder")
    assert study.results().read_text() == "mine"


def test_results_that_cannot_be_written_are_refused_before_any_job(tmp_path, temporary):
    study = make_study(tmp_path, temporary)
    study.results().mkdir()
    mount(study.results(), "ro")
    try:
        assert_refused(study, "cannot be written to; choose another")
    finally:
        subprocess.run(["umount", str(study.results())], check=True)
