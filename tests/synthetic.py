"""A made-up study on disk: the summaries and tensors of docs/architecture.md, without a model.

Each data set has one set of router logits (noise with a varying number of raised experts), so that
Benjamini-Hochberg selects different numbers of experts for different tokens. Losses fall with the number
of experts; the same sample is equally hard for every configuration, so that paired tests have something
to find. Every number follows from `seed`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from adaptive_routing.system.json_files import write_json
from safetensors.numpy import save_file
from scipy.stats import norm

TOKENS_PER_SEQUENCE = {"wikitext": 40, "prompts": 12, "lambada": 24, "hellaswag": 16, "arc_challenge": 16}
CHANCE = {"lambada": 0.0, "hellaswag": 0.25, "arc_challenge": 0.25}
NUM_ENDINGS = 4


@dataclass
class Study:
    """Paths of a study's files, in the same order in every list: data sets within configurations."""

    folder: Path
    baseline: str
    summaries: list[Path] = field(default_factory=list)
    tensors: list[Path] = field(default_factory=list)


def configurations(max_ks=(8, 16, 32, 64), alphas=(0.3, 0.4, 0.5, 0.6)):
    """List (config, strategy, k_or_max_k, alpha) of the grid, baselines first."""
    grid = [(f"{k}experts_topk_baseline", "topk", k, None) for k in max_ks]
    for max_k in max_ks:
        grid += [(f"{max_k}experts_bh_a{round(100 * a):03d}", "bh", max_k, a) for a in alphas]
    return grid


def write_study(
    folder,
    *,
    datasets=("wikitext", "lambada", "hellaswag"),
    max_ks=(8, 16, 32, 64),
    alphas=(0.3, 0.4, 0.5, 0.6),
    num_experts=64,
    num_layers=4,
    num_samples=12,
    second_pass_samples=2,
    seed=0,
):
    """Write logs/{config}_{dataset}.json and _internal_routing.safetensors under `folder`.

    The first of `max_ks` is the model's own top-k and the baseline. Returns a `Study`.
    """
    folder = Path(folder)
    study = Study(folder, f"{max_ks[0]}experts_topk_baseline")
    inputs = {}
    for i, dataset in enumerate(datasets):
        rng = np.random.default_rng([seed, i])
        inputs[dataset] = _dataset_inputs(dataset, num_experts, num_layers, num_samples, rng)
    for i, (config, strategy, k_or_max_k, alpha) in enumerate(configurations(max_ks, alphas)):
        for j, dataset in enumerate(datasets):
            rng = np.random.default_rng([seed, i, j, 1])
            head = {
                "config": config,
                "strategy": strategy,
                "k_or_max_k": k_or_max_k,
                "alpha": alpha,
                **PLAIN,
                "num_experts": num_experts,
                "dataset": dataset,
            }
            summary, tensors = _experiment(head, inputs[dataset], max_ks[0], second_pass_samples, seed, rng)
            stem = folder / "logs" / f"{config}_{dataset}"
            study.summaries.append(stem.with_name(f"{stem.name}.json"))
            study.tensors.append(stem.with_name(f"{stem.name}_internal_routing.safetensors"))
            write_json(study.summaries[-1], summary)
            save_file(tensors, study.tensors[-1], metadata={"head": json.dumps(head)})
    return study


# What the head of an experiment says that is no control, with the model's own weights.
PLAIN = {"weights": "native", "null": None, "control": None, "control_of": None}


def select(logits, strategy, k_or_max_k, alpha):
    """Select experts: logits (..., E) to a mask (..., E), with a standard normal null distribution for BH."""
    num_experts = logits.shape[-1]
    order = np.argsort(-logits, axis=-1, kind="stable")
    if strategy == "topk":
        counts = np.full(logits.shape[:-1], k_or_max_k)
    else:
        p_values = np.take_along_axis(norm.sf(logits), order, axis=-1)
        ranks = np.arange(1, num_experts + 1)
        passed = np.where(p_values <= ranks * alpha / num_experts, ranks, 0).max(axis=-1)
        counts = np.clip(passed, 1, k_or_max_k)
    mask = np.zeros(logits.shape, dtype=bool)
    chosen = np.arange(num_experts) < counts[..., None]
    np.put_along_axis(mask, order, chosen, axis=-1)
    return mask


def pack(mask):
    """Pack a selection mask (..., E) into bits (..., ⌈E/8⌉), as the tensors file holds it."""
    return np.packbits(mask, axis=-1, bitorder="little")


def _dataset_inputs(dataset, num_experts, num_layers, num_samples, rng):
    """Draw what every configuration shares: token ids, lengths, router logits and how hard a sample is."""
    per_sample = 1 if dataset in ("wikitext", "prompts", "lambada") else NUM_ENDINGS
    mean = TOKENS_PER_SEQUENCE[dataset]
    lengths = rng.integers(mean // 2, mean * 3 // 2, size=num_samples * per_sample)
    sequence_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = int(sequence_offsets[-1])
    logits = rng.normal(size=(tokens, num_layers, num_experts))
    # Raised experts: more of them in later layers, and some experts raised more often than others.
    popularity = np.linspace(0.5, 1.5, num_experts)
    share = np.linspace(0.05, 0.3, num_layers)[:, None] * rng.beta(1, 2, size=(tokens, 1, 1)) * 2
    raised = rng.random(logits.shape) < share * popularity
    logits = logits + raised * rng.normal(2.5, 0.5, size=logits.shape)
    return {
        "logits": logits.astype(np.float32),
        "token_ids": rng.integers(0, 1000, size=tokens, dtype=np.int32),
        "sequence_offsets": sequence_offsets,
        "sample_offsets": sequence_offsets[::per_sample].copy(),
        "difficulty": rng.normal(size=num_samples),
        "token_difficulty": rng.gamma(2.0, 0.5, size=tokens),
        "gold": rng.integers(0, NUM_ENDINGS, size=num_samples),
    }


def _experiment(head, inputs, native_top_k, second_pass_samples, seed, rng):
    dataset, num_experts = head["dataset"], head["num_experts"]
    noise = rng.normal(scale=0.02, size=inputs["logits"].shape).astype(np.float32)
    logits = inputs["logits"] + noise * (head["config"] != f"{native_top_k}experts_topk_baseline")
    mask = select(logits, head["strategy"], head["k_or_max_k"], head["alpha"])
    counts = mask.sum(axis=-1)
    offsets = inputs["sample_offsets"]
    num_samples, num_tokens = len(offsets) - 1, int(offsets[-1])
    # Few experts cost quality, many gain a little.
    penalty = 0.5 / counts.mean() + rng.normal(scale=0.01)
    token_losses, samples = _outcomes(dataset, inputs, penalty, rng)

    tensors = {
        "router_logits": logits,
        "expert_counts": counts.astype(np.uint8 if num_experts <= 255 else np.int16),
        "selected_experts": pack(mask),
        "token_ids": inputs["token_ids"],
        "token_losses": token_losses,
        "sample_offsets": offsets,
        "sequence_offsets": inputs["sequence_offsets"],
    }
    timings = {"forward_seconds": num_tokens * (1e-5 + 2e-6 * float(counts.mean())), "total_seconds": 1.5}
    if second_pass_samples:
        tokens2 = int(offsets[second_pass_samples])
        greedy = rng.integers(0, 1000, size=tokens2, dtype=np.int32)
        changed = rng.random(tokens2) < 0.01
        second_logits = logits[:tokens2] + rng.normal(scale=1e-3, size=logits[:tokens2].shape)
        second_mask = select(second_logits, head["strategy"], head["k_or_max_k"], head["alpha"])
        tensors["greedy_tokens"] = greedy
        tensors["second_pass_greedy_tokens"] = np.where(changed, greedy + 1, greedy).astype(np.int32)
        tensors["second_pass_selected_experts"] = pack(second_mask)
        lengths = np.diff(offsets)[:second_pass_samples]
        seconds = lengths * (1e-4 + 1e-5 * float(counts.mean())) * rng.uniform(0.9, 1.1, size=len(lengths))
        timings["single_sample"] = {"seconds": seconds.tolist(), "tokens": lengths.tolist()}

    summary = {
        **head,
        "metrics": _task_metrics(dataset, samples),
        "summary": {
            "total_samples": num_samples,
            "total_tokens": num_tokens,
            "total_sequences": len(inputs["sequence_offsets"]) - 1,
            "predicted_tokens": sum(sample["num_predicted_tokens"] for sample in samples),
            "requested_samples": num_samples,
            "truncated_samples": 0,
        },
        "samples": samples,
        "routing": {
            "min_k": 1,
            "max_k": head["k_or_max_k"],
            "temperature": 1.0,
            "weights": "native",
            "native_top_k": native_top_k,
        },
        "provenance": {
            "model": {
                "name": "synthetic",
                "revision": None,
                "commit": None,
                "fingerprint": "0" * 64,
                "shapes": {
                    "hidden_size": 64,
                    "intermediate_size": 32,
                    "dense_intermediate_size": 32,
                    "shared_expert_intermediate_size": 0,
                    "num_hidden_layers": logits.shape[1],
                    "num_experts": num_experts,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 16,
                    "vocab_size": 1000,
                    "num_moe_layers": logits.shape[1],
                },
            },
            "dtype": "float32",
            "device": "cpu",
            "packages": {"numpy": np.__version__},
            "settings": {"max_samples": num_samples, "max_length": 512},
            "seed": seed,
            "null_distribution": None if head["strategy"] == "topk" else {"kernel": "gaussian", "trim": 0},
        },
        "timings": timings,
    }
    return summary, tensors


def _outcomes(dataset, inputs, penalty, rng):
    """Return token losses (T,) and the summary's list of samples."""
    offsets, sequence_offsets = inputs["sample_offsets"], inputs["sequence_offsets"]
    token_losses = np.full(len(inputs["token_ids"]), np.nan, dtype=np.float32)
    noise = rng.normal(scale=0.1, size=len(token_losses))
    losses = np.maximum(inputs["token_difficulty"] + penalty + noise, 0.01)
    per_sample = (len(sequence_offsets) - 1) // (len(offsets) - 1)
    samples = []
    for i in range(len(offsets) - 1):
        start, stop = int(offsets[i]), int(offsets[i + 1])
        sample = {"sample_id": f"{dataset}_{i}", "num_tokens": stop - start, "truncated": False}
        if dataset in ("wikitext", "prompts"):
            token_losses[start + 1 : stop] = losses[start + 1 : stop]
            loss, predicted = float(losses[start + 1 : stop].mean()), stop - start - 1
        elif dataset == "lambada":
            token_losses[stop - 2 : stop] = losses[stop - 2 : stop]
            loss, predicted = float(losses[stop - 2 : stop].mean()), 2
        else:
            sequences = sequence_offsets[i * per_sample : (i + 1) * per_sample + 1]
            ends = [int(end) for end in sequences[1:]]
            for end in ends:
                token_losses[end - 4 : end] = losses[end - 4 : end]
            log_likelihoods = [-float(losses[end - 4 : end].sum()) for end in ends]
            gold = int(inputs["gold"][i])
            loss, predicted = -log_likelihoods[gold] / 4, 4 * per_sample
            sample["log_likelihoods"] = log_likelihoods
            sample["gold"] = gold
        sample |= {"loss": loss, "num_predicted_tokens": predicted}
        if dataset in CHANCE:
            ability = 1 / (1 + math.exp(inputs["difficulty"][i] + 10 * penalty - 0.5))
            chance = CHANCE[dataset]
            # A quantile of the sample's own, so that configurations mostly agree on it.
            quantile = norm.cdf(inputs["difficulty"][i] / 2 + rng.normal(scale=0.3))
            sample["correct"] = bool(quantile < chance + (1 - chance) * ability)
        if "gold" in sample:
            gold = sample["gold"]
            sample["prediction"] = gold if sample["correct"] else (gold + 1) % per_sample
            sample["prediction_unnormalized"] = int(np.argmax(sample["log_likelihoods"]))
        samples.append(sample)
    return token_losses, samples


def _task_metrics(dataset, samples):
    losses = np.array([sample["loss"] for sample in samples])
    predicted = np.array([sample["num_predicted_tokens"] for sample in samples])
    root = math.sqrt(len(samples))

    def exp_mean(values):
        return {"": math.exp(values.mean()), "_stderr": math.exp(values.mean()) * values.std(ddof=1) / root}

    if dataset in ("wikitext", "prompts"):
        name = "perplexity" if dataset == "wikitext" else "prompt_perplexity"
        metrics = {f"{name}{suffix}": float(value) for suffix, value in exp_mean(losses).items()}
        if dataset == "wikitext":
            mean = float(losses @ predicted / predicted.sum())
            metrics["token_perplexity"] = math.exp(mean)
            error = float(((losses - mean) * predicted).std(ddof=1)) / predicted.mean() / root
            metrics["token_perplexity_stderr"] = math.exp(mean) * error
        return metrics
    correct = np.array([sample["correct"] for sample in samples], dtype=float)
    metrics = {
        f"{dataset}_accuracy": float(correct.mean()),
        f"{dataset}_accuracy_stderr": float(correct.std(ddof=1)) / root,
    }
    if dataset == "lambada":
        perplexity = exp_mean(losses * predicted)
        metrics |= {f"lambada_perplexity{suffix}": float(value) for suffix, value in perplexity.items()}
    else:
        raw = np.array([sample["prediction_unnormalized"] == sample["gold"] for sample in samples])
        metrics[f"{dataset}_acc"] = float(raw.mean())
        metrics[f"{dataset}_acc_stderr"] = float(raw.std(ddof=1)) / root
    return metrics
