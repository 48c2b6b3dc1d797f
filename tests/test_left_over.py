"""What jobs made with other settings: listed, removed on request, and nothing else with it."""

import re

import pytest
from adaptive_routing.settings.left_over import remove
from adaptive_routing.system.errors import OutputError
from study_folder import StudyFolder

# A study with everything that is made with some settings only.
LARGE = {
    "strategies": {
        "topk": {"k": [8, 16]},
        "bh": {"max_k": [8, 16], "alpha": [0.3], "null": ["default", "centred"]},
    },
    "null_distributions": {"centred": {"center": "mean"}},
    "controls": {"of": ["bh"]},
    "datasets": {
        "prompts": {"source": "resources/datasets/prompts.jsonl"},
        "stories": {"task": "lambada", "source": "resources/datasets/lambada.jsonl"},
    },
}
SMALL = {"strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8], "alpha": [0.3]}}}
OTHERS = {
    "large": (
        "logs/.tmp_16experts_topk_baseline_wikitext.json",  # of a run that was killed
        "job_logs/run_experiment/16experts_topk_baseline_lambada.log",
        "job_logs/prepare_dataset/stories.log",
        "job_logs/fit_null_distribution_centred.log",
        "job_logs/plot_same_compute.log",
        "job_logs/tabulate_where.log",
        "benchmarks/compute_metrics/8experts_bh_a030_fixed_lambada.tsv",
        "benchmarks/check_null_distribution_centred.tsv",
    ),
    "small": (
        "job_logs/run_experiment/8experts_topk_baseline_lambada.log",
        "job_logs/prepare_dataset/lambada.log",
        "job_logs/fit_null_distribution.log",
        "job_logs/plot_panels.log",
        "job_logs/tabulate_results.log",
        "benchmarks/compute_metrics/8experts_bh_a030_lambada.tsv",
        "benchmarks/check_null_distribution.tsv",
    ),
    "no job": (
        "notes.txt",
        "snakemake_report.html",
        "logs/notes.txt",
        "visualizations/mine.png",
        "bh_routing_report.pdf",
        "job_logs/model_host_0123.log",
    ),
}


def outputs(study):
    """All that the jobs of a study write besides logs."""
    rows = study.ask("--summary").stdout.splitlines()
    return {row.split("\t")[0] for row in rows if row.startswith("results/")}


def files(study):
    found = study.folder.joinpath("results").rglob("*")
    return {path.relative_to(study.folder).as_posix() for path in found if path.is_file()}


@pytest.fixture
def shrunk(tmp_path):
    """A study that had been larger, in a folder with all that it made then; and what of that is left over."""
    large = outputs(StudyFolder(tmp_path / "study", **LARGE))
    study = StudyFolder(tmp_path / "study", **SMALL)
    small = outputs(study)
    assert small < large
    for kind in ("logs", "metrics", "atlas", "datasets", "calibration", "visualizations", "bh_routing"):
        assert any(path.startswith(f"results/{kind}") for path in large - small), kind
    others = {kind: {f"results/{name}" for name in names} for kind, names in OTHERS.items()}
    for path in large.union(*others.values()):
        (study.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (study.folder / path).write_bytes(bytes(1000))
    return study, (large - small) | others["large"]


def test_what_is_left_over_is_listed_and_then_removed(shrunk):
    study, left_over = shrunk
    before = files(study)
    said = study.snakemake("left_over").stdout
    assert re.findall(r"^ +1 kB  (\S.*)$", said, re.MULTILINE) == sorted(left_over)
    amount = f"{len(left_over)} files ({len(left_over)} kB)"
    assert f"results also holds {amount} that no configuration of the settings needs." in said
    study.snakemake("remove_left_over", "--dry-run")
    assert files(study) == before

    assert f"Removed {amount}." in study.snakemake("remove_left_over").stdout
    assert files(study) == before - left_over
    for target in ("left_over", "remove_left_over"):
        said = study.snakemake(target).stdout
        assert said.strip().endswith("results holds nothing that the settings do not need.")
    assert files(study) == before - left_over


def test_nothing_is_removed_while_a_run_goes_on(shrunk):
    study, _ = shrunk
    before = files(study)
    lock = study.folder / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("results/logs/16experts_bh_a030_lambada.json\n")
    for target in ("left_over", "remove_left_over"):
        done = study.snakemake(target, check=False)
        assert done.returncode == 1
        (said,) = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
        assert said.startswith(f"error: {target} cannot be asked for while a run goes on in {study.folder} ")
    assert files(study) == before
    assert lock.exists()


def test_a_file_that_cannot_be_removed_is_named(tmp_path):
    with pytest.raises(OutputError) as error:
        remove({tmp_path: 0})
    assert str(error.value) == f"{tmp_path} cannot be removed: Is a directory"
