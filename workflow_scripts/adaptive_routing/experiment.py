"""One experiment: a routing configuration on a data set, from prepared samples to the three log files."""

import time
from dataclasses import dataclass

import torch

from adaptive_routing.files import write_json
from adaptive_routing.models import package_versions
from adaptive_routing.patching import RouterPatcher
from adaptive_routing.routing_log import RoutingLogWriter, pack_selection
from adaptive_routing.scoring import make_batches, score_batch
from adaptive_routing.tasks import get_task


@dataclass(frozen=True)
class ExperimentFiles:
    """Where an experiment writes."""

    summary: str
    internal_routing: str
    tensors: str


def run_experiment(
    loaded, configuration, strategy, dataset, prepared, batch_tokens, second_pass_samples, settings, files
):
    """Score every sample of a data set under a routing strategy, and log every routing decision.

    Args:
        loaded: `models.LoadedModel`.
        configuration: `configurations.Configuration`, for the head of the files.
        strategy: its routing strategy.
        dataset: name of the data set.
        prepared: list of `data.PreparedSample`.
        batch_tokens: tokens in a batch, padding included.
        second_pass_samples: how many first samples run again one by one.
        settings: what decides the result, recorded as it is; `dataset.max_samples` and
            `routing.weights` are used here.
        files: `ExperimentFiles`.

    Returns:
        The summary, as written.
    """
    started = time.perf_counter()
    task, model = get_task(dataset), loaded.model
    second_pass_samples = min(second_pass_samples, len(prepared))
    patcher = RouterPatcher(model, strategy)
    head = _head(loaded, configuration, patcher, dataset, settings)
    outcomes = [None] * len(prepared)
    batches = make_batches(prepared, batch_tokens)
    forward_seconds = 0.0
    writer = RoutingLogWriter(
        files.internal_routing,
        files.tensors,
        head,
        [[sequence.num_inputs for sequence in one.sequences] for one in prepared],
        patcher.strategy,
        patcher.num_layers,
        patcher.num_experts,
        model.dtype,
        second_pass_samples,
    )
    with writer, patcher:
        # The first pass of a process loads code and claims memory; that is not the configuration's speed.
        score_batch(model, _sequences(prepared, batches[0]))
        greedy_tokens = {}
        for batch in batches:
            scored = score_batch(
                model, _sequences(prepared, batch), with_greedy_tokens=min(batch) < second_pass_samples
            )
            forward_seconds += scored.seconds
            routing = patcher.take_batch().to("cpu")
            first_sequence = first_token = 0
            for index in batch:
                one = prepared[index]
                own = slice(first_sequence, first_sequence + len(one.sequences))
                lengths = routing.lengths[own]
                outcome = task.outcome(one.sample, scored.scores[own])
                outcomes[index] = _sample_record(one, outcome, scored.scores[own], lengths)
                writer.write_sample(
                    index,
                    one.sample_id,
                    one.sample.text,
                    outcome["loss"],
                    routing.tokens(first_token, first_token + sum(lengths), lengths),
                    _token_ids(one).numpy(),
                    torch.cat(scored.token_losses[own]).numpy(),
                )
                if index < second_pass_samples:
                    greedy_tokens[index] = torch.cat(scored.greedy_tokens[own])
                first_sequence, first_token = own.stop, first_token + sum(lengths)
        single = _second_pass(model, patcher, writer, prepared[:second_pass_samples], greedy_tokens)
    summary = {
        **head,
        "metrics": task.metrics(outcomes),
        "summary": {
            "total_samples": len(prepared),
            "total_tokens": sum(one["num_tokens"] for one in outcomes),
            "total_sequences": sum(len(one.sequences) for one in prepared),
            "predicted_tokens": sum(one["num_predicted_tokens"] for one in outcomes),
            "requested_samples": settings["dataset"]["max_samples"],
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


def _head(loaded, configuration, patcher, dataset, settings):
    weighting = patcher.strategy.weighting
    info = loaded.info
    return {
        "config": configuration.name,
        "strategy": configuration.strategy,
        "k_or_max_k": configuration.max_experts,
        "alpha": configuration.alpha,
        "num_experts": patcher.num_experts,
        "dataset": dataset,
        "routing": {
            "min_k": patcher.strategy.min_experts,
            "max_k": patcher.strategy.max_experts,
            "temperature": weighting.temperature,
            "weights": settings["routing"]["weights"],
            "renormalized": weighting.renormalize,
            "native_top_k": patcher.native_top_k,
            "dtype": loaded.dtype,
        },
        "provenance": {
            "model": {key: value for key, value in info.items() if key != "folder"},
            "dtype": loaded.dtype,
            "device": loaded.device_name,
            "versions": package_versions(),
            "settings": settings,
        },
    }


def _sequences(prepared, batch):
    return [sequence for index in batch for sequence in prepared[index].sequences]


def _token_ids(one):
    return torch.cat([torch.tensor(sequence.token_ids[: sequence.num_inputs]) for sequence in one.sequences])


def _sample_record(one, outcome, scores, lengths):
    return {
        "sample_id": one.sample_id,
        "num_tokens": sum(lengths),
        "num_predicted_tokens": sum(score.num_predicted_tokens for score in scores),
        "truncated": any(sequence.truncated for sequence in one.sequences),
        **outcome,
    }


def _second_pass(model, patcher, writer, prepared, greedy_tokens):
    """The first samples again, one sequence at a time: latency, and whether the result is the same."""
    seconds, tokens = [], []
    for index, one in enumerate(prepared):
        if index == 0:
            score_batch(model, [one.sequences[0]])  # new shapes are slower the first time
        parts, selections = [], []
        for sequence in one.sequences:
            parts.append(score_batch(model, [sequence], with_greedy_tokens=True))
            selections.append(patcher.take_batch().to("cpu").experts)
        writer.write_second_pass(
            index,
            greedy_tokens[index].numpy(),
            torch.cat([part.greedy_tokens[0] for part in parts]).numpy(),
            pack_selection(torch.cat(selections), patcher.num_experts),
        )
        seconds.append(sum(part.seconds for part in parts))
        tokens.append(sum(sequence.num_inputs for sequence in one.sequences))
    return {"seconds": seconds, "tokens": tokens}
