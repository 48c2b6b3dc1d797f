"""Forward passes on a CPU: side by side, each in one thread, with the same results to the bit."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from adaptive_routing.evaluation.calibration import collect_router_logits
from adaptive_routing.model.load import LoadedModel
from adaptive_routing.system import cores
from conftest import ROOT, tiny_olmoe
from test_bad_inputs import BH, LENGTHS, TOPK, ShortOfMemory, assert_same, make_samples, scored


@pytest.mark.parametrize("configuration", [BH, TOPK], ids=["bh", "topk"])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_the_number_of_passes_side_by_side_changes_no_bit(configuration, workers):
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    expected, sizes = scored(model, samples, 40, configuration)
    found, side_by_side = scored(model, samples, 40, configuration, workers)
    assert side_by_side == sizes and len(sizes) >= 6
    for index, values in expected.items():
        for name, value in values.items():
            assert torch.equal(found[index][name].nan_to_num(), value.nan_to_num()), (index, name)


def test_passes_are_made_in_several_threads_at_once():
    """Two passes wait for each other in the first layer: neither would go on alone."""
    model, samples = tiny_olmoe(), make_samples([20] * 8)
    expected, _ = scored(model, samples, 40)
    both = threading.Barrier(2)

    def wait(*_):
        if threading.current_thread() is not threading.main_thread():
            both.wait(timeout=60)

    handle = model.base_model.layers[0].register_forward_pre_hook(wait)
    found, sizes = scored(model, samples, 40, workers=2)
    handle.remove()
    assert sizes == [40] * 4
    assert_same(found, expected)


@pytest.mark.parametrize("most_tokens", [45, 30])
def test_memory_that_runs_out_beside_other_passes_loses_nothing(most_tokens, capsys):
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    expected, _ = scored(model, samples, 64)
    with ShortOfMemory(model, most_tokens=most_tokens, watches=False):
        found, sizes = scored(model, samples, 64, workers=3)
    assert_same(found, expected)
    assert sum(sizes) == sum(LENGTHS) and max(sizes) <= most_tokens
    assert "going on with at most" in capsys.readouterr().err


def test_one_sample_is_tried_again_alone(capsys):
    """Where it does not fit beside others, it runs when they are done."""
    model, samples = tiny_olmoe(), make_samples([30, 29, 28, 27])
    expected, _ = scored(model, samples, 30)
    running, failures, lock = [], [], threading.Lock()

    def enter(module, args):
        with lock:
            running.append(args[0].shape[1])
            if args[0].shape[1] == 29 and (len(running) > 1 or not failures):
                failures.append(running.pop())
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def leave(*_):
        with lock:
            running.pop()

    layer = model.base_model.layers[1]
    handles = layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)
    found, _ = scored(model, samples, 30, workers=3)
    for handle in handles:
        handle.remove()
    assert failures and capsys.readouterr().err == ""  # nothing was halved
    assert_same(found, expected)


def test_a_fault_in_one_pass_ends_all():
    model, samples = tiny_olmoe(), make_samples(LENGTHS)

    def fail(module, args):
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("broken")

    handle = model.base_model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="broken"):
        scored(model, samples, 40, workers=2)
    handle.remove()
    assert not [one for one in threading.enumerate() if one.name.startswith("forward pass")]
    scored(model, samples, 40, workers=2)  # the model is as before


def test_calibration_does_not_depend_on_the_passes_side_by_side(monkeypatch):
    loaded, samples = LoadedModel(tiny_olmoe(), {}, "cpu"), make_samples(LENGTHS)
    found = []
    for workers in (1, 3):
        monkeypatch.setattr(
            "adaptive_routing.evaluation.batches.passes_at_once", lambda device, count=workers: count
        )
        found.append(collect_router_logits(loaded, samples, 40))
    assert torch.equal(*found)


SEVERAL_THREADS = """
import os, sys, threading, time
sys.path[:0] = [{tests!r}, {package!r}]
import torch
from adaptive_routing.model.devices import passes_at_once, use_cores_for_passes
from conftest import tiny_olmoe
from test_bad_inputs import BH, make_samples, scored

def count():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

torch.set_num_threads(2)
model, before = tiny_olmoe(hidden_size=256, intermediate_size=256), count()
for prepare in (use_cores_for_passes, lambda: torch.set_num_threads(2)):
    prepare()
    scored(model, make_samples([60] * 40), 1200, BH, workers=2)
    time.sleep(1)  # threads of Python that have ended take a moment to leave
    print(count() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="threads are counted in /proc, as Linux has it"
)
def test_no_pass_starts_threads_of_torch():
    """In a job no thread of torch waits for another: there are none beside Python's, whatever is computed.

    Two threads a pass, which is what torch does by itself, show that such threads would be counted.
    """
    code = SEVERAL_THREADS.format(tests=str(ROOT / "tests"), package=str(ROOT / "workflow_scripts"))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    in_a_job, with_two = map(int, done.stdout.split()[-2:])
    assert in_a_job == 0 and with_two > 0


# The cores that there are


def test_the_users_limit_and_affinity_bound_the_cores(monkeypatch):
    monkeypatch.setattr(cores, "_cgroup_limit", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for value, expected in (("", 6), ("4", 4), ("2,1", 2), ("0", 6), ("many", 6), ("99", 6)):
        monkeypatch.setenv(cores.LIMIT_VARIABLE, value)
        assert cores.usable_cores() == expected
    monkeypatch.delenv(cores.LIMIT_VARIABLE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # Snakemake's own word for every job
    assert cores.usable_cores() == 6


def test_the_workflow_keeps_the_users_limit_once():
    environment = {"OMP_NUM_THREADS": "3"}
    cores.keep_user_limit(environment)
    environment["OMP_NUM_THREADS"] = "1"
    cores.keep_user_limit(environment)
    assert environment[cores.LIMIT_VARIABLE] == "3"
    nothing = {}
    cores.keep_user_limit(nothing)
    assert nothing == {}


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "250000 100000"}, "0::/", 2),
        ({"cpu.max": "50000 100000"}, "0::/", 1),  # half a core is one worker
        ({"cpu.max": "max 100000", "a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 4),
        ({"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/a", 3),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/a", None),
        ({"memory/a/cpu.cfs_quota_us": "1"}, "4:memory:/a", None),
        ({}, "0::/a", None),
        ({"cpu.max": "odd"}, "0::/", None),
    ],
)
def test_the_limits_of_control_groups(tmp_path, files, membership, expected):
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    (tmp_path / "membership").write_text(f"{membership}\n")
    assert cores._cgroup_limit(tmp_path / "cgroup", tmp_path / "membership") == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cores._cgroup_limit(tmp_path, tmp_path / "none") is None
