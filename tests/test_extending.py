"""docs/extending.md at its word: its blocks in a copy of the project, and the study that it ends with."""

import json
import re
import shutil
import subprocess
import sys

import jsonschema
import numpy as np
import pandas as pd
import pytest
import scipy
import yaml
from adaptive_routing.routing_log import RoutingLog
from study_folder import REPOSITORY, StudyFolder

PAGE = REPOSITORY / "docs/extending.md"
WHERE = r"In `(?P<file>[^`\n]+)`, (?P<side>after|before) the line with `(?P<line>[^`\n]+)`"
BLOCK = re.compile(
    rf"^(?:New file `(?P<new>[^`\n]+)`|{WHERE}):\n\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
THRESHOLD, BH, TOP_K = "16experts_threshold_t005", "8experts_bh_a030", "8experts_topk_baseline"
CONFIGS = [TOP_K, BH, THRESHOLD]


def blocks():
    """The page's blocks; all but shell commands, which name no language, say where they go."""
    page = PAGE.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(page))
    assert len(found) == len(re.findall(r"^```\w", page, re.MULTILINE))
    return found


def apply_page(project):
    """Put every block of the page into a project where the page says."""
    for block in blocks():
        path = project / (block["new"] or block["file"])
        if block["new"]:
            assert not path.exists()
            path.write_text(block["text"])
            continue
        lines = path.read_text().splitlines(keepends=True)
        (place,) = [i for i, line in enumerate(lines) if block["line"] in line]
        place += block["side"] == "after"
        path.write_text("".join([*lines[:place], block["text"], *lines[place:]]))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with everything that the page adds."""
    project = tmp_path_factory.mktemp("extended") / "project"
    (project / "resources").mkdir(parents=True)
    folders = ("configs", "envs", "profiles", "report", "rules", "schemas", "workflow_scripts")
    for name in (*folders, "resources/datasets"):
        shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, project / name)
    (project / "resources/embedded_model").symlink_to(REPOSITORY / "resources/embedded_model")
    apply_page(project)
    return project


@pytest.fixture(scope="module")
def study(project):
    """The study of the page, of few configurations and samples, in the copy."""
    study = StudyFolder(project, project)
    study.configure(**yaml.safe_load((project / "configs/extended.yaml").read_text()))
    study.configure(strategies={"bh": {"max_k": [8], "alpha": [0.30]}}, evaluation={"max_samples": 3})
    study.configure(datasets={"wikitext": None, "hellaswag": None})
    study.snakemake("report")
    return study


def routing_logs(study):
    """(configuration, data set, log) of every experiment."""
    for config in CONFIGS:
        for dataset in ("lambada", "piqa"):
            with RoutingLog(study.results(f"logs/{config}_{dataset}_internal_routing.safetensors")) as log:
                yield config, dataset, log


def probabilities(sample, layer):
    """Router probabilities of a sample's tokens in float64."""
    return scipy.special.softmax(sample.router_logits(layer).astype(np.float64), axis=-1)


def test_what_the_page_adds_keeps_the_projects_style(project):
    names = sorted({name for one in blocks() if (name := one["new"] or one["file"]).endswith(".py")})
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", *names],
            cwd=project, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_new_configuration_has_a_row_on_every_data_set(study):
    table = pd.read_csv(study.results("bh_routing_results.csv"))
    assert set(zip(table["config"], table["dataset"], strict=True)) == {
        (config, dataset) for config in CONFIGS for dataset in ("lambada", "piqa")
    }
    configurations = pd.read_csv(study.results("bh_routing_configurations.csv"))
    assert configurations["config"].tolist() == CONFIGS
    row = configurations.set_index("config").loc[THRESHOLD]
    assert row[["strategy", "k_or_max_k"]].tolist() == ["threshold", 16]
    assert study.plan("report") == {}


def test_the_new_strategy_selects_the_experts_with_probability_t(study):
    decided = 0
    for config, _, log in routing_logs(study):
        if config != THRESHOLD:
            continue
        for index in range(len(log)):
            sample = log.sample(index)
            assert sample.p_values(0) is None
            for layer in range(sample.expert_counts.shape[1]):
                of_experts = probabilities(sample, layer)
                near = (abs(of_experts - 0.05) < 1e-6).any(axis=1)  # where float32 may decide otherwise
                expected = np.clip((of_experts >= 0.05).sum(axis=1), 1, 16)
                assert (sample.expert_counts[:, layer] == expected)[~near].all()
                assert (sample.selected(layer).sum(axis=1) == sample.expert_counts[:, layer]).all()
                decided += int(((expected > 1) & (expected < 16) & ~near).sum())
    assert decided > 50


def test_the_new_data_set_is_scored(study):
    rows = [json.loads(line) for line in (study.project / "resources/datasets/piqa.jsonl").open()]
    table = pd.read_csv(study.results("bh_routing_configurations.csv")).set_index("config")
    for config in CONFIGS:
        summary = json.loads(study.results(f"logs/{config}_piqa.json").read_text())
        samples = summary["samples"]
        assert [sample["gold"] for sample in samples] == [row["label"] for row in rows[:3]]
        chosen = []
        for sample, row in zip(samples, rows, strict=False):
            by_length = np.divide(sample["log_likelihoods"], [len(row["sol1"]), len(row["sol2"])])
            chosen.append(int(np.argmax(by_length)) == row["label"])
        assert summary["metrics"]["piqa_accuracy"] == pytest.approx(np.mean(chosen))
        assert table.loc[config, "piqa_accuracy"] == pytest.approx(np.mean(chosen))
    comparisons = pd.read_csv(study.results("bh_routing_comparisons.csv"))
    assert set(comparisons.loc[comparisons["metric"] == "piqa_accuracy", "config"]) == {BH, THRESHOLD}


def test_the_new_metric_is_in_the_tables(study):
    table = pd.read_csv(study.results("bh_routing_results.csv")).set_index(["config", "dataset"])
    for config, dataset, log in routing_logs(study):
        held = [
            (probabilities(sample, layer) * sample.selected(layer)).sum(axis=1)
            for sample in map(log.sample, range(len(log)))
            for layer in range(sample.expert_counts.shape[1])
        ]
        expected = np.concatenate(held).mean()
        assert 0.05 < expected < 1
        assert table.loc[(config, dataset), "selected_probability"] == pytest.approx(expected, rel=1e-5)
    means = pd.read_csv(study.results("bh_routing_configurations.csv")).set_index("config")
    for config in CONFIGS:
        expected = table.loc[config, "selected_probability"].mean()
        assert means.loc[config, "selected_probability"] == pytest.approx(expected)


def test_every_json_file_follows_its_schema(study):
    kinds = {"logs/*_internal_routing.json": "internal_routing", "metrics/*.json": "metrics"}
    kinds["logs/*[!g].json"] = "summary"
    for pattern, kind in kinds.items():
        schema = json.loads((study.project / f"schemas/{kind}.schema.json").read_text())
        paths = list(study.results().glob(pattern))
        assert len(paths) == 6
        for path in paths:
            jsonschema.validate(json.loads(path.read_text()), schema)


def test_the_new_panel_and_the_new_strategy_are_in_the_report(study):
    panel = "visualizations/panel_10_selected_probability.png"
    assert study.results(panel).read_bytes().startswith(b"\x89PNG")
    report = study.results("bh_routing_report.md").read_text()
    section = report.split("### 10. Router probability of the selected experts")[1].split("##")[0]
    table = pd.read_csv(study.results("bh_routing_configurations.csv"))
    least = table.loc[table["selected_probability"].idxmin()]
    assert f"from {least['selected_probability']:.2f} (`{least['config']}`)" in section
    assert f"]({panel})" in section
    assert f"`{THRESHOLD}`" in report
    assert "1 top-k configuration, 1 BH configuration and 1 threshold configuration" in report
    assert "router probability of the selected experts" in report.split("## Method")[1]
    assert study.results("bh_routing_report.html").read_text().count("<img") == 12
    picture = study.results("visualizations/bh_comprehensive_comparison.svg").read_text()
    assert "threshold t 0.05" in picture and "10  Router probability" in picture
    assert THRESHOLD in study.results("routing_atlas.html").read_text()
    own = study.folder / "snakemake_report.html"
    study.snakemake("report", "--report", own)
    assert "10 Router probability of the selected experts" in own.read_text()


def test_an_edit_of_the_new_strategy_reruns_its_experiments_alone(study):
    path = study.project / "workflow_scripts/adaptive_routing/routing/threshold.py"
    text = path.read_text()
    path.write_text(text + "\nEDITED = True\n")
    plan = study.plan()
    path.write_text(text)
    assert plan["run_experiment"] == 2 and plan["compute_metrics"] == 2
    assert not {"collect_router_logits", "fit_null_distribution", "prepare_dataset"} & set(plan)


def test_a_strategy_without_p_values_needs_no_null_distribution(study):
    plan = study.plan(f"results/extended/logs/{THRESHOLD}_piqa.json", "--forceall")
    assert plan == {"inspect_model": 1, "prepare_dataset": 1, "run_experiment": 1}
    assert "fit_null_distribution" in study.plan(f"results/extended/logs/{BH}_piqa.json", "--forceall")
