"""One experiment: a routing configuration on a data set, from prepared samples to the three log files."""

from __future__ import annotations

import importlib.metadata
import platform
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from adaptive_routing.data.tasks import get_task
from adaptive_routing.evaluation.arrangement import Arranger
from adaptive_routing.evaluation.generation import generate_samples
from adaptive_routing.evaluation.scoring import score_alone, score_samples
from adaptive_routing.model.devices import passes_at_once
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.routing_log.entries import Head, LoggedSample
from adaptive_routing.routing_log.writer import RoutingLogWriter
from adaptive_routing.system.json_files import write_json

if TYPE_CHECKING:
    from adaptive_routing.data.samples import PreparedSample
    from adaptive_routing.model.load import LoadedModel
    from adaptive_routing.routing.base import RoutingStrategy
    from adaptive_routing.routing_log.workers import LogWorkers
    from adaptive_routing.settings.configurations import Configuration
    from adaptive_routing.settings.load import KeptInLog


_known_shapes = weakref.WeakKeyDictionary()  # model: the single samples' that it has computed


class SampleTotals(TypedDict):
    """How much was evaluated: `summary` of the summary."""

    total_samples: int
    total_tokens: int
    total_sequences: int
    predicted_tokens: int
    requested_samples: int
    skipped_rows: int
    truncated_samples: int


class SingleSample(TypedDict):
    """The first samples one at a time: forward time and tokens read of each."""

    seconds: list[float]
    tokens: list[int]


class Timings(TypedDict):
    """Where the time went: `timings` of the summary."""

    forward_seconds: float
    total_seconds: float
    single_sample: SingleSample


class Summary(Head):
    """The summary of an experiment, as it stands in its file."""

    metrics: dict[str, float | None]
    summary: SampleTotals
    samples: list[dict[str, Any]]
    timings: Timings


@dataclass(frozen=True)
class ExperimentFiles:
    """The paths that an experiment writes to."""

    summary: str
    internal_routing: str
    tensors: str


def run_experiment(
    loaded: LoadedModel,
    configuration: Configuration,
    strategy: RoutingStrategy,
    dataset: str,
    prepared: list[PreparedSample],
    batch_tokens: int,
    second_pass_samples: int,
    settings: Mapping[str, Any],
    files: ExperimentFiles,
    log_workers: LogWorkers | None = None,
    code_version: Mapping[str, Any] | None = None,
    routing_log: KeptInLog | None = None,
) -> Summary:
    """Score every sample of a data set under a routing strategy, and log every routing decision.

    Args:
        loaded: `load.LoadedModel`.
        configuration: `configurations.Configuration`, for the head of the files.
        strategy: its routing strategy.
        dataset: name of the data set.
        prepared: list of `samples.PreparedSample`.
        batch_tokens: the largest number of tokens in a batch.
        second_pass_samples: how many of the first samples run again, one at a time.
        settings: what determines the result, recorded unchanged; `routing.weights` and the data set's
            `task`, `max_samples`, `protocol` and `max_new_tokens` are used here.
        files: `ExperimentFiles`.
        log_workers: `LogWorkers` that encode the routing log's text; by default this process does.
        code_version: `version.code_version`'s result, recorded in the summary.
        routing_log: how much the log keeps; everything unless given.

    Returns:
        The summary, as written.
    """
    started = time.perf_counter()
    own, model = settings["dataset"], loaded.model
    task = get_task(own.get("task", dataset), own.get("protocol"))
    run = _run(model, batch_tokens, code_version)
    second_pass_samples = min(second_pass_samples, len(prepared))
    patcher = RouterPatcher(model, strategy)
    head = _head(loaded, configuration, patcher, dataset, settings) | _kept(routing_log, len(prepared))
    kept = head.get("routing_log")
    patcher.with_native_selection = kept is not None and kept["router_logits"] < len(prepared)
    outcomes: list[Any] = [None] * len(prepared)
    forward_seconds = 0.0
    with patcher:
        max_new_tokens = own.get("max_new_tokens")
        if max_new_tokens:
            # The logs need the lengths of the texts from the start, and generation determines them.
            tokenizer = load_tokenizer(loaded.info)
            generated = list(generate_samples(model, patcher, tokenizer, prepared, max_new_tokens))
            prepared = [one for one, _ in generated]
            batches = (batch for _, batch in generated)
            arranger = Arranger(model, prepared, patcher)
        else:
            arranger = Arranger(model, prepared, patcher)
            batches = score_samples(
                model, patcher, prepared, batch_tokens, second_pass_samples, arranger=arranger
            )
        writer = RoutingLogWriter(
            files.internal_routing,
            files.tensors,
            head,
            [[sequence.num_own_tokens for sequence in one.sequences] for one in prepared],
            patcher.strategy,
            patcher.num_layers,
            patcher.num_experts,
            patcher.logits_dtype,
            second_pass_samples,
            log_workers,
            arranger.logged,
        )
        with writer:
            greedy_tokens = {}
            for batch in batches:
                forward_seconds += batch.seconds
                samples = []
                for result in batch.samples:
                    one = prepared[result.index]
                    outcome = task.outcome(one.sample, result.scores)
                    outcomes[result.index] = _sample_record(one, outcome, result)
                    samples.append(_logged_sample(prepared, one, outcome["loss"], result.lengths))
                    if result.index < second_pass_samples:
                        greedy_tokens[result.index] = result.greedy_tokens
                indices = [result.index for result in batch.samples]
                writer.write(indices, samples, batch.routing, batch.token_ids, batch.token_losses)
            writer.end_of_samples()
            single = _second_pass(model, patcher, writer, prepared, arranger, greedy_tokens)
    summary: Summary = {
        **head,
        "provenance": head["provenance"] | {"run": run},  # ty: ignore[missing-typed-dict-key]
        "metrics": task.metrics(outcomes, dataset),
        "summary": {
            "total_samples": len(prepared),
            "total_tokens": sum(one["num_tokens"] for one in outcomes),
            "total_sequences": sum(len(one.sequences) for one in prepared),
            "predicted_tokens": sum(one["num_predicted_tokens"] for one in outcomes),
            "requested_samples": own["max_samples"],
            "skipped_rows": own.get("skipped_rows", 0),
            "truncated_samples": sum(one["truncated"] for one in outcomes),
        },
        "samples": outcomes,
        "timings": {
            "forward_seconds": forward_seconds,
            "total_seconds": time.perf_counter() - started,
            "single_sample": single,
        },
    }
    write_json(files.summary, summary)
    return summary


def _run(model, batch_tokens, code_version):
    """What may differ between two runs of the same experiment; it is left out of the routing logs."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "threads": torch.get_num_threads() * passes_at_once(model.device),
        "batch_tokens": batch_tokens,
        "code": code_version,
    }


def _head(loaded, configuration, patcher, dataset, settings):
    weighting = patcher.strategy.weighting
    info = loaded.info
    layer_counts = getattr(patcher.strategy, "layer_counts", None)
    by_layer = {} if layer_counts is None else {"layer_counts": list(layer_counts)}
    return {
        "config": configuration.name,
        "strategy": configuration.strategy,
        "k_or_max_k": configuration.max_experts,
        "alpha": configuration.alpha,
        "weights": settings["routing"]["weights"],
        "null": configuration.null if settings.get("null_distribution") else None,
        "control": configuration.parameters.get("control"),
        "control_of": configuration.control_of,
        "num_experts": patcher.num_experts,
        "dataset": dataset,
        "routing": {
            "min_k": patcher.strategy.min_experts,
            "max_k": patcher.strategy.max_experts,
            "temperature": weighting.temperature,
            "weights": settings["routing"]["weights"],
            "renormalized": weighting.renormalize,
            "router": weighting.rule.description(),
            "native_top_k": patcher.native_top_k,
            "dtype": str(patcher.weights_dtype).removeprefix("torch."),
            **by_layer,
        },
        "provenance": {
            "model": {key: value for key, value in info.items() if key != "folder"},
            "dtype": loaded.dtype,
            "device": loaded.device_name,
            "versions": package_versions(),
            "settings": settings,
        },
    }


def _kept(routing_log, num_samples):
    """`routing_log` of the head; nothing for a log that keeps everything."""
    numbers = {
        key: num_samples if value == "all" else min(value, num_samples)
        for key, value in (routing_log or {}).items()
    }
    return {"routing_log": numbers} if set(numbers.values()) - {num_samples} else {}


def _sample_record(one, outcome, result):
    return {
        "sample_id": one.sample_id,
        "num_tokens": sum(result.lengths),
        "num_predicted_tokens": sum(score.num_predicted_tokens for score in result.scores),
        "truncated": any(sequence.truncated for sequence in one.sequences),
        **one.sample.attributes,
        **outcome,
        **result.details,
    }


def _logged_sample(prepared, one, loss, lengths):
    shared_tokens = tuple(sequence.shared_tokens for sequence in one.sequences)
    other = None if one.shared_with is None else prepared[one.shared_with].sample_id
    return LoggedSample(one.sample_id, one.sample.text, loss, lengths, shared_tokens, other)


def _second_pass(model, patcher, writer, prepared, arranger, greedy_tokens):
    """Run the first samples again, one at a time, for the latency and the stability metrics.

    greedy_tokens: of these samples by their indices, what the first pass found.
    """
    seconds, tokens = [], []
    known = _known_shapes.setdefault(model, set())
    for index in sorted(greedy_tokens):
        lengths = arranger.arrange([index]).lengths
        shape = tuple(lengths), patcher.strategy.max_experts
        alone = model, prepared, index, arranger, patcher
        if index == 0 and shape not in known:
            score_alone(*alone)  # the first pass with new shapes is slower
            known.add(shape)
        scored, routing = score_alone(*alone, with_greedy_tokens=True)
        writer.write_second_pass(
            index,
            greedy_tokens[index].numpy(),
            torch.cat(scored.greedy_tokens).numpy(),  # ty: ignore[invalid-argument-type]
            routing.packed.numpy(),
        )
        seconds.append(scored.seconds)
        tokens.append(sum(lengths))
    return {"seconds": seconds, "tokens": tokens}


def package_versions() -> dict[str, str]:
    """Versions of the packages that determine results."""
    names = ("torch", "transformers", "numpy", "safetensors", "datasets", "snakemake")
    return {name: importlib.metadata.version(name) for name in names}
