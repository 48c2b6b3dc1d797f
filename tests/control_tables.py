"""Made-up studies with controls: the tables `same_compute` and `where`, with the numbers a test wants."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import results_tables
from adaptive_routing.analysis.study import MORE_COLUMNS, make_study

PARTS = ("token", "spread", "layers")
METRICS = {"wikitext": "token_perplexity", "prompts": "loss"}
DIVISIONS = {
    "position": ["0 to 15", "16 to 63", "64 and later"],
    "frequency": ["rarest fifth", "second fifth", "third fifth", "fourth fifth", "most frequent fifth"],
    "word_start": ["begins a word", "continues a word"],
    "baseline_loss": ["below 0.1", "0.1 to 1", "1 to 3", "above 3"],
    "experts": ["1", "2 to 3", "4 to 7", "8 and more"],
}


def with_controls(study, parts, half_width=0.004, margin=0.02, where=None):
    """A made-up study with controls.

    parts: {rule or "": (token, spread, layers)}, each a gain of quality in nats per token and, a tenth of
    it, in accuracy; "" stands for every other rule. half_width: of the simultaneous intervals, in nats;
    where: function of (config, by, bin's number) to a difference in nats, by default 0.
    """
    rows = []
    for _, configuration in study.adaptive.iterrows():
        config = configuration["config"]
        worth = parts.get(study.family(config), parts.get(""))
        if worth is None:
            continue
        for dataset in study.datasets:
            metric = METRICS.get(dataset, f"{dataset}_accuracy")
            sign, scale = (-1, 1.0) if metric in ("token_perplexity", "loss") else (1, 0.1)
            gains = dict(zip(PARTS, worth, strict=True))
            gains["answer"] = sum(worth)
            for contrast, gain in gains.items():
                difference, half = sign * scale * gain, scale * half_width
                low, high = difference - half, difference + half
                verdict = "open"
                if low > 0 or high < 0:
                    verdict = "better" if gain > 0 else "worse"
                elif max(-low, high) <= (math.log1p(margin) if sign < 0 else margin):
                    verdict = "same"
                p_value = 0.001 if verdict in ("better", "worse") else 0.6
                rows.append(
                    {
                        "config": config,
                        "strategy": configuration["strategy"],
                        "dataset": dataset,
                        "contrast": contrast,
                        "metric": metric,
                        "deciding": True,
                        "avg_experts": configuration["avg_experts"],
                        "value": _value(study, config, dataset, metric),
                        "reference_value": _value(study, config, dataset, metric) - difference,
                        "difference": difference,
                        "stderr": half / 3,
                        "ci_low": low,
                        "ci_high": high,
                        "p_value": p_value / 10,
                        "p_holm": p_value,
                        "verdict": verdict,
                        "samples": 200,
                        "clusters": 150,
                    }
                )
    same_compute = pd.DataFrame(rows)
    return replace(study, same_compute=same_compute, where=where_table(study, where))


def _value(study, config, dataset, metric):
    """A score of the made-up study; 2 where it has none."""
    rows = study.experiments
    rows = rows[(rows["config"] == config) & (rows["dataset"] == dataset)]
    return float(rows[metric].iloc[0]) if metric in rows and len(rows) else 2.0


def where_table(study, effect=None, datasets=("wikitext",)):
    """The table of differences by token; see `with_controls`."""
    effect = effect or (lambda config, by, i: 0.0)
    rows = []
    for config in study.adaptive["config"]:
        for dataset in datasets:
            for by, labels in DIVISIONS.items():
                for i, label in enumerate(labels):
                    difference = effect(config, by, i)
                    rows.append(
                        {
                            "config": config,
                            "dataset": dataset,
                            "by": by,
                            "bin_low": float(i),
                            "bin_high": float(i + 1),
                            "label": label,
                            "tokens": 1000 * (i + 1),
                            "difference": difference,
                            "stderr": 0.01,
                            "ci_low": difference - 0.03,
                            "ci_high": difference + 0.03,
                            "p_value": 0.5,
                            "p_holm": 0.001 if abs(difference) > 0.03 else 1.0,
                        }
                    )
    return pd.DataFrame(rows, columns=[*MORE_COLUMNS["where"], "stderr", "p_value"])


def renamed(study_tables, names, baseline=results_tables.BASELINE):
    """A study whose BH variants have other strategies: {end of the name: (its new end, strategy)}."""
    for table in study_tables.values():
        parts = table["config"].str.partition("experts_")
        changed = parts[2].isin(list(names))
        ends = parts[2].map(lambda end: names[end][0] if end in names else end)
        table["config"] = parts[0] + "experts_" + ends
        if "strategy" in table:
            strategies = parts[2].map(lambda end: names[end][1] if end in names else None)
            table["strategy"] = np.where(changed, strategies, table["strategy"])
            table.loc[changed & (strategies != "bh"), "alpha"] = np.nan
    return make_study(**study_tables, baseline=baseline)


def _rivals_effect(config, dataset):
    """Fewer experts cost quality; so do many more than the model was trained with."""
    experts, _, end = config.partition("experts_")
    if end.startswith("topk"):
        loss = 0.9 / int(experts) + 0.1 * max(0, np.log2(int(experts) / 8))
    else:
        loss = 0.1 + 0.1 / float(end[-3:]) * 10
    return (loss, 0.3, 0.2) if dataset == "wikitext" else (-loss / 20, 0.03, 0.4)


def rivals(ks=(1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64), max_ks=(8, 16, 32, 64)):
    """A study with 11 top-k and 48 adaptive configurations: BH, BH centred, min-p, top-p, HC and more."""
    alphas = tuple(round(0.1 + 0.05 * i, 2) for i in range(12))
    ends = [f"bh_a{round(100 * alpha):03d}" for alpha in alphas]
    new = [
        *(("bh_a030", "bh"), ("bh_a040", "bh"), ("bh_a060", "bh")),
        *(("bh_a030_ncentred", "bh"), ("bh_a040_ncentred", "bh"), ("bh_a060_ncentred", "bh")),
        *(("minp_p010", "minp"), ("minp_p030", "minp"), ("topp_p030", "topp"), ("topp_p050", "topp")),
        *(("hc_bauto", "hc"), ("confidence", "confidence")),
    ]
    tables = results_tables.tables(max_ks=max_ks, alphas=alphas, ks=ks, effect=_rivals_effect)
    study = renamed(tables, dict(zip(ends, new, strict=True)))
    for table in (study.experiments, study.configurations):
        centred = table["config"].str.contains("ncentred|_bh_")
        digits = table["config"].str.extract(r"_bh_a(\d+)")[0]
        table.loc[centred, "alpha"] = digits.astype(float)[centred] / 100
        table["null"] = np.where(table["config"].str.contains("ncentred"), "centred", "default")
        table["weights"] = "native"
    return make_study(
        study.experiments, study.configurations, study.layers, study.comparisons, results_tables.BASELINE
    )
