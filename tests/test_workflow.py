"""Whole runs of the workflow, as a user starts them: what is made, what is rerun, how it fails."""

import json
import os
import re
import shutil
import subprocess
import sys

import jsonschema
import pandas as pd
import pytest
from adaptive_routing.figures.panels import TITLES
from adaptive_routing.null_distribution import NullDistribution
from browser import Browser, find_chromium
from harness import REAL_DATA, REAL_NULLS
from study_folder import REPOSITORY, StudyFolder

DATASETS = ("wikitext", "lambada", "hellaswag")
CONFIGURATIONS = ("8experts_topk_baseline", "8experts_bh_a030", "16experts_bh_a030")


@pytest.fixture(scope="module")
def study(small_study, tmp_path_factory):
    """A finished small study: 3 configurations x 3 data sets."""
    return small_study(tmp_path_factory.mktemp("studies") / "study with a space")


def test_a_run_makes_every_output_of_the_study(study):
    for config in CONFIGURATIONS:
        for dataset in DATASETS:
            for suffix in (".json", "_internal_routing.json", "_internal_routing.safetensors"):
                assert study.results("logs", f"{config}_{dataset}{suffix}").stat().st_size > 0
            assert study.results("metrics", f"{config}_{dataset}.json").exists()
            assert study.results("atlas", f"{config}_{dataset}.safetensors").exists()
    assert len(list(study.results("logs").iterdir())) == 27  # nothing besides: no temporary file
    table = pd.read_csv(study.results("bh_routing_results.csv"))
    assert len(table) == 9
    assert len(pd.read_csv(study.results("bh_routing_configurations.csv"))) == 3
    assert study.results("visualizations", "bh_comprehensive_comparison.png").stat().st_size > 10_000
    assert study.results("visualizations", "bh_comprehensive_comparison.svg").exists()
    assert len(list(study.results("visualizations").glob("panel_*.png"))) == 9
    assert len(list(study.results("visualizations").glob("atlas_*.png"))) == 3
    assert all(name in study.results("routing_atlas.html").read_text() for name in CONFIGURATIONS)
    report = study.results("bh_routing_report.md").read_text()
    assert "8experts_topk_baseline" in report
    assert study.results("bh_routing_report.html").exists()


def test_a_run_to_the_report_ends_with_its_sentences(study, tmp_path):
    sentences = study.results("bh_routing_summary.txt").read_text()
    assert len(sentences.splitlines()) == 4  # the first: that nothing was compared at the same compute
    ending = f"{sentences}\nReport: results/bh_routing_report.html\n"
    assert ending in study.printed and "left_over" not in study.printed
    former = study.results("logs", "4experts_bh_a030_lambada.json")
    former.touch()
    said = study.snakemake("--forcerun", "write_report").stdout
    former.unlink()
    assert re.fullmatch(
        r"\n.*results also holds 1 file \(0 kB\) that no configuration of the settings needs\. "
        r"The target left_over lists them\.\n"
        r"Report: results/bh_routing_report\.html\n",
        said.rpartition(sentences)[2],
    ), said
    assert ending not in study.ask("--dry-run", "--forcerun", "write_report").stdout
    # A run to something else says nothing of the report, also where there is one.
    other = StudyFolder(tmp_path / "other")
    other.results().mkdir()
    shutil.copy(study.results("bh_routing_summary.txt"), other.results())
    assert "Report: " not in other.snakemake("results/model.json").stdout
    assert other.results("model.json").exists()


def test_every_json_file_follows_its_schema(study):
    schemas = {
        name: json.loads((REPOSITORY / "schemas" / f"{name}.schema.json").read_text())
        for name in ("summary", "internal_routing", "metrics")
    }

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    checked = 0
    for path in [*study.results("logs").glob("*.json"), *study.results("metrics").glob("*.json")]:
        content = json.loads(path.read_text(), parse_constant=refuse)
        kind = "metrics" if path.parent.name == "metrics" else "summary"
        kind = "internal_routing" if path.name.endswith("_internal_routing.json") else kind
        checked += 1
        # Of large files some: `test_experiment` validates those of every data set.
        if kind != "internal_routing" or "wikitext" in path.name:
            jsonschema.validate(content, schemas[kind])
    assert checked == 27


def test_summaries_tell_the_configurations_apart(study):
    by_config = {
        config: json.loads(study.results("logs", f"{config}_wikitext.json").read_text())
        for config in CONFIGURATIONS
    }
    head = by_config["16experts_bh_a030"]
    assert (head["strategy"], head["k_or_max_k"], head["alpha"], head["num_experts"]) == ("bh", 16, 0.3, 64)
    assert by_config["8experts_topk_baseline"]["alpha"] is None
    for summary in by_config.values():
        assert summary["summary"]["total_samples"] == 6
        assert len(summary["samples"]) == 6
        assert summary["provenance"]["model"]["fingerprint"]
    assert len({summary["metrics"]["perplexity"] for summary in by_config.values()}) > 1


def test_the_python_examples_of_the_readme_run(study):
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow_scripts")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=study.folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_second_run_does_nothing(study):
    assert study.plan() == {}


@pytest.mark.parametrize("suffix", [".json", "_internal_routing.json", "_internal_routing.safetensors"])
def test_a_deleted_output_reruns_its_experiment_and_what_follows(study, suffix):
    path = study.results("logs", f"8experts_bh_a030_lambada{suffix}")
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        plan = study.plan()
    finally:
        aside.rename(path)
    assert plan == {
        "run_experiment": 1,
        "compute_metrics": 1,
        "tabulate_results": 1,
        "draw_routing_atlas": 1,
        "plot_panels": 1,
        "plot_routing_atlas": 1,
        "write_report": 1,
    }


@pytest.mark.parametrize(
    ("changes", "experiments"),
    [
        ({"routing": {"min_k": 2}}, 6),  # a fixed k has no minimum
        ({"routing": {"temperature": 2.0}}, 6),  # the baseline keeps the model's own
        (
            {
                "strategies": {  # what was so without the lists
                    "topk": {"k": [8], "weights": ["native"]},
                    "bh": {"max_k": [8, 16], "alpha": [0.30], "null": ["default"]},
                },
                # How, not what.
                "model": {"name": "resources/embedded_model", "device": "cpu", "gpus_per_experiment": 2},
            },
            0,
        ),
    ],
)
def test_a_changed_setting_reruns_what_it_decides(study, changes, experiments):
    """Most settings are in a table of `test_staleness`."""
    before = json.loads(json.dumps(study.settings))
    try:
        study.configure(**changes)
        plan = study.plan()
    finally:
        study.settings = before
        study.configure()
    assert plan.get("run_experiment", 0) == experiments


def test_jobs_that_need_the_model_take_the_gpus_that_it_is_spread_over(tmp_path):
    model = {"name": "resources/embedded_model", "gpus_per_experiment": 2}
    folder = StudyFolder(tmp_path / "two", model=model)
    said = folder.ask("16experts_bh_a030", "--dry-run", "--workflow-profile", "none")
    jobs = re.findall(r"rule (\w+):\n((?: {4}.*\n)+)", said.stdout + said.stderr)
    gpus = {rule: re.findall(r"\bgpu=(\d+)", directives) for rule, directives in jobs}
    expected = {"run_experiment": ["2"], "collect_router_logits": ["2"]}
    assert {rule: number for rule, number in gpus.items() if number} == expected


@pytest.mark.parametrize(("execution", "gpus"), [("host", 4), ("process", 2)])
def test_a_job_may_wait_at_each_host_and_none_is_looked_for_in_vain(tmp_path, execution, gpus):
    folder = StudyFolder(tmp_path / "verbose", execution=execution)
    done = folder.snakemake("results/datasets/wikitext.json", "--verbose")
    said = done.stdout + done.stderr
    assert set(re.findall(r"Resources before job selection: .*'gpu': (\d+)", said)) == {str(gpus)}
    # At the start and after `inspect_model`, however long `prepare_dataset` takes.
    assert len(re.findall("Ready jobs: ", said)) == 2


def test_one_experiment_can_be_the_target(tmp_path):
    folder = StudyFolder(tmp_path / "one")
    target = "results/logs/8experts_topk_baseline_lambada.json"
    assert folder.plan(target) == {"inspect_model": 1, "prepare_dataset": 1, "run_experiment": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategies": {"bh": {"max_k": [8], "alpha": [1.5]}}}, ["strategies.bh.alpha[0]", "1.5"]),
        ({"strategies": {"bh": {"max_k": [8], "alpha": ["0.3"]}}}, ["strategies.bh.alpha[0]", "0.3"]),
        ({"strategies": {"bh": {"max_k": [128], "alpha": [0.3]}}}, ["strategies.bh.max_k[0]", "128", "64"]),
        ({"routing": {"min_k": 9}}, ["routing.min_k", "9", "8"]),
        ({"null_distribution": {"kernel": "cosine"}}, ["null_distribution.kernel", "cosine", "gaussian"]),
        ({"datasets": {"squad": {"source": "x.jsonl"}}}, ["datasets", "squad", "wikitext"]),
        ({"datasets": {"lambada": {"source": "gone.jsonl"}}}, ["datasets.lambada.source", "gone.jsonl"]),
        ({"strategies": {"bh": {"max_k": [], "alpha": [0.3]}}}, ["strategies.bh.max_k"]),
        ({"evaluations": {}}, ["evaluations", "evaluation"]),
    ],
)
def test_a_wrong_config_is_one_sentence_before_any_job(tmp_path, changes, words):
    folder = StudyFolder(tmp_path / "wrong", **changes)
    done = folder.ask()
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert all(word in said[0] for word in words), said[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not folder.results().exists()


def test_more_new_tokens_than_the_model_reads_is_one_sentence(tmp_path):
    folder = StudyFolder(
        tmp_path,
        datasets={"prompts": {"source": "resources/datasets/prompts.jsonl", "max_new_tokens": 511}},
    )
    done = folder.snakemake("results/datasets/prompts.json", check=False)
    assert done.returncode != 0
    assert "error: datasets.prompts.max_new_tokens is 511, but the model reads at most 512" in done.stderr


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real rows are not here")
def test_the_real_rows_and_the_real_null_distributions_run(tmp_path):
    folder = StudyFolder(
        tmp_path / "real",
        datasets={
            name: {"source": str(REAL_DATA / file)}
            for name, file in (
                ("wikitext", "wikitext2_raw_test.jsonl"),
                ("lambada", "lambada_openai_test.jsonl"),
                ("hellaswag", "hellaswag_validation.jsonl"),
            )
        },
        strategies={"topk": {"k": [8]}, "bh": {"max_k": [16], "alpha": [0.30]}},
        evaluation={"max_samples": 3},
        null_distribution={"table": str(REAL_DATA / "olmoe_1b_7b_null_cdf.npz")},
    )
    assert "collect_router_logits" not in folder.plan("experiments")  # only a check needs calibration text
    folder.snakemake("tables", "results/routing_atlas.html")
    table = pd.read_csv(folder.results("bh_routing_results.csv"))
    assert len(table) == 6
    assert table.loc[table["dataset"] == "wikitext", "perplexity"].notna().all()


@pytest.mark.skipif(not REAL_DATA.exists(), reason="needs the tables of OLMoE-1B-7B in ../shared/data")
def test_nine_real_null_distributions_are_one_study(tmp_path):
    """Three of them run, and are checked; `test_null_check` checks all nine."""
    folder = StudyFolder(
        tmp_path / "nine",
        datasets={"lambada": None, "hellaswag": None},
        strategies={
            "topk": {"k": [8]},
            "bh": {"max_k": [16], "alpha": [0.60], "null": list(REAL_NULLS)},
        },
        evaluation={"max_samples": 3},
        null_distributions={name: {"table": str(path)} for name, path in REAL_NULLS.items()},
    )
    plan = folder.plan()
    assert plan["fit_null_distribution"] == plan["check_null_distribution"] == plan["plot_null_check"] == 9
    assert plan["run_experiment"] == 10
    names = ("olmoe", "trimmed0", "trimmed8")
    metrics = [f"results/metrics/16experts_bh_a060_n{name}_wikitext.json" for name in names]
    folder.snakemake(*metrics, "results/calibration/null_check_trimmed8.png")
    found = [json.loads((folder.folder / path).read_text())["metrics"] for path in metrics]
    assert all(one["perplexity"] > 1 for one in found)
    olmoe, untrimmed, trimmed = (one["avg_experts"] for one in found)
    assert olmoe == untrimmed <= trimmed  # the first two are the same table
    check = pd.read_csv(folder.results("calibration/null_check_trimmed8.csv"))
    assert check["layer"].tolist() == list(range(16))
    assert folder.results("calibration/null_check_trimmed8.png").stat().st_size > 10_000


def test_a_study_of_several_null_distributions_and_weights(tmp_path):
    folder = StudyFolder(
        tmp_path / "nulls",
        datasets={"hellaswag": None, "lambada": None},
        strategies={
            "topk": {"k": [8], "weights": ["native", "uniform"]},
            "bh": {
                "max_k": [16],
                "alpha": [0.60],
                "null": ["default", "centred"],
                "weights": ["native", "renormalized"],
            },
        },
        null_distributions={"centred": {"center": "mean"}},
    )
    figures = [f"results/calibration/null_{kind}_centred.png" for kind in ("distribution", "check")]
    folder.snakemake("tables", *figures)
    bh = [
        f"16experts_bh_a060{null}{weights}"
        for null in ("", "_ncentred")
        for weights in ("", "_wrenormalized")
    ]
    topk = ["8experts_topk_baseline", "8experts_topk_wuniform"]
    table = pd.read_csv(folder.results("bh_routing_results.csv")).set_index("config")
    assert set(table.index) == {*topk, *bh}
    assert table["perplexity"].nunique() == 6
    for name, center in (("", "none"), ("_centred", "mean")):
        null = NullDistribution.load(folder.results(f"calibration/null_distribution{name}.safetensors"))
        assert null.center == center
    # A null distribution's own settings decide what uses it, and nothing else.
    assert folder.plan("tables", *figures) == {}
    folder.configure(null_distributions={"centred": {"center": "mean", "kernel": "linear"}})
    plan = folder.plan("experiments", "metrics")
    assert plan["fit_null_distribution"] == 1 and plan["run_experiment"] == 2
    folder.configure(null_distributions={"centred": {"center": "mean"}, "more": {"trim": 2}})
    assert folder.plan("experiments", "metrics") == {}
    folder.configure(null_distribution={"trim": 2})  # inherited
    plan = folder.plan("experiments", "metrics")
    assert plan["fit_null_distribution"] == 2 and plan["run_experiment"] == 4


def test_snakemakes_own_report_holds_everything_and_asks_nobody(study, tmp_path):
    page = tmp_path / "report.html"
    study.snakemake("--report", page)
    text = page.read_text()
    titles = [f"{panel[0]} {title}" for panel, title in TITLES.items()]
    titles += ["The nine panels on a page", "Answers, evidence and method", "Which experts"]
    titles += ["Experiments: all metrics", "Null distributions, layer by layer"]
    assert [title for title in titles if json.dumps(title)[1:-1] not in text and title not in text] == []
    if not find_chromium():
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        browser.wait_for("document.body?.innerText.includes('Routing atlas')")
        front = browser.run("document.body.innerText")
        sentences = study.results("bh_routing_summary.txt").read_text().splitlines()
        places = [front.index(sentence) for sentence in [*sentences, "The question: does choosing experts"]]
        assert places == sorted(places)  # it opens with the answers
        links = "document.querySelectorAll('a[href^=\"javascript:app.showCategory\"]')"
        shown = ["Report", "Comparison", "Panels", "Routing atlas", "Calibration", "Tables"]
        assert browser.run(f"[...{links}].map((one) => one.textContent)") == shown
        browser.run(f"[...{links}].find((one) => one.textContent === 'Routing atlas').click()")
        browser.wait_for("app.state.category === 'Routing atlas'")
        assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        # Snakemake's page builds its style in the browser, and the style's library remarks on that.
        assert [one for one in browser.problems if "tailwindcss" not in str(one)] == []
