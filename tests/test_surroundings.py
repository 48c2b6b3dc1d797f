"""Runs where a machine lacks what most have: a locale, a home folder, a temporary folder; and any umask."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from adaptive_routing.jobs.host import socket_folder
from adaptive_routing.system.errors import HostError
from study_folder import StudyFolder

SMALL = {
    "evaluation": {"max_samples": 3, "second_pass_samples": 1},
    "datasets": {"wikitext": None, "hellaswag": None},
}


@pytest.fixture
def folder(monkeypatch):
    """A temporary folder, with a name short enough for sockets."""
    with tempfile.TemporaryDirectory() as made:
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


@pytest.fixture
def masked():
    """Set this process's umask until the test ends."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("umask", "target"), [(0o000, "results/datasets/lambada.json"), (0o077, "report")])
def test_a_study_runs_without_what_most_machines_have(tmp_path, umask, target):
    (tmp_path / "file").touch()
    study = StudyFolder(tmp_path / "größe", **SMALL)
    lacking = {"HOME": None, "LANG": "C", "LC_ALL": None, "LC_CTYPE": None, "PYTHONUTF8": None}
    run = study.begin(target, umask=umask, **lacking, TMPDIR=str(tmp_path / "file"))
    said = run.communicate()
    assert run.returncode == 0, said
    assert not any(word in text for word in ("Traceback", "Logging error") for text in said)
    made = [study.results(), *study.results().rglob("*")]
    assert len(made) > 5
    for path in made:
        mode = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_sockets_folder_is_private_whatever_the_umask(folder, masked, umask):
    masked(umask)
    with socket_folder.locked_folder() as locked:
        assert locked.parent == folder and stat.S_IMODE(locked.stat().st_mode) == 0o700
    assert not locked.exists()


def test_a_sockets_folder_that_cannot_be_made_is_one_sentence(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "file"))
    with pytest.raises(HostError, match=r"file/adaptive_routing_\d+ cannot be made \(.*\); set TMPDIR to a"):
        socket_folder.locked_folder().__enter__()
