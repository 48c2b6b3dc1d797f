"""Adaptive configurations against their controls, on made-up summaries whose truth is known."""

import math

import numpy as np
import pytest
from adaptive_routing.analysis import statistics
from adaptive_routing.analysis.contrasts import CONTRASTS
from adaptive_routing.analysis.recommendations import QualityMargins
from adaptive_routing.analysis.same_compute import SAME_COMPUTE_COLUMNS, same_compute_table
from adaptive_routing.analysis.setting_effects import SETTING_EFFECT_COLUMNS, setting_effects_table
from adaptive_routing.analysis.tables import records

MARGINS = QualityMargins(perplexity=0.02, accuracy=0.02)
SAMPLES = 120


def summary(config, dataset, losses, tokens, clusters, control=None, of=None, strategy="bh"):
    """A summary with what the comparison reads; losses and tokens per sample."""
    samples = []
    for i, (loss, count, cluster) in enumerate(zip(losses, tokens, clusters, strict=True)):
        one = {"sample_id": f"{dataset}_{i}", "loss": float(loss), "num_predicted_tokens": int(count)}
        one["cluster"] = int(cluster)
        if dataset == "lambada":
            one["correct"] = bool(loss < 3)
        if dataset == "hellaswag":
            one |= {"correct": bool(loss < 3), "gold": 1, "num_predicted_tokens": 4 * int(count)}
            one["log_likelihoods"] = [-99.0, -float(loss) * int(count), -50.0, -60.0]
        if dataset == "articles":
            one |= {"log_likelihood": -float(loss) * int(count), "num_words": 2 * int(count)}
        samples.append(one)
    total = sum(one["loss"] * count for one, count in zip(samples, tokens, strict=True))
    metrics = {
        "wikitext": {"perplexity": 1.0, "token_perplexity": math.exp(total / sum(tokens))},
        "articles": {"word_perplexity": math.exp(total / sum(tokens) / 2), "token_perplexity": 1.0},
    }.get(dataset, {f"{dataset}_accuracy": 0.5})
    if dataset == "prompts":
        metrics = {"prompt_perplexity": 1.0}
    head = {"config": config, "strategy": "control" if control else strategy, "dataset": dataset}
    return head | {"control": control, "control_of": of, "metrics": metrics, "samples": samples}


def study(
    effects,
    datasets=("wikitext", "lambada", "hellaswag"),
    configs=("16experts_bh_a030", "16experts_minp_p010"),
    noise=0.02,
    groups=SAMPLES,
    seed=0,
):
    """Summaries and metrics of adaptive configurations and their controls.

    effects: what token information, spread and layers add to the loss.
    """
    rng = np.random.default_rng(seed)
    token, spread, layers = effects
    means = {"layerwise": layers, "shuffled": layers + spread, None: layers + spread + token, "fixed": 0.0}
    summaries, experiments = [], []
    for dataset in datasets:
        tokens = rng.integers(5, 200, size=SAMPLES)
        base = rng.gamma(9, 1 / 3, size=SAMPLES)
        clusters = rng.integers(0, groups, size=SAMPLES) if groups < SAMPLES else np.arange(SAMPLES)
        for config in configs:
            for control, mean in means.items():
                losses = base + mean + rng.normal(0, noise, size=SAMPLES)
                name = f"{config}_{control}" if control else config
                of = config if control else None
                strategy = config.split("_")[1]
                summaries.append(summary(name, dataset, losses, tokens, clusters, control, of, strategy))
                experts = 3.0 + len(dataset) / 10
                experiments.append({"config": name, "dataset": dataset, "metrics": {"avg_experts": experts}})
    return summaries, experiments


def table_of(*arguments, **options):
    return same_compute_table(*study(*arguments, **options), MARGINS)


def test_one_row_per_contrast_and_metric_with_the_experts_of_that_data_set():
    table = table_of((0.1, 0.1, 0.1))
    assert list(table.columns) == SAME_COMPUTE_COLUMNS
    assert len(table) == 2 * 3 * 4 * 2
    assert set(table["config"]) == {"16experts_bh_a030", "16experts_minp_p010"}
    assert set(table["strategy"]) == {"bh", "minp"}
    deciding = table[table["deciding"]].groupby("dataset")["metric"].unique().map(list).to_dict()
    assert deciding == {
        "wikitext": ["token_perplexity"],
        "lambada": ["lambada_accuracy"],
        "hellaswag": ["hellaswag_accuracy"],
    }
    assert (table.loc[~table["deciding"], "metric"] == "loss").all()
    assert table.groupby("dataset")["avg_experts"].unique().map(list).to_dict() == {
        dataset: [3.0 + len(dataset) / 10] for dataset in ("wikitext", "lambada", "hellaswag")
    }
    for row in records(table):
        of = {"adaptive": row["config"]}
        own, reference = (of.get(role, f"{row['config']}_{role}") for role in CONTRASTS[row["contrast"]])
        assert (row["compared"], row["reference"]) == (own, reference)
        assert row["samples"] == row["clusters"] == SAMPLES


@pytest.mark.parametrize("groups", [SAMPLES, 15])
def test_the_contrasts_add_up_to_the_answer(groups):
    datasets = ("wikitext", "lambada", "hellaswag", "articles", "prompts")
    table = table_of((0.03, -0.02, 0.05), datasets=datasets, groups=groups)
    sums = table.pivot(index=["config", "dataset", "metric"], columns="contrast", values="difference")
    assert len(sums) == 2 * (4 * 2 + 1)
    np.testing.assert_allclose(
        sums["token"] + sums["spread"] + sums["layers"], sums["answer"], rtol=0, atol=1e-12
    )


def test_the_score_weighs_every_token_the_same():
    summaries, experiments = study((0.1, 0.0, 0.0), datasets=("wikitext",), groups=15)
    row = records(same_compute_table(summaries, experiments, MARGINS))[0]
    assert (row["contrast"], row["metric"]) == ("answer", "token_perplexity")
    own, fixed = (
        next(s["samples"] for s in summaries if s["config"] == name)
        for name in (row["compared"], row["reference"])
    )
    tokens = np.array([one["num_predicted_tokens"] for one in own])
    loss, other = (np.array([one["loss"] for one in samples]) for samples in (own, fixed))
    difference = np.sum((loss - other) * tokens) / tokens.sum()
    assert row["difference"] == pytest.approx(difference)
    assert row["ratio"] == pytest.approx(math.exp(difference))
    assert row["value"] == pytest.approx(math.exp(np.sum(loss * tokens) / tokens.sum()))
    assert row["ratio"] == pytest.approx(row["value"] / row["reference_value"])
    residuals = (loss - other - difference) * tokens
    by_cluster = np.bincount([one["cluster"] for one in own], residuals)
    count = len({one["cluster"] for one in own})
    stderr = math.sqrt(count / (count - 1) * np.sum(by_cluster**2)) / tokens.sum()
    assert row["stderr"] == pytest.approx(stderr)
    assert row["clusters"] == count < row["samples"]
    assert row["test"] == "clustered linearised paired t-test"
    assert (row["ratio_ci_low"], row["ratio_ci_high"]) == pytest.approx(
        (math.exp(row["ci_low"]), math.exp(row["ci_high"]))
    )


def test_the_loss_of_multiple_choice_is_that_of_the_right_choices_tokens():
    summaries, experiments = study((0.2, 0.0, 0.0), datasets=("hellaswag",), configs=("16experts_bh_a030",))
    table = same_compute_table(summaries, experiments, MARGINS)
    row = table[(table["contrast"] == "answer") & (table["metric"] == "loss")].iloc[0]
    own = next(s["samples"] for s in summaries if s["config"] == row["compared"])
    tokens = np.array([one["num_predicted_tokens"] // 4 for one in own])
    totals = np.array([-one["log_likelihoods"][1] for one in own])
    assert row["value"] == pytest.approx(totals.sum() / tokens.sum())


@pytest.mark.parametrize(
    "token, verdict", [(-0.1, "better"), (0.0, "same"), (0.1, "worse")], ids=["worth", "nothing", "harmful"]
)
def test_made_up_token_information_gets_its_verdict(token, verdict):
    table = table_of((token, 0.0, 0.0), noise=0.01)
    rows = table[table["metric"] == "token_perplexity"].set_index("contrast")["verdict"]
    assert set(rows["token"]) == set(rows["answer"]) == {verdict}
    assert set(rows["spread"]) == set(rows["layers"]) == {"same"}
    # Every loss says so, too.
    losses = table[(table["metric"] == "loss") & (table["contrast"] == "token")]
    assert set(losses["verdict"]) == {verdict}


def test_better_is_more_accurate():
    table = table_of((-0.6, 0.0, 0.0), datasets=("lambada",), noise=0.05)
    rows = table[table["contrast"] == "answer"].set_index("metric")
    assert set(rows["verdict"]) == {"better"}
    assert (rows.loc["lambada_accuracy", "difference"] > 0).all()
    assert (rows.loc["loss", "difference"] < 0).all()
    assert set(rows.loc["lambada_accuracy", "test"]) == {statistics.MCNEMAR}


def test_wide_intervals_leave_the_question_open():
    table = table_of((0.0, 0.0, 0.0), noise=1.0)
    assert set(table["verdict"]) == {"open"}


def test_the_same_computation_is_the_same_whatever_the_margin():
    summaries, experiments = study((0.0, 0.0, 0.0), noise=0.0)
    table = same_compute_table(summaries, experiments, QualityMargins(perplexity=0.0, accuracy=0.0))
    assert table["identical"].all() and table["difference"].eq(0).all()
    assert set(table["verdict"]) == {"same"}


def test_families_of_the_answer_and_of_the_decomposition():
    table = table_of((0.004, 0.004, 0.002))
    for _, family in table.groupby([table["contrast"] == "answer", "deciding"]):
        expected = statistics.corrected_p_values(family["p_value"].tolist(), "holm")
        assert family["p_holm"].tolist() == pytest.approx(expected)
    answers = table[(table["contrast"] == "answer") & table["deciding"]]
    assert len(answers) == 2 * 3
    significant = table["p_holm"] < 0.05
    assert 0 < significant.sum() < len(table)
    assert ((table["ci_low"] >= 0) | (table["ci_high"] <= 0))[significant].all()
    assert ((table["ci_low"] <= 0) & (table["ci_high"] >= 0))[~significant].all()


def test_what_is_missing_leaves_out_its_contrasts():
    summaries, experiments = study((0.1, 0.0, 0.0), datasets=("wikitext",))
    kept = [s for s in summaries if s["control"] not in ("layerwise", "shuffled")]
    table = same_compute_table(kept, experiments, MARGINS)
    assert set(table["contrast"]) == {"answer"} and len(table) == 4
    alone = [s for s in summaries if not s["control"]]
    nothing = same_compute_table(alone, experiments, MARGINS)
    assert nothing.empty and list(nothing.columns) == SAME_COMPUTE_COLUMNS
    # A control without its configuration, and samples that not all have.
    orphans = [s for s in summaries if s["control"]]
    assert same_compute_table(orphans, experiments, MARGINS).empty
    summaries[1]["samples"] = summaries[1]["samples"][10:]
    table = same_compute_table(summaries, experiments, MARGINS)
    of_first = table[table["config"] == summaries[0]["config"]]
    assert of_first["samples"].eq(SAMPLES - 10).all()


def test_a_single_cluster_answers_nothing():
    summaries, experiments = study((0.5, 0.0, 0.0), datasets=("wikitext",))
    for one in summaries:
        for sample in one["samples"]:
            sample["cluster"] = 0
    table = same_compute_table(summaries, experiments, MARGINS)
    assert table[["p_value", "p_holm", "ci_low", "ci_high"]].isna().all(axis=None)
    assert set(table["verdict"]) == {"open"} and table["clusters"].eq(1).all()


def test_effects_of_alpha_and_max_k_are_paired_differences_between_the_ends():
    configs = [f"{k}experts_bh_a0{a}" for k in (8, 16) for a in (30, 40, 60)]
    summaries, _ = study((0.0, 0.0, 0.0), configs=(*configs, "8experts_bh_a030_ncentred"))
    for one in summaries:
        max_k, _, end = one["config"].partition("experts_bh_a")
        one |= {"k_or_max_k": int(max_k), "alpha": int(end[:3]) / 100}
        if one["control"] is None and one["alpha"] == 0.6 and one["dataset"] == "wikitext":
            for sample in one["samples"]:
                sample["loss"] -= 0.1
    table = setting_effects_table(summaries)
    assert list(table.columns) == SETTING_EFFECT_COLUMNS
    assert set(table["family"]) == {"bh"}  # one configuration with centred logits has no other end
    alpha = table[table["setting"] == "alpha"]
    assert set(zip(alpha["held_value"], alpha["dataset"], strict=True)) == {
        (k, dataset) for k in (8, 16) for dataset in ("wikitext", "lambada", "hellaswag")
    }
    assert (alpha["from_value"] == 0.3).all() and (alpha["to_value"] == 0.6).all()
    assert set(table.loc[table["setting"] == "k_or_max_k", "held_value"]) == {0.3, 0.4, 0.6}
    by_name = {(one["config"], one["dataset"]): one["samples"] for one in summaries}
    for row in records(table[table["dataset"] == "wikitext"]):
        ends = [by_name[row[name], "wikitext"] for name in ("compared", "reference")]
        tokens = [sample["num_predicted_tokens"] for sample in ends[0]]
        losses = [[s["loss"] * n for s, n in zip(end, tokens, strict=True)] for end in ends]
        assert row["difference"] == pytest.approx((sum(losses[0]) - sum(losses[1])) / sum(tokens))
        raised = row["setting"] == "alpha"
        assert (row["p_holm"] < 0.05) == raised and (row["ci_high"] < 0) == raised
    assert setting_effects_table([one for one in summaries if one["alpha"] == 0.3]).setting.unique() == [
        "k_or_max_k"
    ]
