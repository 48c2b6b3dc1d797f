"""The model host's whole life: who starts it, what it does, and that nothing of it is left."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from adaptive_routing.data.samples import prepared_to_json
from adaptive_routing.jobs.host import client, socket_folder
from adaptive_routing.jobs.host.gpus import visible_gpus
from adaptive_routing.settings.configurations import grid
from adaptive_routing.system.errors import HostError
from adaptive_routing.system.json_files import write_json
from conftest import ROOT
from study_folder import StudyFolder
from test_experiment import ROUTING, prepare

SCRIPTS = ROOT / "workflow_scripts"
JOB = """
import json, sys, types
from adaptive_routing.jobs.host import client
from adaptive_routing.jobs.script import job

name, request, config, log, server, idle_seconds = json.loads(sys.argv[1])
client.SERVER, client.IDLE_SECONDS = server or client.SERVER, idle_seconds
if server and config["execution"] == "process":
    import stub_host
    sys.modules["adaptive_routing.jobs.model_jobs"] = stub_host
with job(types.SimpleNamespace(log=[log], config=config)):
    client.execute(name, request, config)
print(*sys.modules)
"""
# A process that Python's command line calls snakemake: it runs one job, and stays.
WORKFLOW = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]]); sys.stdin.read()"
# One that starts a host early, runs jobs one after another when it is told to, and stays.
EARLY = """
import json, subprocess, sys
from adaptive_routing.jobs.host import client

client.SERVER = "stub_host"
settings, jobs = map(json.loads, sys.argv[1:])
client.start_early(settings, "host", "results")
sys.stdin.readline()
for job in jobs:
    subprocess.run([sys.executable, "job.py", job], check=True)
sys.stdin.read()
"""
MODEL = {"name": "stub", "revision": None, "fingerprint": "0"}


def wait_until(condition, seconds=20):
    """Wait for a condition to hold and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Place:
    """A working directory with its own place for sockets, and the jobs started in it."""

    def __init__(self, folder, sockets):
        self.folder, self.sockets = folder, sockets
        self.scripts, self.started = SCRIPTS, []
        (folder / "model.json").write_text(json.dumps(MODEL))
        (folder / "job.py").write_text(JOB)
        (folder / "snakemake").write_text(WORKFLOW)

    def environment(self, **variables):
        path = f"{self.scripts}{os.pathsep}{ROOT / 'tests'}"
        return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.sockets), **variables}

    def start(
        self, name, output="out", workflow=False, idle_seconds=60, server="stub_host", execution="host",
        variables=None, **request,
    ):  # fmt: skip
        """Start a job, below a process called snakemake if asked to."""
        config = {"execution": execution, "results": "results"}
        request = {"model": "model.json", "dtype": "float32", "device": "cpu", "output": output, **request}
        arguments = json.dumps([name, request, config, f"{output}.log", server, idle_seconds])
        process = subprocess.Popen(
            [sys.executable, *(["snakemake"] if workflow else []), "job.py", arguments],
            cwd=self.folder, env=self.environment(**variables or {}), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *arguments, check=True, **request):
        """Run a job to its end: (exit status, what it printed to stderr)."""
        process = self.start(*arguments, **request)
        _, said = process.communicate(timeout=60)
        if check:
            assert process.returncode == 0, said
        return process.returncode, said

    def host_pid(self, output="out", **request):
        """The process that a job runs in."""
        self.run("report", output, **request)
        return self.pid_in(output)

    def pid_in(self, output):
        return int(self.read(output).split()[0])

    def read(self, name):
        return (self.folder / name).read_text()

    def temporary(self, output="out"):
        return self.folder / f".tmp_{output}"

    @property
    def log(self):
        return "".join(path.read_text() for path in self.folder.glob("results/job_logs/model_host_*.log"))

    def hosts(self):
        """Processes of servers that still run."""
        started = map(int, re.findall(r"model host (\d+): started", self.log))
        return [pid for pid in started if is_running(pid)]

    def keepers(self):
        """Processes that watch over them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_keeper = "adaptive_routing.jobs.host.keeper" in process.cmdline()
                if is_keeper and process.environ().get("TMPDIR") == str(self.sockets):
                    found.append(process)
        return found

    def is_clean(self):
        folders = self.sockets.glob("adaptive_routing_*")
        return not self.hosts() and not self.keepers() and not any(folders)


@pytest.fixture
def place(tmp_path):
    """A Place. Whatever a test did, its hosts end when they are told to, and leave nothing."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mh") as sockets:
        place = Place(tmp_path, Path(sockets))
        yield place
        for process in place.started:
            process.kill()
            process.communicate()
        for keeper in place.keepers():
            keeper.terminate()
        wait_until(place.is_clean)
        assert not list(tmp_path.rglob(".tmp_*"))


# Start and reuse


def test_jobs_share_one_host(place):
    pids = {place.host_pid(), place.host_pid(), place.host_pid(output="other")}
    assert len(pids) == 1
    assert pids.pop() != os.getpid()


def test_jobs_at_once_start_one_host_and_take_turns(place):
    jobs = [place.start("report", f"out{number}") for number in range(4)]
    assert [process.wait(60) for process in jobs] == [0] * 4
    assert len({place.pid_in(f"out{number}") for number in range(4)}) == 1
    assert place.log.count(": started") == 1


def test_a_job_imports_nothing_heavy_and_waits_for_nothing_else(place):
    place.run("report")
    started = time.perf_counter()
    process = place.start("report")
    modules, _ = process.communicate(timeout=60)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    roots = {name.split(".")[0] for name in modules.split()}
    assert roots & {"psutil", "json"} == {"psutil", "json"}
    others = {"psutil", "adaptive_routing"}
    # Everything else is the standard library, or was in the interpreter before the job's first line.
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout
    assert roots - others - set(sys.stdlib_module_names) <= {name.split(".")[0] for name in bare.split()}
    assert seconds < 10  # a machine under load; importing torch alone takes longer there


@pytest.mark.parametrize("change", [{"device": "cuda:1"}, {"variables": {"CUDA_VISIBLE_DEVICES": "1"}}])
def test_another_device_has_its_own_host(place, change):
    pid = place.host_pid()
    assert place.host_pid(output="other", **change) != pid
    assert place.host_pid() == pid


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"model": "other.json"}])
def test_another_model_takes_the_hosts_place(place, change):
    (place.folder / "other.json").write_text(json.dumps({**MODEL, "fingerprint": "1"}))
    pid = place.host_pid()
    other = place.host_pid(output="other", **change)
    assert other != pid
    assert place.hosts() == [other]  # never two models on one device


def test_a_host_finishes_its_jobs_before_another_takes_its_place(place):
    first = place.start("work", "first")
    first.stderr.readline()
    second = place.start("report", "second")
    time.sleep(0.5)
    other = place.start("report", "other", dtype="bfloat16")
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(1)
    (place.folder / "finish").touch()
    assert [process.wait(60) for process in (first, second, other)] == [0, 0, 0]
    assert place.pid_in("first") == place.pid_in("second") != place.pid_in("other")
    assert place.hosts() == [place.pid_in("other")]


def test_changed_code_starts_another_host(place, tmp_path):
    place.scripts = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, place.scripts, ignore=shutil.ignore_patterns("__pycache__"))
    pid = place.host_pid()
    assert place.host_pid() == pid
    with open(place.scripts / "adaptive_routing/routing/bh.py", "a") as code:
        code.write("\n")
    assert place.host_pid() != pid
    assert not is_running(pid)


def test_two_workflows_have_two_hosts(place):
    workflows = [place.start("report", f"out{number}", workflow=True) for number in range(2)]
    wait_until(lambda: place.log.count("report: done") == 2)
    first, second = (place.pid_in(f"out{number}") for number in range(2))
    assert first != second
    workflows[0].kill()
    wait_until(lambda: not is_running(first))
    assert place.hosts() == [second]


def test_only_the_jobs_of_the_table_can_be_asked_for(place):
    for name in ("os.system", "__import__", "JOBS"):
        status, said = place.run(name, check=False)
        assert status == 1
        assert f"KeyError: '{name}'" in said


# Before the first job


def start_early(place, jobs, **settings):
    """Start a workflow that starts a host early and, after a line on its stdin, does jobs; its process."""
    folder = place.folder / "early"
    folder.mkdir()
    (folder / "snakemake").write_text(EARLY)
    settings = {**MODEL, "dtype": "float32", "device": "cpu", "gpus_per_experiment": 1, **settings}
    process = subprocess.Popen(
        [sys.executable, "early/snakemake", json.dumps(settings), json.dumps(jobs)],
        cwd=place.folder, env=place.environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    place.started.append(process)
    return process


def early_job(output, **request):
    """The arguments of a job of `EARLY`."""
    config = {"execution": "host", "results": "results"}
    request = {"model": "model.json", "dtype": "float32", "device": "cpu", "output": output, **request}
    return json.dumps(["report", request, config, f"{output}.log", "stub_host", 60])


def go_on(workflow):
    workflow.stdin.write("\n")
    workflow.stdin.flush()


def test_a_host_that_was_started_early_does_the_jobs(place):
    go_on(start_early(place, [early_job("out"), early_job("other")]))
    wait_until(lambda: place.log.count("report: done") == 2)
    assert place.pid_in("out") == place.pid_in("other")
    assert place.log.count(": started") == 1


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"name": "another"}])
def test_a_host_that_was_started_early_for_another_model_gives_way(place, settings):
    go_on(start_early(place, [early_job("out")], **settings))
    wait_until(lambda: place.log.count("report: done") == 1)
    first, second = map(int, re.findall(r"model host (\d+): started", place.log))
    assert place.pid_in("out") == second
    assert not is_running(first)


def test_a_host_that_was_started_early_does_not_do_two_models(place):
    (place.folder / "other.json").write_text(json.dumps({**MODEL, "fingerprint": "1"}))
    jobs = [early_job("out"), early_job("other", model="other.json"), early_job("third")]
    go_on(start_early(place, jobs))
    wait_until(lambda: place.log.count("report: done") == 3)
    assert len({place.pid_in(name) for name in ("out", "other", "third")}) == 3
    assert len(place.hosts()) == 1


def test_a_host_that_was_started_early_and_dies_is_replaced(place):
    workflow = start_early(place, [early_job("out")])
    (early,) = wait_until(place.hosts)
    os.kill(early, signal.SIGKILL)
    go_on(workflow)
    wait_until(lambda: place.log.count("report: done") == 1)
    assert place.pid_in("out") != early


def test_a_host_that_was_started_early_ends_with_a_workflow_without_jobs(place):
    workflow = start_early(place, [])
    wait_until(lambda: place.hosts())
    workflow.kill()
    wait_until(place.is_clean)


# Several GPUs


def gpu_of(place, output):
    """CUDA_VISIBLE_DEVICES in the process that did a job."""
    return place.read(output).split()[2]


def start_at_work(place, output, visible, **arguments):
    """Start a job with these GPUs visible, and wait until it is at work."""
    process = place.start(
        "work", output, device="auto", variables={"CUDA_VISIBLE_DEVICES": visible}, **arguments
    )
    assert process.stderr.readline() == "at work\n"
    return process


@pytest.mark.parametrize("execution", ["host", "process"])
def test_jobs_at_once_have_a_gpu_each_and_wait_for_one(place, execution):
    jobs = [start_at_work(place, name, "GPU-3,5", execution=execution) for name in ("first", "second")]
    arguments = {"device": "auto", "execution": execution, "variables": {"CUDA_VISIBLE_DEVICES": "GPU-3,5"}}
    if execution == "host":  # two more wait at the hosts
        jobs += [place.start("report", name, **arguments) for name in ("at_one", "at_other")]
        wait_until(lambda: len(list(place.sockets.glob("*/*.lease"))) == 4)
    third = place.start("work", "third", **arguments)
    said = third.stderr.readline()
    assert said == (
        "waiting for a GPU: all 2 have jobs of this workflow; start no more at once than there are, with "
        "--resources gpu=2\n"
    )
    (place.folder / "finish").touch()
    assert {process.wait(60) for process in (*jobs, third)} == {0}
    assert {gpu_of(place, "first"), gpu_of(place, "second")} == {"GPU-3", "5"}
    assert gpu_of(place, "third") in {"GPU-3", "5"}
    if execution == "host":
        assert place.pid_in("first") != place.pid_in("second")
        assert {gpu_of(place, "at_one"), gpu_of(place, "at_other")} == {"GPU-3", "5"}
        assert place.pid_in("third") in {place.pid_in("first"), place.pid_in("second")}


def test_a_killed_job_gives_its_gpu_back(place):
    killed = start_at_work(place, "killed", "0,1")
    killed.kill()
    killed.wait(60)
    jobs = [start_at_work(place, name, "0,1") for name in ("first", "second")]
    (place.folder / "finish").touch()
    assert [process.wait(60) for process in jobs] == [0, 0]
    assert {gpu_of(place, "first"), gpu_of(place, "second")} == {"0", "1"}


def test_one_job_after_another_stays_on_one_gpu(place):
    variables = {"CUDA_VISIBLE_DEVICES": "0,1"}
    pids = {place.host_pid(f"out{i}", device="auto", variables=variables) for i in range(3)}
    assert len(pids) == 1


def test_another_workflow_takes_another_gpu_while_there_is_one(place):
    variables = {"CUDA_VISIBLE_DEVICES": "0,1"}
    for i in range(3):
        place.start("report", f"out{i}", workflow=True, device="auto", variables=variables)
        wait_until(lambda i=i: place.log.count("report: done") == i + 1)
    gpus = [gpu_of(place, f"out{i}") for i in range(3)]
    assert set(gpus[:2]) == {"0", "1"}
    assert gpus[2] in {"0", "1"}
    assert len({place.pid_in(f"out{i}") for i in range(3)}) == 3


@pytest.mark.parametrize("execution", ["host", "process"])
def test_jobs_at_once_have_two_gpus_each_and_wait_for_two(place, execution):
    """Five GPUs are two groups of two; of two jobs that wait, neither holds half of what it needs."""
    arguments, visible = {"gpus": 2, "execution": execution}, "0,GPU-1,2,3,4"
    jobs = [start_at_work(place, name, visible, **arguments) for name in ("first", "second")]
    others = {"device": "auto", "variables": {"CUDA_VISIBLE_DEVICES": visible}, **arguments}
    if execution == "host":  # two more wait at the hosts
        jobs += [place.start("report", name, **others) for name in ("at_one", "at_other")]
        wait_until(lambda: len(list(place.sockets.glob("*/*.lease"))) == 8)
    waiting = [place.start("work", name, **others) for name in ("third", "fourth")]
    for job in waiting:
        assert job.stderr.readline() == (
            "waiting for 2 GPUs: all 4 that make groups of 2 have jobs of this workflow; start no more at "
            "once than there are, with --resources gpu=4\n"
        )
    (place.folder / "finish").touch()
    assert {process.wait(60) for process in (*jobs, *waiting)} == {0}
    assert {gpu_of(place, "first"), gpu_of(place, "second")} == {"0,GPU-1", "2,3"}
    assert {gpu_of(place, "third"), gpu_of(place, "fourth")} <= {"0,GPU-1", "2,3"}
    if execution == "host":
        hosts = {place.pid_in(name) for name in ("first", "second", "third", "fourth")}
        assert len(hosts) == 2


def test_a_killed_job_gives_both_gpus_back(place):
    killed = start_at_work(place, "killed", "0,1,2", gpus=2)
    killed.kill()
    killed.wait(60)
    job = start_at_work(place, "next", "0,1,2", gpus=2)
    (place.folder / "finish").touch()
    assert job.wait(60) == 0
    assert gpu_of(place, "next") == "0,1"


def test_another_workflow_takes_other_groups_while_there_are_some(place):
    variables = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    for i, gpus in enumerate((1, 2, 2)):
        place.start("report", f"out{i}", workflow=True, device="auto", gpus=gpus, variables=variables)
        wait_until(lambda i=i: place.log.count("report: done") == i + 1)
    assert [gpu_of(place, f"out{i}") for i in range(2)] == ["0", "2,3"]
    assert gpu_of(place, "out2") in {"0,1", "2,3"}


def test_a_model_on_other_gpus_is_another_host(place):
    variables = {"CUDA_VISIBLE_DEVICES": "0,1"}
    on_one = place.host_pid("one", device="auto", variables=variables)
    on_both = place.host_pid("both", device="auto", gpus=2, variables=variables)
    assert on_one != on_both
    assert gpu_of(place, "both") == "0,1"


def test_fewer_gpus_than_a_job_needs_are_refused(place):
    variables = {"CUDA_VISIBLE_DEVICES": "0,1"}
    status, said = place.run("report", device="auto", gpus=3, variables=variables, check=False)
    assert status == 1
    assert said == (
        "error: model.gpus_per_experiment is 3, but must be at most 2, the number of GPUs that this job may "
        "use\n"
    )


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda:1", "0,1", "0,1"),
        ("cpu", "0,1", "0,1"),
        ("auto", "4", "4"),
        ("auto", "", ""),
        ("cuda", "-1", "-1"),
    ],
)
def test_where_there_is_nothing_to_choose_the_job_sees_what_it_saw(place, device, visible, expected):
    place.run("report", device=device, variables={"CUDA_VISIBLE_DEVICES": visible})
    assert place.read("out").split(" ")[2] == expected


@pytest.mark.parametrize(
    ("allowed", "gpus"),
    [("0,1", ["0", "1"]), (" 2 , GPU-8f ", ["2", "GPU-8f"]), ("", []), ("-1", []), ("3,-1,2", ["3"])],
)
def test_visible_gpus_are_read_as_cuda_reads_them(monkeypatch, allowed, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == gpus


# What a job hears


def test_what_a_job_prints_arrives_at_once(place):
    process = place.start("work")
    assert process.stderr.readline() == "at work\n"
    wait_until(lambda: place.read("out.log") == "at work\n")
    assert process.poll() is None
    assert place.temporary().exists()
    (place.folder / "finish").touch()
    assert process.wait(60) == 0
    assert place.pid_in("out") in place.hosts()


def test_bad_input_is_one_sentence(place):
    pid = place.host_pid()
    status, said = place.run("refuse", check=False)
    assert (status, said) == (1, "error: evaluation.max_samples is 0, but must be 1 or more\n")
    assert place.read("out.log") == said
    assert place.host_pid() == pid


def test_a_defect_is_a_traceback_and_the_next_job_has_a_new_host(place):
    pid = place.host_pid(output="first")
    status, said = place.run("fail", check=False)
    assert status == 1
    assert said.startswith("Traceback") and said.endswith("RuntimeError: an unforeseen defect\n")
    assert place.read("out.log") == said
    assert not place.temporary().exists() and not (place.folder / "out").exists()
    assert place.host_pid() != pid
    wait_until(lambda: not is_running(pid))


def test_a_host_without_memory_says_so_in_one_sentence_and_the_next_job_has_a_new_one(place):
    pid = place.host_pid(output="first")
    status, said = place.run("outgrow", check=False)
    assert status == 1 and place.read("out.log") == said
    assert said.startswith("error: the system gives this process no more memory") and said.count("\n") == 1
    assert place.host_pid() != pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_host_that_dies_fails_its_job_with_one_sentence_and_leaves_the_others_to_the_next(place, number):
    process = place.start("work")
    process.stderr.readline()
    (pid,) = place.hosts()
    waiting = place.start("report", "waiting")
    time.sleep(0.5)
    os.kill(pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    (log,) = place.folder.glob("results/job_logs/model_host_*.log")
    assert said == (
        f"error: the model host (process {pid}) ended by {number.name} during this job; its log is "
        f"{log.relative_to(place.folder)}\n"
    )
    assert place.read("out.log") == "at work\n" + said
    assert waiting.wait(60) == 0
    assert place.pid_in("waiting") != pid
    place.temporary().unlink()  # of a process that could not clean up; the job's next run writes over it


def test_a_host_that_cannot_start_says_so(place):
    status, said = place.run("report", server="no_such_module", check=False)
    assert status == 1
    assert re.fullmatch(
        r"error: the model host \(process \d+\) ended with exit status 1 before it took the job; its log is "
        r"results/job_logs/model_host_\w+\.log\n",
        said,
    )
    assert "No module named no_such_module" in place.log
    wait_until(place.is_clean)


# How a job is given up


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_job_leaves_nothing_and_the_host_goes_on(place, number):
    pid = place.host_pid(output="first")
    process = place.start("work")
    process.stderr.readline()
    assert place.temporary().exists()
    process.send_signal(number)
    assert process.wait(60) != 0
    if number == signal.SIGKILL:
        wait_until(lambda: not place.temporary().exists(), seconds=5)
    assert not place.temporary().exists()  # a job that can waits for the host to clean up
    assert not (place.folder / "out").exists()
    assert place.host_pid() == pid
    assert "work: cancelled" in place.log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_killed_while_it_waits_is_never_done(place, number):
    first = place.start("work")
    first.stderr.readline()
    waiting = place.start("report", "waiting")
    time.sleep(1)
    waiting.send_signal(number)
    waiting.wait(client.CANCEL_SECONDS / 2)  # there is nothing to clean up
    last = place.start("report", "last")
    (place.folder / "finish").touch()
    assert first.wait(60) == last.wait(60) == 0
    assert not (place.folder / "waiting").exists()


# The end


def test_an_idle_host_ends(place):
    pid = place.host_pid(idle_seconds=0.5)
    wait_until(place.is_clean)
    assert f"model host {pid}: idle for 0.5 s\nmodel host {pid} ended with exit status 0" in place.log
    assert place.host_pid(idle_seconds=0.5) != pid


def test_a_host_at_work_is_not_idle(place):
    process = place.start("work", idle_seconds=0.2)
    process.stderr.readline()
    time.sleep(1)
    (place.folder / "finish").touch()
    assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("job", ["report", "work"])
def test_the_host_ends_with_its_workflow(place, job, number):
    workflow = place.start(job, workflow=True)
    wait_until((place.temporary() if job == "work" else place.folder / "out").exists)
    (pid,) = place.hosts()
    keeper = psutil.Process(pid).ppid()
    workflow.send_signal(number)
    workflow.wait(60)
    wait_until(lambda: not is_running(pid) and not is_running(keeper), seconds=5)
    wait_until(place.is_clean)
    assert not place.temporary().exists()


def test_a_waiting_job_does_not_outlive_its_workflow(place):
    """Two jobs below one process called snakemake: when that is killed, the second starts no host."""
    (place.folder / "snakemake").write_text(
        "import subprocess, sys; one = [sys.executable, *sys.argv[1:]]\n"
        "jobs = [subprocess.Popen(one) for _ in range(2)]; sys.stdin.read()"
    )
    workflow = place.start("work", workflow=True)
    wait_until(place.temporary().exists)
    time.sleep(1)
    workflow.kill()
    _, said = workflow.communicate(timeout=60)  # until the jobs have ended too
    assert "ended with exit status 143 during this job" in said
    assert "error: the workflow that this job belongs to has ended, and the model host with it\n" in said
    wait_until(place.is_clean)
    assert place.log.count(": started") == 1
    assert not (place.folder / "out").exists()


def test_a_job_whose_workflow_has_died_takes_its_host_along(place):
    (place.folder / "snakemake").write_text(
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, *sys.argv[1:]])\n"
        "os.kill(os.getpid(), 9)"
    )
    workflow = place.start("report", workflow=True)
    workflow.communicate(timeout=60)
    wait_until(place.is_clean)
    assert place.log.count("report: done") == place.log.count("the workflow has ended") == 1


def test_ctrl_c_is_not_for_the_host(place):
    pid = place.host_pid()
    for process in (pid, psutil.Process(pid).ppid()):
        assert os.getsid(process) != os.getsid(0)
        assert os.getpgid(process) != os.getpgid(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_host_ends_with_the_process_that_watches_over_it(place, number):
    process = place.start("work")
    process.stderr.readline()
    (pid,) = place.hosts()
    os.kill(psutil.Process(pid).ppid(), number)
    assert process.wait(60) == 1
    wait_until(place.is_clean)
    assert not place.temporary().exists()


def test_a_dead_hosts_socket_is_replaced(place):
    pid = place.host_pid()
    keeper = psutil.Process(pid).parent()
    keeper.suspend()  # so that neither can remove the socket
    os.kill(pid, signal.SIGKILL)
    keeper.kill()
    wait_until(lambda: not is_running(pid) and not keeper.is_running())
    assert list(place.sockets.rglob("*.sock"))
    assert place.host_pid() != pid
    assert len(list(place.sockets.rglob("*.sock"))) == 1


# The folder


def test_the_folder_is_for_its_user_alone(place):
    place.host_pid()
    (folder,) = place.sockets.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()


def test_a_folder_that_others_can_enter_is_refused(place):
    folder = place.sockets / f"adaptive_routing_{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    status, said = place.run("report", check=False)
    folder.rmdir()
    assert status == 1
    assert re.fullmatch(rf"error: {folder} has mode 755; it must be 700, .*\n", said)
    assert not place.log


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_is_refused(place, kind):
    folder, target = place.sockets / f"adaptive_routing_{os.getuid()}", place.folder / "elsewhere"
    target.mkdir(mode=0o700)
    folder.symlink_to(target) if kind == "link" else folder.touch()
    status, said = place.run("report", check=False)
    folder.unlink()
    assert status == 1
    assert said.startswith(f"error: {folder} is no folder of yours")
    assert not any(target.iterdir())


def test_another_users_folder_is_refused(place, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(place.sockets))
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(HostError, match=f"belongs to user {user}, not to you"), socket_folder.locked_folder():
        pytest.fail("entered it")
    (place.sockets / f"adaptive_routing_{user + 1}").rmdir()


def test_a_long_temporary_folder_gives_way_to_a_short_one(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "long" * 30)
    assert socket_folder._folder() == Path(f"/tmp/adaptive_routing_{os.getuid()}")


# With the model


def experiment_requests(folder, embedded):
    """Requests for small embedded experiments, with the files that they name."""
    write_json(folder / "model.json", embedded.loaded.info)
    prepared = prepared_to_json("lambada", prepare(embedded, "lambada"), {"max_samples": 8})
    write_json(folder / "lambada.json", prepared)
    embedded.null_distribution.save(folder / "null_distribution.safetensors")
    return {
        one.name: {
            "configuration": {
                "name": one.name,
                "strategy": one.strategy,
                "max_experts": one.max_experts,
                "parameters": dict(one.parameters),
            },
            "routing": ROUTING,
            "null_distribution": "null_distribution.safetensors" if one.strategy == "bh" else None,
            "dataset": "lambada",
            "prepared": "lambada.json",
            "batch_tokens": 512,
            "second_pass_samples": 2,
        }
        for one in grid({"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.5]}})
    }


def outputs(where, name):
    return {kind: f"{where}/{name}.{kind}" for kind in ("summary", "internal_routing", "tensors")}


def test_results_are_those_of_a_process_of_the_jobs_own(place, embedded):
    requests = experiment_requests(place.folder, embedded)
    # In the host the two experiments follow one another in one process.
    for execution in ("host", "process"):
        for name, request in requests.items():
            request = {**request, "outputs": outputs(execution, name)}
            place.run("run_experiment", execution=execution, server=None, **request)
    assert place.log.count("loaded ") == place.log.count(": started") == 1
    for name in requests:
        files = zip(outputs("host", name).values(), outputs("process", name).values(), strict=True)
        for number, (in_host, in_process) in enumerate(files):
            one, other = (place.folder / path for path in (in_host, in_process))
            if number == 0:
                summaries = json.loads(one.read_text()), json.loads(other.read_text())
                timings = [summary.pop("timings") for summary in summaries]
                assert timings[0].keys() == timings[1].keys()
                for summary in summaries:
                    del summary["provenance"]["run"]["started"]
                assert summaries[0] == summaries[1]
            else:
                assert one.read_bytes() == other.read_bytes()


def test_a_killed_experiment_stops_between_batches(place, embedded):
    requests = experiment_requests(place.folder, embedded)
    request = {**requests["16experts_bh_a050"], "batch_tokens": 1}  # a batch a sample
    place.run("run_experiment", server=None, **request, outputs=outputs("first", "a"))
    os.mkfifo(place.folder / "slow")  # reading its data set, the job waits for the test
    request["prepared"] = "slow"
    process = place.start("run_experiment", server=None, **request, outputs=outputs("killed", "b"))
    with open(place.folder / "slow", "wb") as data:
        process.kill()
        process.wait(60)
        data.write((place.folder / "lambada.json").read_bytes())
    wait_until(lambda: "run_experiment: cancelled" in place.log)
    assert not any(place.folder.glob("killed/*"))
    request["prepared"] = "lambada.json"
    place.run("run_experiment", server=None, **request, outputs=outputs("last", "c"))
    assert place.log.count("loaded ") == 1


@pytest.fixture
def study(place):
    """A small study in the place, to be run or begun."""
    folder = StudyFolder(
        place.folder,
        strategies={"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.30]}},
        evaluation={"max_samples": 3},
        datasets={"hellaswag": None},
        execution="host",
    )
    folder.targets = [
        f"results/logs/{config}_{dataset}.json"
        for config in ("8experts_topk_baseline", "16experts_bh_a030")
        for dataset in ("wikitext", "lambada")
    ]
    return folder


def test_a_study_loads_the_model_once_and_leaves_no_process(place, study, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place.sockets))
    study.command(*study.targets)
    assert place.log.count("loaded ") == place.log.count(": started") == 1
    assert place.log.count("run_experiment: done") == 4
    assert place.log.count("collect_router_logits: done") == 1
    wait_until(place.is_clean)
    log = study.results("job_logs", "run_experiment", "16experts_bh_a030_lambada.log").read_text()
    assert re.fullmatch(r"16experts_bh_a030 on lambada: lambada_accuracy .* tokens/s\n", log)
    assert study.plan(*study.targets) == {}
    study.configure(execution="process")
    assert study.plan(*study.targets) == {}  # it decides how jobs run, not what comes out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_stopped_leaves_nothing(place, small_study, monkeypatch, number):
    monkeypatch.setenv("TMPDIR", str(place.sockets))
    study = small_study(place.folder / "study")
    place.folder = study.folder
    shutil.rmtree(study.results("job_logs"))
    study.configure(evaluation={"second_pass_samples": 6})  # its experiments alone run again
    process = study.begin("experiments")
    place.started.append(process)
    wait_until(lambda: process.poll() or any(study.results("logs").glob(".tmp_*")), seconds=120)
    assert process.poll() is None
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)  # after SIGTERM Snakemake lets running jobs finish
    process.wait(120)
    wait_until(place.is_clean, seconds=60)  # a job that had just been started goes on alone
    assert not any(study.results("logs").glob(".tmp_*"))
