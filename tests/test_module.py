"""The workflow in other workflows: imported as a Snakemake module, from a folder that is not its own."""

import os
import re
import subprocess
import sys

import pytest
from adaptive_routing.settings.load import imported_config, load_settings
from study_folder import REPOSITORY

SMALL = {
    "evaluation": {"max_samples": 3, "second_pass_samples": 1},
    "strategies": {"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.30]}},
    "datasets": {"wikitext": None, "hellaswag": None},
    "null_distribution": {"calibration": {"max_tokens": 500}},
}
# What another workflow has to write.
ONE = f"""\
module routing:
    snakefile: "{REPOSITORY}/Snakefile"
    config: {SMALL}
    prefix: "routing"
use rule * from routing as routing_*
"""
OTHER = f"""
module again:
    snakefile: "{REPOSITORY}/Snakefile"
    config: config["again"]
    prefix: "again"
use rule * from again as again_*
rule both:
    input:
        rules.routing_metrics.input,
        rules.again_report.input,
"""


def snakemake(folder, *arguments):
    """Run Snakemake in a folder; returns all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--resources", "gpu=1"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def plan(folder, *arguments):
    """Jobs that a run would do, by rule."""
    text = snakemake(folder, *arguments, "--dry-run", "--quiet", "host")
    table = text.partition("Job stats")[2].partition("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def jobs(prefix, datasets, configurations, with_p_values, *rules):
    """The plan of metrics of all on a data set or two, and of more rules, each once."""
    counts = {"inspect_model": 1, "prepare_dataset": datasets}
    counts |= dict.fromkeys(("run_experiment", "compute_metrics"), datasets * configurations)
    if with_p_values:
        counts |= {"collect_router_logits": 1, "fit_null_distribution": 1}
    return {f"{prefix}_{rule}": count for rule, count in (counts | dict.fromkeys(rules, 1)).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a Snakefile of five lines, and the study that it ran."""
    folder = tmp_path_factory.mktemp("importing")
    assert len(ONE.splitlines()) == 5
    (folder / "Snakefile").write_text(ONE)
    snakemake(folder, "routing_report")
    return folder


def test_a_study_runs_below_its_prefix(finished):
    results = finished / "routing/results"
    assert len(list((results / "logs").iterdir())) == 3 * 2
    report = (results / "bh_routing_report.md").read_text()
    assert "16experts_bh_a030" in report
    assert list((results / "job_logs").glob("model_host_*.log"))
    assert {path.name for path in finished.iterdir()} == {"Snakefile", "routing", ".snakemake"}


def test_nothing_is_stale_after_the_run_and_benchmarks_are_there(finished):
    assert plan(finished, "routing_report") == {}
    benchmarks = finished / "routing/results/benchmarks"
    assert (benchmarks / "run_experiment/16experts_bh_a030_lambada.tsv").read_text().startswith("s\t")
    assert {path.stem for path in benchmarks.glob("*.tsv")} >= {"plot_panels", "write_report"}
    (benchmarks / "plot_panels.tsv").unlink()
    assert plan(finished, "routing_report") == {}


def test_snakemakes_report_finds_the_captions(finished):
    snakemake(finished, "routing_report", "--report", "report.html")
    assert (finished / "report.html").stat().st_size > 100_000
    (finished / "report.html").unlink()


def test_two_instances_have_settings_and_results_of_their_own(tmp_path):
    (tmp_path / "Snakefile").write_text(f"""configfile: "own.yaml"\n{ONE}{OTHER}""")
    (tmp_path / "own.yaml").write_text(
        "{other_key: 1, again: {strategies: {topk: {k: [8, 16, 32]}, bh: null}, datasets: {wikitext: null}}}"
    )
    expected = jobs("routing", 1, 2, True)
    expected |= jobs(
        "again", 2, 3, False,
        "tabulate_results", "plot_panels", "draw_routing_atlas", "write_report",
    )  # fmt: skip
    assert plan(tmp_path, "both") == expected | {"both": 1}
    named = plan(tmp_path, "again_32experts_topk_baseline")
    assert named["again_run_experiment"] == named["again_compute_metrics"] == 2


def test_a_module_names_what_differs_from_the_config_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    config = SMALL | {"datasets": {"hellaswag": None, "lambada": {"source": "mine.jsonl"}}}
    settings = load_settings(imported_config(config, REPOSITORY))
    assert settings["evaluation"] == {
        "max_samples": 3, "max_length": 512, "batch_tokens": 2048, "second_pass_samples": 1,
        "share_contexts": True,
    }  # fmt: skip
    assert settings["strategies"]["topk"] == {"k": [8]}
    assert settings["model"]["name"] == f"{REPOSITORY}/resources/embedded_model"
    assert settings["datasets"].keys() == {"wikitext", "lambada"}
    assert settings["datasets"]["wikitext"]["source"] == f"{REPOSITORY}/resources/datasets/wikitext.jsonl"
    assert settings["datasets"]["lambada"]["source"] == str(tmp_path / "mine.jsonl")
    assert config["datasets"]["lambada"] == {"source": "mine.jsonl"}  # the importing workflow's is as it was


def test_hub_names_stay_hub_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = imported_config({"model": {"name": "allenai/OLMoE-1B-7B-0924"}}, REPOSITORY)
    assert config["model"]["name"] == "allenai/OLMoE-1B-7B-0924"
