"""Equal runs give equal files, wherever and however they run, but for what a clock or host's name decides."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from adaptive_routing.analysis.metrics import TIMING_METRICS
from adaptive_routing.compare.__main__ import main
from adaptive_routing.jobs.version import code_version
from adaptive_routing.system.json_files import read_json
from study_folder import REPOSITORY, StudyFolder, commit_all, git

STUDY = {
    "datasets": {"wikitext": None, "hellaswag": None},
    "evaluation": {"max_samples": 4, "second_pass_samples": 2},
    "strategies": {"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.30]}},
    "null_distribution": {"calibration": {"max_tokens": 400}},
}
EXPERIMENTS = ("8experts_topk_baseline_lambada", "16experts_bh_a030_lambada")
TABLES = (
    "results/bh_routing_results.csv",
    "results/calibration/null_distribution.png",
    "results/calibration/null_check.csv",
)


def run(folder, project, cores, **changes):
    """Run the study to its tables in a folder of its own."""
    StudyFolder(folder, project, **STUDY, **changes)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *TABLES, "--snakefile", project / "Snakefile",
         "--cores", cores, "--resources", "gpu=1", "--configfile", "study.yaml"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(make_once, small_study, tmp_path_factory):
    """The same study twice, to its tables: with the model host on two cores, and elsewhere, by a copy of the
    project, on one with a process a job.
    """
    made = tmp_path_factory.mktemp("runs")
    checkout = small_study(made / "small").checkout

    def make(folder):
        run(folder / "one", REPOSITORY, "2", execution="host")
        run(folder / "another place" / "two", checkout, "1", execution="process")

    shutil.copytree(make_once("same study twice", make), made / "made", symlinks=True)
    return (
        StudyFolder(made / "made" / "one", **STUDY, execution="host"),
        StudyFolder(made / "made" / "another place" / "two", checkout, **STUDY, execution="process"),
    )


def files(study):
    """The files of the results, by their path in it; what jobs said is no result."""
    paths = (path for path in study.results().rglob("*") if path.is_file())
    relative = {path.relative_to(study.results()).as_posix(): path for path in paths}
    return {
        name: path for name, path in relative.items() if not name.startswith(("job_logs/", "benchmarks/"))
    }


def without_timings(path):
    """A file's content as text, its keys in their order, without the timings that it has a place for."""
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str)
        return table.drop(columns=[name for name in TIMING_METRICS if name in table]).to_csv()
    content = read_json(path)
    if path.parent.name == "logs":
        del content["timings"], content["provenance"]["run"]
    rows = content if isinstance(content, list) else [content.get("metrics", {})]
    for row in rows:
        for name in TIMING_METRICS:
            row.pop(name, None)
    return json.dumps(content)


def test_two_runs_write_the_same_bytes_but_for_timings(runs):
    one, other = map(files, runs)
    assert set(one) == set(other)
    differ = {name for name in other if one[name].read_bytes() != other[name].read_bytes()}
    # Files that hold nothing but results are the same to the last byte.
    holding_timings = {f"{folder}/{name}.json" for name in EXPERIMENTS for folder in ("logs", "metrics")}
    tables = {
        f"bh_routing_{name}.{kind}" for name in ("results", "configurations") for kind in ("csv", "json")
    }
    assert differ <= holding_timings | tables
    same = set(other) - differ
    for name in EXPERIMENTS:
        logs = f"logs/{name}_internal_routing"
        assert {f"{logs}.json", f"{logs}.safetensors"} <= same
    assert {f"calibration/{name}.safetensors" for name in ("null_distribution", "router_logits")} <= same
    for name in holding_timings | tables:
        assert without_timings(one[name]) == without_timings(other[name]), name


def test_the_command_finds_the_two_runs_identical(runs, capsys):
    folders = [str(study.results()) for study in runs]
    assert main(folders) == 0
    assert capsys.readouterr().out.startswith("identical: 2 experiments, timings left out\n")


def test_tables_figures_and_report_are_made_anew_to_the_last_byte(small_study, tmp_path):
    """From the same metrics, timings included, in another folder."""
    study = small_study(tmp_path / "study")
    study.project = study.checkout
    before = {name: path.read_bytes() for name, path in files(study).items()}
    shown = ("bh_", "visualizations/", "routing_atlas")
    made_anew = [path for name, path in files(study).items() if name.startswith(shown)]
    assert len(made_anew) > 20
    for path in made_anew:
        path.unlink()
    study.snakemake()
    after = {name: path.read_bytes() for name, path in files(study).items()}
    assert set(after) == set(before)
    assert {name for name in before if before[name] != after[name]} == set()


def test_summaries_and_report_say_which_code_ran(small_study, tmp_path):
    study = small_study(tmp_path / "study")
    version = code_version(study.checkout)
    assert version["version"]
    for name in EXPERIMENTS:
        stated = read_json(study.results("logs", f"{name}.json"))["provenance"]["run"]
        assert stated["code"] == version
        assert stated["batch_tokens"] == 2048 and stated["host"] and stated["threads"] >= 1
    report = study.results("bh_routing_report.md").read_text()
    (line,) = [line for line in report.splitlines() if line.startswith("| workflow |")]
    assert version["version"] in line and (version["commit"] or "") in line
    assert "local changes" not in line


# Which code


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of a workflow with one commit; returns its folder."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "Snakefile").write_text("rule all:\n")
    (tmp_path / "rules/common.smk").write_text("")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.8.9"\n')
    commit_all(tmp_path)
    return tmp_path


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")


@needs_git
def test_a_checkout_has_a_commit(checkout):
    expected = {"version": "7.8.9", "commit": git(checkout, "rev-parse", "HEAD"), "local_changes": False}
    assert code_version(checkout) == expected
    (checkout / "config.yaml").write_text("seed: 1\n")  # a setting
    (checkout / "results").mkdir()
    (checkout / "results/model.json").write_text("{}")
    assert code_version(checkout) == expected


@needs_git
@pytest.mark.parametrize("path", ["Snakefile", "rules/common.smk", "rules/new.smk"])
def test_changed_and_new_code_is_a_local_change(checkout, path):
    (checkout / path).write_text("# changed\n")
    assert code_version(checkout)["local_changes"] is True


@needs_git
def test_without_a_checkout_or_git_there_is_no_commit(checkout, monkeypatch):
    unknown = {"version": "7.8.9", "commit": None, "local_changes": None}
    inner = checkout / "inner"  # in somebody's repository, but not a checkout of its own
    inner.mkdir()
    (inner / "pyproject.toml").write_text('[project]\nversion = "7.8.9"\n')
    assert code_version(inner) == unknown
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(inner))
        assert code_version(checkout) == unknown
    assert code_version(checkout)["commit"]
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").mkdir()  # damaged
    assert code_version(checkout) == unknown


@needs_git
def test_a_repository_without_a_commit_has_none(tmp_path):
    git(tmp_path, "init", "--quiet")
    assert code_version(tmp_path) == {"version": None, "commit": None, "local_changes": None}
