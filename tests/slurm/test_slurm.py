"""The study through a real Slurm (`cluster.sh`), with profiles/slurm as it is: `make test-slurm`."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from study_folder import REPOSITORY, StudyFolder

CLUSTER = Path(__file__).with_name("cluster.sh")
DATASETS = ("wikitext", "lambada")
CONFIGURATIONS = ("8experts_topk_baseline", "8experts_bh_a030")
EXPERIMENTS_PER_JOB = 2
SECONDS = 900  # after which something hangs

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster():
    """A running Slurm; its commands and the tests' child processes use it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            subprocess.run([CLUSTER, "start", folder], check=True, timeout=SECONDS)
            yield
        finally:
            subprocess.run([CLUSTER, "stop", folder], check=True, timeout=SECONDS)
            shutil.rmtree(folder)


def slurm_jobs():
    """What Slurm knows of its jobs, finished ones too: by id, the fields of `scontrol show job`."""
    lines = subprocess.run(
        ["scontrol", "show", "job", "--oneliner"], check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
    return {int(job["JobId"]): job for job in jobs}


def request(job):
    """What a job asked for: GPUs, cores, memory and time."""
    return {
        "gpus": job.get("TresPerJob"),
        "cores": job["NumCPUs"],
        "memory": job["MinMemoryNode"],
        "time": job["TimeLimit"],
    }


def processes_of_jobs():
    """Processes that run in a job of this test's Slurm."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if "SLURM_JOB_ID" in environment and environment.get("SLURM_CONF") == os.environ["SLURM_CONF"]:
                found.append(process)
    return found


class Study(StudyFolder):
    """A small study that runs on Slurm: 2 configurations x 2 data sets."""

    def __init__(self, folder):
        super().__init__(
            folder,
            datasets={"hellaswag": None},
            evaluation={"max_samples": 4, "second_pass_samples": 1},
            strategies={"bh": {"max_k": [8], "alpha": [0.3]}},
        )

    def begin(self, *arguments):
        """Start Snakemake with `arguments` and what makes a test of it; returns the process."""
        command = [sys.executable, "-m", "snakemake", *arguments, "--snakefile", self.project / "Snakefile"]
        command += ["--configfile", "study.yaml", "--group-components", f"experiments={EXPERIMENTS_PER_JOB}"]
        command += ["--slurm-init-seconds-before-status-checks", "2", "--slurm-keep-successful-logs"]
        with open(self.folder / "snakemake.log", "w") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def finish(self, process):
        """Wait until Snakemake has done everything; returns what it said."""
        try:
            status = process.wait(SECONDS)
        finally:
            process.kill()
        said = (self.folder / "snakemake.log").read_text()
        assert status == 0, said
        return said

    def jobs(self, group, after=0):
        """The Slurm jobs of a group, by id, those after the one with the id `after`."""
        return {
            number: job
            for number, job in slurm_jobs().items()
            if number > after and job["Comment"].startswith(f"rule_{group}_")
        }

    def finished_in(self, number):
        """How many of its experiments a Slurm job has finished, by its log."""
        log = self.folder / ".snakemake/slurm_logs/group_experiments_run_experiment" / f"{number}.log"
        text = log.read_text() if log.exists() else ""  # it has just begun
        return len(re.findall(rf"^\d+ of {EXPERIMENTS_PER_JOB} steps .* done$", text, re.MULTILINE))

    def hosts(self):
        """Of each model host, which jobs it did; and how often a model was loaded in all."""
        text = "".join(log.read_text() for log in self.results("job_logs").glob("model_host_*.log"))
        hosts = {pid: Counter() for pid in re.findall(r"^model host (\d+): started", text, re.MULTILINE)}
        for pid, job in re.findall(r"^model host (\d+): (\w+): done", text, re.MULTILINE):
            hosts[pid][job] += 1
        return list(hosts.values()), len(re.findall(r"^loaded ", text, re.MULTILINE))


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory):
    """A finished study, run as the README says."""
    study = Study(tmp_path_factory.mktemp("slurm"))
    study.finish(study.begin("--profile", REPOSITORY / "profiles/slurm"))
    return study


def assert_nothing_runs():
    deadline = time.monotonic() + 60
    while running := processes_of_jobs():
        assert time.monotonic() < deadline, [process.cmdline() for process in running]
        time.sleep(0.2)


def test_a_study_is_a_few_slurm_jobs_that_ask_for_what_their_largest_job_needs(study):
    assert study.results("bh_routing_report.html").exists()
    assert len(list(study.results("logs").iterdir())) == 3 * len(CONFIGURATIONS) * len(DATASETS)
    (preparation,) = study.jobs("preparation").values()
    experiments = list(study.jobs("experiments").values())
    (results,) = study.jobs("results").values()
    assert len(experiments) == 2
    assert len(slurm_jobs()) == 4
    assert {job["JobState"] for job in slurm_jobs().values()} == {"COMPLETED"}
    profile = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text())
    cores = profile["set-resources"]["run_experiment"]["cpus_per_task"]
    for job in experiments:
        assert request(job) == {
            "gpus": "gres:gpu:1",
            "cores": str(cores),
            "memory": "48000M",
            "time": f"00:{EXPERIMENTS_PER_JOB * 3:02}:00",
        }
    assert preparation["TresPerJob"] == "gres:gpu:1"
    assert preparation["MinMemoryNode"] == "48000M"
    assert "TresPerJob" not in results
    assert results["MinMemoryNode"] == "4000M"


def test_the_experiments_of_a_slurm_job_share_one_loaded_model(study):
    for number in study.jobs("experiments"):
        assert study.finished_in(number) == EXPERIMENTS_PER_JOB
    hosts, loads = study.hosts()
    share = {"run_experiment": EXPERIMENTS_PER_JOB}
    preparation = {"prepare_dataset": 2, "collect_router_logits": 1}
    assert sorted(hosts, key=str) == [preparation, share, share]
    assert loads == 3


def test_a_finished_study_leaves_no_process_and_nothing_to_do(study):
    assert_nothing_runs()
    said = study.finish(study.begin("--profile", REPOSITORY / "profiles/slurm", "--dry-run"))
    assert "Nothing to be done" in said


def test_a_killed_slurm_job_is_run_again_to_the_same_results(study):
    names = [
        f"{config}_lambada{suffix}"
        for config in CONFIGURATIONS
        for suffix in (".json", "_internal_routing.json", "_internal_routing.safetensors")
    ]
    undisturbed = study.folder / "undisturbed"
    undisturbed.mkdir()
    for name in names:
        study.results("logs", name).rename(undisturbed / name)
    others = set(study.results("logs").iterdir())
    (expected,) = {frozenset(request(job).items()) for job in study.jobs("experiments").values()}
    last = max(slurm_jobs())
    # The other way to name the profile asks for the same.
    targets = [f"results/logs/{config}_lambada.json" for config in CONFIGURATIONS]
    process = study.begin(*targets, "--workflow-profile", REPOSITORY / "profiles/slurm")
    try:
        victim = when_an_experiment_is_done(study, process, last)
        subprocess.run(["scancel", "--full", "--signal=KILL", str(victim)], check=True, timeout=60)
        study.finish(process)
    finally:
        process.kill()
    jobs = study.jobs("experiments", after=last)
    # The second attempt asks for twice the memory and time.
    first_request = dict(expected)
    hours, minutes, seconds = map(int, first_request["time"].split(":"))
    assert seconds == 0
    hours, minutes = divmod(2 * (60 * hours + minutes), 60)
    twice = {
        "memory": f"{2 * int(first_request['memory'].removesuffix('M'))}M",
        "time": f"{hours:02}:{minutes:02}:00",
    }
    for number, job in jobs.items():
        assert request(job) == (first_request if number == victim else first_request | twice)
    assert study.finished_in(victim) < EXPERIMENTS_PER_JOB
    assert jobs.pop(victim)["JobState"] != "COMPLETED"
    assert [job["JobState"] for job in jobs.values()] == ["COMPLETED"]
    assert set(study.results("logs").iterdir()) - others == {study.results("logs", name) for name in names}
    for name in names:
        first, second = undisturbed / name, study.results("logs", name)
        if name.endswith(".safetensors"):
            assert first.read_bytes() == second.read_bytes()
        elif not name.endswith("_internal_routing.json"):
            first, second = json.loads(first.read_text()), json.loads(second.read_text())
            assert first["samples"] == second["samples"] and first["metrics"] == second["metrics"]
    assert_nothing_runs()


def when_an_experiment_is_done(study, process, last):
    """The Slurm job that has finished its first experiment and begun its second."""
    while process.poll() is None:
        for number, job in study.jobs("experiments", after=last).items():
            if job["JobState"] == "RUNNING" and study.finished_in(number):
                return number
        time.sleep(0.1)
    raise AssertionError((study.folder / "snakemake.log").read_text())
