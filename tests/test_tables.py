"""The results tables of a synthetic study, whole and with experiments missing."""

import csv
import math
import statistics as python_statistics
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
from adaptive_routing.analysis import metrics, tables
from adaptive_routing.data.tasks import wikitext_documents
from adaptive_routing.system.json_files import read_json, to_json, write_json
from adaptive_routing.system.tensor_files import TensorFile
from scipy import stats


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return synthetic.write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def summaries(study):
    return [read_json(path) for path in study.summaries]


@pytest.fixture(scope="module")
def experiments(study, summaries):
    results = []
    for summary, path in zip(summaries, study.tensors, strict=True):
        with TensorFile(path) as tensors:
            results.append(metrics.compute_metrics(summary, tensors))
    return results


def one(experiments, config, dataset):
    (found,) = [e for e in experiments if (e["config"], e["dataset"]) == (config, dataset)]
    return found["metrics"]


def test_experiments_stand_in_the_order_given_with_all_metrics(experiments):
    table = tables.experiments_table(experiments)
    names = [metric.name for metric in metrics.ALL_METRICS]
    assert list(table.columns) == [*metrics.HEAD, *names]
    assert len(table) == 60
    for row, experiment in zip(tables.records(table), experiments, strict=True):
        expected = {key: experiment[key] for key in metrics.HEAD} | experiment["metrics"]
        assert row == expected


def test_a_configuration_combines_its_data_sets(experiments):
    rows = {row["config"]: row for row in tables.records(tables.configurations_table(experiments))}
    assert len(rows) == 20
    config = "16experts_bh_a040"
    wikitext, lambada, hellaswag = (one(experiments, config, d) for d in ("wikitext", "lambada", "hellaswag"))
    every = (wikitext, lambada, hellaswag)
    row = rows[config]
    assert row["datasets"] == "wikitext,lambada,hellaswag"
    assert row["perplexity"] == wikitext["perplexity"]
    for name in ("perplexity", "token_perplexity"):
        assert row[f"{name}_stderr"] == wikitext[f"{name}_stderr"] > 0
    assert row["target_perplexity_stderr"] == lambada["target_perplexity_stderr"] > 0
    assert row["lambada_accuracy"] == lambada["avg_task_accuracy"]
    assert row["hellaswag_accuracy_stderr"] == hellaswag["avg_task_accuracy_stderr"]
    mean = (lambada["avg_task_accuracy"] + hellaswag["avg_task_accuracy"]) / 2
    assert row["avg_task_accuracy"] == pytest.approx(mean)
    errors = (lambada["avg_task_accuracy_stderr"], hellaswag["avg_task_accuracy_stderr"])
    assert row["avg_task_accuracy_stderr"] == pytest.approx(math.hypot(*errors) / 2)
    for name in ("avg_experts", "ceiling_hit_rate", "latency_ms_per_token", "gini_coefficient"):
        assert row[name] == pytest.approx(python_statistics.fmean(m[name] for m in every))
    assert row["min_experts"] == min(m["min_experts"] for m in every)
    assert row["max_experts"] == max(m["max_experts"] for m in every)
    assert row["total_tokens"] == sum(m["total_tokens"] for m in every)
    seconds = sum(m["forward_seconds"] for m in every)
    assert row["tokens_per_second"] == pytest.approx(row["total_tokens"] / seconds)
    assert rows["8experts_topk_baseline"]["ceiling_hit_rate"] is None
    assert rows["8experts_topk_baseline"]["alpha"] is None


def test_an_unknown_standard_error_of_a_data_set_makes_that_of_the_mean_unknown(experiments):
    config = "16experts_bh_a040"
    changed = [dict(e, metrics=dict(e["metrics"])) for e in experiments if e["config"] == config]
    one(changed, config, "lambada").update(avg_task_accuracy_stderr=None)
    (row,) = tables.records(tables.configurations_table(changed))
    assert row["avg_task_accuracy"] is not None
    assert row["hellaswag_accuracy_stderr"] is not None
    assert row["avg_task_accuracy_stderr"] is row["lambada_accuracy_stderr"] is None


def test_layers(experiments):
    table = tables.layers_table(experiments)
    assert len(table) == 60 * 4
    assert table["layer"].tolist() == list(range(4)) * 60
    for experiment in experiments[-3:]:
        own = table[(table["config"] == experiment["config"]) & (table["dataset"] == experiment["dataset"])]
        assert own["floor_hit_rate"].tolist() == experiment["per_layer"]["floor_hit_rate"]


def test_comparisons_pair_samples_by_their_id(summaries, study):
    # Another order of samples, and one that only this configuration has, must not matter.
    shuffled = [dict(s) for s in summaries]
    for summary in shuffled:
        if summary["config"] != study.baseline:
            extra = dict(summary["samples"][0], sample_id="another", loss=99.0)
            summary["samples"] = [extra, *reversed(summary["samples"])]
    plain, moved = (tables.comparisons_table(s, study.baseline) for s in (summaries, shuffled))
    assert moved["samples"].eq(12).all()
    np.testing.assert_allclose(moved["difference"], plain["difference"], atol=1e-12)
    np.testing.assert_allclose(moved["p_value"], plain["p_value"], rtol=1e-9)


def test_comparisons_have_a_row_for_the_score_and_one_for_the_loss(summaries, study):
    table = tables.comparisons_table(summaries, study.baseline)
    assert list(table.columns) == tables.COMPARISON_COLUMNS
    assert study.baseline not in set(table["config"])
    kinds = table.groupby("dataset")["metric"].agg(lambda metrics: list(metrics.unique())).to_dict()
    assert kinds == {
        "wikitext": ["token_perplexity", "loss"],
        "lambada": ["lambada_accuracy", "loss"],
        "hellaswag": ["hellaswag_accuracy", "loss"],
    }
    assert len(table) == 19 * 3 * 2

    scores = {(s["config"], s["dataset"]): s["metrics"] for s in summaries}
    for row in tables.records(table):
        if row["metric"] != "loss":
            assert row["value"] == pytest.approx(scores[row["config"], row["dataset"]][row["metric"]])
            baseline = scores[study.baseline, row["dataset"]]
            assert row["baseline_value"] == pytest.approx(baseline[row["metric"]])
            assert row["baseline_value_stderr"] == pytest.approx(baseline[f"{row['metric']}_stderr"])
        if "accuracy" not in row["metric"]:
            assert row["ratio_ci_low"] <= row["ratio"] <= row["ratio_ci_high"]


def test_the_bh_configurations_on_all_data_sets_are_one_family_of_corrections(summaries, study):
    table = tables.comparisons_table(summaries, study.baseline)
    bh = table[table["config"].str.contains("_bh_")]
    families = dict(list(bh.groupby(bh["metric"] == "loss")))
    assert len(families) == 2
    for family in families.values():
        assert len(family) == 16 * 3
        assert family["dataset"].nunique() == 3
        for column, name in (("p_value", "p"), ("p_wilcoxon", "p_wilcoxon"), ("p_bootstrap", "p_bootstrap")):
            tested = family[family[column].notna()]
            assert family.loc[family[column].isna(), [f"{name}_holm", f"{name}_bh"]].isna().all(axis=None)
            assert len(tested) == (
                16 if column == "p_wilcoxon" and "loss" not in set(family["metric"]) else 48
            )
            expected = stats.false_discovery_control(tested[column].astype(float))
            np.testing.assert_allclose(tested[f"{name}_bh"].astype(float), expected)
            assert tested[f"{name}_holm"].min() == pytest.approx(min(1, len(tested) * tested[column].min()))
            assert (tested[f"{name}_holm"] >= tested[f"{name}_bh"] - 1e-12).all()


def test_an_interval_never_contradicts_the_corrected_test(summaries, study):
    # Losses far apart, so that some differences are significant after the correction.
    apart = []
    for i, one in enumerate(summaries):
        one = dict(one, samples=[dict(sample) for sample in one["samples"]])
        for j, sample in enumerate(one["samples"]):
            sample["loss"] += (i % 7) * 0.05 * (1 + 0.3 * (j % 3))
        apart.append(one)
    table = tables.comparisons_table(apart, study.baseline)
    significant = table["p_holm"] < 0.05
    assert 10 < significant.sum() < len(table) - 10
    above, below = table["ci_low"] >= 0, table["ci_high"] <= 0
    assert ((above | below)[significant]).all()
    assert ((table["ci_low"] <= 0) & (table["ci_high"] >= 0))[~significant].all()
    assert (table["ci_low"] <= table["difference"]).all() and (table["difference"] <= table["ci_high"]).all()
    losses = table[table["metric"] == "loss"]
    np.testing.assert_allclose(losses["ratio_ci_high"].astype(float), np.exp(losses["ci_high"].astype(float)))
    # Bonferroni's t interval, where Holm changes nothing.
    bh = losses[losses["config"].str.contains("_bh_")]
    row = bh.loc[bh["p_value"].idxmax()]
    stderr = abs(row["difference"]) / stats.t.isf(row["p_value"] / 2, 11)
    reach = stats.t.isf(0.025 / 48, 11) * stderr
    assert row["ci_high"] - row["difference"] == pytest.approx(reach)


def test_rows_of_one_cluster_count_once(summaries, study):
    def of(clusters):
        chosen = [dict(one, samples=[dict(sample) for sample in one["samples"]]) for one in summaries]
        for one in chosen:
            for sample, cluster in zip(one["samples"], clusters, strict=True):
                sample["cluster"] = cluster
        return tables.comparisons_table(chosen, study.baseline)

    plain, single = tables.comparisons_table(summaries, study.baseline), of(range(12))
    for name in plain.columns:
        if plain[name].dtype == float:
            np.testing.assert_allclose(single[name], plain[name], rtol=1e-12, atol=1e-12)
        else:
            assert plain[name].equals(single[name])
    assert plain["clusters"].eq(12).all() and not plain["identical"].any()
    pairs = of([i // 2 for i in range(12)])
    assert pairs["clusters"].eq(6).all() and pairs["samples"].eq(12).all()
    assert pairs["test"].str.startswith("clustered ").all()
    np.testing.assert_allclose(pairs["difference"], plain["difference"], rtol=1e-9, atol=1e-12)
    one = of([0] * 12)
    assert one[["ci_low", "ci_high", "value_stderr"]].isna().all(axis=None)
    accuracies = one["metric"].str.endswith("_accuracy")
    assert one.loc[~accuracies, ["p_value", "p_holm"]].isna().all(axis=None)
    assert set(one.loc[accuracies, "p_value"].dropna()) <= {1.0}  # no sample differs


def test_identical_losses_are_named(summaries, study):
    one = next(s for s in summaries if s["config"] == study.baseline and s["dataset"] == "wikitext")
    twin = dict(one, config="another")
    (row, _) = tables.records(tables.comparisons_table([one, twin], study.baseline))
    assert row["identical"] is True
    assert (row["difference"], row["p_holm"], row["ci_low"], row["ci_high"]) == (0, 1, 0, 0)


def test_a_data_set_without_a_score_of_its_own_is_compared_by_its_loss(tmp_path):
    study = synthetic.write_study(
        tmp_path, datasets=("wikitext", "prompts"), max_ks=(2, 4), alphas=(0.5,), num_experts=8
    )
    summaries = [read_json(path) for path in study.summaries]
    table = tables.comparisons_table(summaries, study.baseline)
    kinds = table.groupby("dataset")["metric"].agg(lambda metrics: list(metrics.unique())).to_dict()
    assert kinds == {"wikitext": ["token_perplexity", "loss"], "prompts": ["loss"]}
    results = []
    for summary, path in zip(summaries, study.tensors, strict=True):
        with TensorFile(path) as tensors:
            results.append(metrics.compute_metrics(summary, tensors))
    for row in tables.records(tables.configurations_table(results)):
        assert row["perplexity"] == one(results, row["config"], "wikitext")["perplexity"]
        assert row["target_perplexity"] is None
        assert row["datasets"] == "wikitext"


def as_articles(summaries):
    """Summaries of wikitext as those of whole articles, of unequal lengths in words."""
    articles = []
    for one in summaries:
        if one["dataset"] != "wikitext":
            continue
        one = dict(one, metrics=dict(one["metrics"]), samples=[dict(sample) for sample in one["samples"]])
        for i, sample in enumerate(one["samples"]):
            words = 10 + 7 * (i % 5)
            sample |= {
                "log_likelihood": -sample["loss"] * words * 1.3,
                "num_words": words,
                "num_bytes": 5 * words,
            }
        one["metrics"] |= wikitext_documents.metrics(one["samples"], "wikitext")
        articles.append(one)
    return articles


def test_whole_articles_are_compared_by_word_perplexity(summaries, study):
    articles = as_articles(summaries)
    table = tables.comparisons_table(articles, study.baseline)
    assert table["metric"].unique().tolist() == ["word_perplexity", "loss"]
    scores = {one["config"]: one for one in articles}
    reference = scores[study.baseline]
    for row in tables.records(table[table["metric"] == "word_perplexity"]):
        own = scores[row["config"]]
        assert row["value"] == pytest.approx(own["metrics"]["word_perplexity"])
        assert row["value_stderr"] == pytest.approx(own["metrics"]["word_perplexity_stderr"])
        assert row["baseline_value"] == pytest.approx(reference["metrics"]["word_perplexity"])
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline_value"])
        assert row["test"] == "linearised paired t-test"
        # The ratio estimator's linearisation by hand: residuals of the paired differences.
        x = np.array([sample["num_words"] for sample in own["samples"]], dtype=float)
        pairs = zip(reference["samples"], own["samples"], strict=True)
        d = np.array([a["log_likelihood"] - b["log_likelihood"] for a, b in pairs])
        residuals = (d - d.sum() / x.sum() * x) / x.mean()
        error = np.sqrt(np.sum(residuals**2) / (len(x) * (len(x) - 1)))
        assert row["p_value"] == pytest.approx(2 * stats.t.sf(abs(d.sum() / x.sum()) / error, len(x) - 1))
        assert (row["ratio_ci_low"] >= 1 or row["ratio_ci_high"] <= 1) == (row["p_holm"] < 0.05)

    # An exp too large in one configuration leaves it without the score; in the baseline, all without it.
    other = articles[-1]
    other["metrics"]["word_perplexity"] = None
    kinds = tables.comparisons_table(articles, study.baseline).groupby("config")["metric"].agg(list)
    assert kinds[other["config"]] == ["loss"]
    assert kinds.drop(other["config"]).map(lambda metrics: metrics == ["word_perplexity", "loss"]).all()
    reference["metrics"]["word_perplexity"] = None
    table = tables.comparisons_table(articles, study.baseline)
    assert table["metric"].unique().tolist() == ["token_perplexity", "loss"]


def test_tables_of_what_there_is(experiments, summaries, study):
    kept = [e for e in experiments if e["dataset"] == "wikitext" or e["config"] == "8experts_bh_a030"]
    rows = {row["config"]: row for row in tables.records(tables.configurations_table(kept))}
    assert rows["8experts_bh_a040"]["lambada_accuracy"] is None
    assert rows["8experts_bh_a040"]["avg_task_accuracy"] is None
    assert rows["8experts_bh_a030"]["lambada_accuracy"] is not None

    only_wikitext = [e for e in experiments if e["dataset"] == "wikitext"]
    assert tables.configurations_table(only_wikitext)["avg_task_accuracy"].isna().all()

    # Without the baseline on a data set there is nothing to compare with.
    without = [s for s in summaries if (s["config"], s["dataset"]) != (study.baseline, "lambada")]
    assert set(tables.comparisons_table(without, study.baseline)["dataset"]) == {"wikitext", "hellaswag"}
    nothing = tables.comparisons_table(without[:1], study.baseline)
    assert nothing.empty
    assert list(nothing.columns) == tables.COMPARISON_COLUMNS


def test_missing_values_are_empty_in_csv_and_null_in_json(experiments, tmp_path):
    table = tables.experiments_table(experiments)
    tables.write_table(table, tmp_path / "t.csv", tmp_path / "t.json")
    with open(tmp_path / "t.csv", newline="") as handle:
        from_csv = list(csv.DictReader(handle))
    from_json = read_json(tmp_path / "t.json")
    for text, values, experiment in zip(from_csv, from_json, experiments, strict=True):
        for name, value in experiment["metrics"].items():
            assert values[name] == value
            assert (text[name] == "") == (value is None)
            assert value is None or float(text[name]) == value


def run_script(folder, snakemake, root):
    """Run a rule's script as Snakemake does: with an object of that name in its globals."""
    code = (
        "import sys, runpy, json; from types import SimpleNamespace as N\n"
        "spec = json.loads(sys.argv[2], object_hook=lambda d: N(**d))\n"
        "spec.output = type('O', (list,), vars(spec.output))(vars(spec.output).values())\n"
        "runpy.run_path(sys.argv[1], {'snakemake': spec})"
    )
    script = root / "workflow_scripts" / f"{snakemake.pop('script')}.py"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), to_json(snakemake).decode()],
        cwd=folder,
        env={"PYTHONPATH": str(root / "workflow_scripts")},
        capture_output=True,
        text=True,
    )
    return SimpleNamespace(status=done.returncode, stderr=done.stderr)


def test_the_scripts_make_every_file(study, experiments, tmp_path, request):
    root = request.config.rootpath
    job = {
        "script": "compute_metrics",
        "input": {"summary": str(study.summaries[-1]), "tensors": str(study.tensors[-1])},
        "output": {"metrics": "metrics.json", "atlas": "atlas.safetensors"},
        "log": ["metrics.log"],
    }
    assert run_script(tmp_path, dict(job), root).status == 0
    assert read_json(tmp_path / "metrics.json") == experiments[-1]

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(study.tensors[-1].read_bytes()[:-10])
    job["input"]["tensors"], job["output"] = (
        str(cut),
        {"metrics": "not_made.json", "atlas": "not_made.safetensors"},
    )
    failed = run_script(tmp_path, dict(job), root)
    assert failed.status == 1
    assert "cut.safetensors" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "not_made.json").exists()
    assert not (tmp_path / "not_made.safetensors").exists()

    paths = []
    for experiment in experiments:
        paths.append(str(tmp_path / f"{experiment['config']}_{experiment['dataset']}.json"))
        write_json(paths[-1], experiment)
    output = {
        f"{name}_{suffix}": f"{name}.{suffix}"
        for name in ("experiments", "configurations", "comparisons")
        for suffix in ("csv", "json")
    }
    job = {
        "script": "tabulate_results",
        "input": {"metrics": paths, "summaries": [str(path) for path in study.summaries]},
        "output": output | {"layers_csv": "layers.csv", "setting_effects_csv": "setting_effects.csv"},
        "params": {"baseline": study.baseline},
        "log": ["tables.log"],
    }
    result = run_script(tmp_path, job, root)
    assert result.status == 0, result.stderr
    rows = {name: len(read_json(tmp_path / f"{name}.json")) for name in ("experiments", "configurations")}
    assert rows == {"experiments": 60, "configurations": 20}
    assert len(read_json(tmp_path / "comparisons.json")) == 19 * 3 * 2
    assert len((tmp_path / "layers.csv").read_text().splitlines()) == 1 + 60 * 4
