"""Outputs appear whole or not at all, and JSON is JSON."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from adaptive_routing.jobs.script import job
from adaptive_routing.system.errors import InputError, OutputError
from adaptive_routing.system.files import atomic_path
from adaptive_routing.system.json_files import read_json, to_json, write_json
from adaptive_routing.system.processes import identity


def test_a_file_gets_its_name_only_when_whole(tmp_path):
    path = tmp_path / "new folder" / "out.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_results_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "out.json", {})
    assert (tmp_path / "out.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_takes_numpy_and_refuses_what_json_cannot_hold(tmp_path):
    value = {"a": np.arange(3), "b": np.float64(0.5), "c": None, 1: [True]}
    write_json(tmp_path / "out.json", value)
    assert read_json(tmp_path / "out.json") == {"a": [0, 1, 2], "b": 0.5, "c": None, "1": [True]}
    assert json.loads((tmp_path / "out.json").read_text())["a"] == [0, 1, 2]
    for bad in (float("nan"), float("inf"), np.float64("nan"), [1, {"x": -np.inf}], np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match=r"\$"):
            to_json({"key": bad})


def snakemake_object(tmp_path):
    return SimpleNamespace(log=[tmp_path / "logs" / "job.log"])


def test_a_job_says_input_errors_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop, job(snakemake_object(tmp_path)):
        raise InputError("datasets.lambada.source is 'x', which does not exist")
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said == "error: datasets.lambada.source is 'x', which does not exist\n"
    assert (tmp_path / "logs" / "job.log").read_text() == said


def test_a_job_logs_what_it_says_and_where_it_failed(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), job(snakemake_object(tmp_path)):
        print("working", file=sys.stderr)
        raise ZeroDivisionError("1 / 0")
    log = (tmp_path / "logs" / "job.log").read_text()
    assert log.startswith("working\nTraceback")
    assert "1 / 0" in log
    assert "working" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 2.00 GiB for an array"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_lack_of_memory_is_one_sentence(tmp_path, capsys, error):
    with pytest.raises(SystemExit) as stop, job(snakemake_object(tmp_path)):
        raise error
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the system gives this process no more memory or threads (")
    assert said.count("\n") == 1 and (str(error) or "MemoryError") in said
    assert "Traceback" in (tmp_path / "logs/job.log").read_text()


@pytest.mark.parametrize("work", ["bytearray(1 << 32)", "threading.Thread(target=print).start()"])
def test_a_limit_of_the_address_space_is_one_sentence(tmp_path, work):
    script = textwrap.dedent(
        f"""
        import resource, threading
        from types import SimpleNamespace
        from adaptive_routing.jobs.script import job

        with job(SimpleNamespace(log=[{str(tmp_path / "job.log")!r}])):
            threading.stack_size(1 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
            {work}
        """
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the system gives this process no more memory or threads (")
    assert done.stderr.count("\n") == 1


def start_job(tmp_path, workflow):
    """Start a job below the workflow of a pid; returns it, amid writing, and the folder it writes to."""
    script = textwrap.dedent(
        f"""
        import time
        from types import SimpleNamespace
        from adaptive_routing.system.files import atomic_path
        from adaptive_routing.jobs.script import job, tell_jobs

        tell_jobs(process={identity(workflow)})
        with job(SimpleNamespace(log=[{str(tmp_path / "job.log")!r}])):
            with atomic_path({str(tmp_path / "out" / "result")!r}) as temporary:
                temporary.write_text("half")
                print("ready", flush=True)
                time.sleep(60)
        """
    )
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "ready\n"
    assert len(list((tmp_path / "out").iterdir())) == 1
    return process, tmp_path / "out"


def test_a_job_ends_with_its_workflow_even_if_that_is_killed(tmp_path):
    workflow = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process, output = start_job(tmp_path, workflow.pid)
    workflow.kill()
    workflow.wait()
    assert process.wait(timeout=30) == 143
    assert list(output.iterdir()) == []
    assert (
        (tmp_path / "job.log")
        .read_text()
        .startswith("error: the workflow that this job belongs to has ended")
    )


def test_a_full_disk_is_one_sentence(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(OutputError, match=f"{path} cannot be written: the disk is full"), atomic_path(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(OutputError, match=f"{path} cannot be written: the disk quota is used up"),
        atomic_path(path),
    ):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    with (
        pytest.raises(OutputError, match=f"{path} cannot be written: the disk is full"),
        atomic_path(path),
    ):
        raise RuntimeError("No space left on device (os error 28)")  # as libraries written in Rust do
    with pytest.raises(FileNotFoundError), atomic_path(path):
        (tmp_path / "gone").read_text()
    assert not list(tmp_path.iterdir())


def test_a_limit_of_a_files_size_is_one_sentence(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"out.txt cannot be written: the file is larger than `ulimit"):
            write_json(tmp_path / "out.txt", "x" * (1 << 11))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"file/out\.txt cannot be written: "),
        atomic_path(tmp_path / "file/out.txt"),
    ):
        pytest.fail("made it")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_log_that_cannot_be_written_does_not_end_the_job(tmp_path, capsys):
    snakemake = snakemake_object(tmp_path)
    snakemake.log[0].parent.mkdir()
    snakemake.log[0].symlink_to("/dev/full")
    with job(snakemake):
        print("working", file=sys.stderr)
    assert capsys.readouterr().err == "working\n"
    with pytest.raises(SystemExit), job(snakemake):
        raise OutputError("out.txt cannot be written: the disk is full")
    assert capsys.readouterr().err == "error: out.txt cannot be written: the disk is full\n"


def test_a_line_reaches_the_terminal_in_one_piece(tmp_path, monkeypatch):
    """Other jobs write to it at the same time."""
    pieces = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=pieces.append, flush=lambda: None))
    with job(snakemake_object(tmp_path)):
        print("one", "sentence", file=sys.stderr)
        print(" 40 %", end="\r", file=sys.stderr)
        print("a question", end="", flush=True, file=sys.stderr)
        print("its end", end="", file=sys.stderr)
    assert pieces == ["one sentence\n", " 40 %\r", "a question", "its end"]


def test_a_terminated_job_leaves_no_temporary_file(tmp_path):
    process, output = start_job(tmp_path, os.getpid())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert list(output.iterdir()) == []
