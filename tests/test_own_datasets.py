"""A whole study of all kinds of data sets, most under names of one's own: several of one kind, whole
articles, prompts, tasks of the harness.
"""

import json
import shutil

import jsonschema
import pandas as pd
import pytest
from conftest import ROOT
from harness_folder import make_folder
from study_folder import StudyFolder

pytest.importorskip("lm_eval")

BASELINE = "8experts_topk_baseline"
DATASETS = ["wikitext", "prompts", "bought", "endings", "letters", "pages", "questions"]
TARGETS = ("tables", "report", "results/visualizations/experts_by_difficulty.png")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "study"
    tasks = make_folder(folder / "tasks")
    rows = (ROOT / "resources/datasets/wikitext.jsonl").read_text().splitlines(keepends=True)
    (folder / "letters.jsonl").write_text("".join(rows[20:60]))
    shutil.copy(ROOT / "resources/datasets/lambada.jsonl", folder / "endings.jsonl")
    one = StudyFolder(
        folder,
        datasets={
            "lambada": None,
            "hellaswag": None,
            "letters": {"task": "wikitext", "source": "letters.jsonl"},
            "endings": {"task": "lambada", "source": "endings.jsonl"},
            "bought": {"harness": "own_weighted", "include_path": str(tasks), "num_fewshot": 1},
            "questions": {"harness": "own_questions", "include_path": str(tasks)},
            "pages": {
                "task": "wikitext",
                "source": "resources/datasets/wikitext.jsonl",
                "protocol": "documents",
                "max_samples": 4,
            },
            "prompts": {"source": "resources/datasets/prompts.jsonl", "max_new_tokens": 3, "max_samples": 4},
        },
        strategies={"bh": {"max_k": [8], "alpha": [0.3]}},
        controls={"of": ["8experts_bh_a030"], "kinds": ["fixed"]},
    )
    one.snakemake(*TARGETS)
    return one


def read(path):
    return json.loads(path.read_text())


def test_names_stand_in_files_and_tables(study):
    experiments = pd.read_csv(study.results("bh_routing_results.csv"))
    assert list(dict.fromkeys(experiments["dataset"])) == DATASETS
    configurations = pd.read_csv(study.results("bh_routing_configurations.csv"))
    for name in ("endings", "bought", "questions"):
        assert configurations[f"{name}_accuracy"].notna().all()
    of = experiments.set_index(["config", "dataset"])
    for name in ("wikitext", "letters"):
        assert of.loc[(BASELINE, name), "perplexity"] > 1
    assert of.loc[(BASELINE, "endings"), "target_perplexity"] > 1
    for dataset in DATASETS:
        assert study.results(f"logs/{BASELINE}_{dataset}.json").exists()
    comparisons = pd.read_csv(study.results("bh_routing_comparisons.csv"))
    metrics = comparisons.groupby("dataset")["metric"].first().to_dict()
    assert {name: metrics[name] for name in ("endings", "bought", "questions")} == {
        name: f"{name}_accuracy" for name in ("endings", "bought", "questions")
    }
    assert "perplexity" in metrics["wikitext"] and metrics["letters"] == metrics["wikitext"]


def test_the_harness_judges_samples_and_its_metrics_are_a_table(study):
    summary = read(study.results(f"logs/{BASELINE}_bought.json"))
    schema = read(ROOT / "schemas/summary.schema.json")
    jsonschema.Draft202012Validator(schema).validate(summary)
    metrics = read(study.results(f"metrics/{BASELINE}_bought.json"))
    correct = metrics["harness"]["samples"]["correct"]
    assert len(correct) == len(summary["samples"]) == 6 + 4  # max_samples is for each task
    accuracy = metrics["metrics"]["avg_task_accuracy"]
    assert accuracy == pytest.approx(sum(correct) / 10)
    assert metrics["harness"]["groups"]["own_weighted"]["acc_norm,none"] == pytest.approx(accuracy)
    assert metrics["harness"]["n-shot"]["own_large"] == 1
    assert summary["provenance"]["settings"]["dataset"]["harness_version"]
    table = pd.read_csv(study.results("bh_routing_harness.csv"))
    rows = table[(table["config"] == BASELINE) & (table["task"] == "own_weighted")].set_index("metric")
    assert rows.loc["acc_norm", "value"] == pytest.approx(accuracy)
    assert (table["dataset"].unique() == ["bought", "questions"]).all()


def test_comparisons_are_paired_over_samples_and_clusters(study):
    comparisons = pd.read_csv(study.results("bh_routing_comparisons.csv"))
    rows = comparisons[(comparisons["dataset"] == "bought") & (comparisons["metric"] == "bought_accuracy")]
    assert len(rows) == 1
    assert (rows["samples"] == 10).all()
    assert (rows["clusters"] == 8).all()  # in each of the two tasks, two rows are the same
    assert rows["value_stderr"].notna().all()
    controls = pd.read_csv(study.results("bh_routing_same_compute.csv"))
    assert {"bought_accuracy", "questions_accuracy", "loss"} <= set(controls["metric"])


def test_the_report_names_them(study):
    text = study.results("bh_routing_report.md").read_text()
    assert "- **letters** (as wikitext): token perplexity is exp of" in text
    assert "- **bought**: lm-evaluation-harness's `own_weighted` with 1 example in the context" in text
    assert "bought accuracy" in text and "questions accuracy" in text
    assert "wikitext and letters" in text  # the mean perplexity of panel 1


def test_whole_documents_and_prompts(study):
    """Both protocols beside the usual ones: their scores reach the tables, the figure and the report."""
    results = pd.read_csv(study.results("bh_routing_results.csv")).set_index(["config", "dataset"])
    documents = results.xs("pages", level="dataset")
    assert (documents["word_perplexity"] > documents["token_perplexity"]).all()
    assert documents[["word_perplexity_stderr", "byte_perplexity", "bits_per_byte"]].notna().to_numpy().all()
    assert results.xs("prompts", level="dataset")["perplexity"].isna().all()
    configurations = pd.read_csv(study.results("bh_routing_configurations.csv"))
    averaged = [name for name in DATASETS if name != "prompts"]  # these enter no average
    assert configurations["datasets"].unique().tolist() == [",".join(averaged)]
    difficulty = pd.read_csv(study.results("bh_routing_difficulty.csv"))
    assert sorted(difficulty["difficulty"].unique()) == [1, 2, 3, 4]
    assert study.results("visualizations", "experts_by_difficulty.png").stat().st_size > 10_000
    report = study.results("bh_routing_report.md").read_text()
    assert "Experts by difficulty" in report and "word perplexity" in report
    summary = read(study.results("logs", "8experts_bh_a030_prompts.json"))
    assert [one["num_new_tokens"] for one in summary["samples"]] == [3] * 4


def test_what_makes_them_stale(study):
    """An edit of a task's file prepares what reads the folder; another metric only that data set."""
    assert study.plan(*TARGETS) == {}
    path = study.folder / "tasks" / "own_functions.py"
    before = path.read_text()
    path.write_text(before + "# changed\n")
    plan = study.plan(*TARGETS)
    assert plan["prepare_dataset"] == 2
    assert plan["run_experiment"] == 2 * 3
    path.write_text(before)
    assert study.plan(*TARGETS) == {}
    study.configure(datasets={"questions": study.settings["datasets"]["questions"] | {"metric": "acc"}})
    plan = study.plan(*TARGETS)
    assert (plan["prepare_dataset"], plan["run_experiment"]) == (1, 3)
