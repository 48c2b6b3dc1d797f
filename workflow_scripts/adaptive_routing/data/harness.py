"""Tasks of lm-evaluation-harness: the requests that it makes, as samples, and its metrics from our answers.

The harness's `simple_evaluate` runs twice: while the data set is prepared, with a model that keeps what it is
asked, and for each experiment's metrics, with one that gives the experiment's answers. So examples, seeds,
filters, groups, weights and standard errors are its own, and only the answers are ours.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import numbers
from typing import TYPE_CHECKING, Any
from unittest import mock

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from adaptive_routing.data.samples import PreparedSample, read_prepared, with_clusters
from adaptive_routing.data.tasks import Request, Sample, harness
from adaptive_routing.data.tokens import encode_request
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.harness_tasks import find_task, installed_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

# The metrics that can say whether a sample is right; the first that all of a data set's samples have does.
DECIDING = ("acc_norm", "acc")


class _Answering(LM):
    """A model of the harness that looks its answers up, and keeps what it was asked."""

    def __init__(self, answer: Callable[[tuple[str, ...]], Any]) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self._answer = answer

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked += requests
        return [self._answer(request.args) for request in requests]

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests, disable_tqdm=False):
        raise InputError(
            f"{requests[0].task_name} generates text, and only tasks of log-likelihoods can be scored"
        )


def prepare_harness_task(
    dataset: str, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, model_max_length: int
) -> list[PreparedSample]:
    """One `PreparedSample` per document of the tasks, with the requests that the harness makes of it.

    Args:
        dataset: name of the data set.
        settings: its settings; `max_samples` bounds the documents of each task.
        tokenizer, model_max_length: as in `samples.prepare_samples`.

    Raises:
        InputError: the harness cannot make the requests, or a request cannot be scored.
    """
    key = f"datasets.{dataset}"
    # What the harness makes of these answers is not used, but for right choices and kinds of metrics.
    made_up = itertools.cycle((-1.0, -1.5, -2.25, -0.5, -3.0))
    lm = _Answering(lambda args: next(made_up) if len(args) == 1 else (next(made_up), False))
    rows = _first_filter(_evaluate(key, settings, lm, bootstrap_iters=0))
    _deciding_metric(key, settings, rows.values())
    documents: dict[Any, list[Any]] = {}
    for instance in {id(one): one for one in lm.asked}.values():  # asked again where a task repeats them
        documents.setdefault((instance.task_name, instance.doc_id), []).append(instance)
    prepared = []
    for number, ((task, doc_id), instances) in enumerate(documents.items()):
        instances.sort(key=lambda instance: instance.idx)
        requests = tuple(_request(instance) for instance in instances)
        where = f"{key}: document {doc_id} of {task}"
        if len(requests) > 1 and any(request.rolling for request in requests):
            raise InputError(f"{where} has several texts, and only one can be scored")
        try:
            encoded = [encode_request(tokenizer, request, None, model_max_length) for request in requests]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if [] in encoded:
            raise InputError(f"{where} holds no text to score")
        target = rows[task, doc_id]["target"] if (task, doc_id) in rows else None
        sample = Sample(
            _shown(requests[0]),
            requests,
            _right_choice(target, requests),
            {"task": task, "doc_id": doc_id},
            (("document", json.dumps(instances[0].doc, sort_keys=True, default=str)), ("requests", requests)),
        )
        sequences = tuple(sequence for of_request in encoded for sequence in of_request)
        prepared.append(PreparedSample(f"{dataset}_{number}", sample, sequences))
    return with_clusters(prepared)


def harness_scores(
    dataset: str, prepared_path: Path | str, outcomes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the harness makes of an experiment's answers.

    Args:
        dataset: name of the data set.
        prepared_path: file of the samples that `prepare_harness_task` gave.
        outcomes: theirs, as the summary has them.

    Returns:
        dict: `results`, `groups`, `n-samples`, `n-shot` and `versions` as the harness gives them; `samples`,
        its verdicts on the samples by name, a list each; and `scores`, the study's metrics made from them.

    Raises:
        InputError: the harness makes other requests than those that were answered.
    """
    key = f"datasets.{dataset}"
    settings, prepared = read_prepared(prepared_path)
    answers = {}
    for one, outcome in zip(prepared, outcomes, strict=True):
        for request, answer in zip(one.sample.requests, outcome["answers"], strict=True):
            answers[_arguments(request)] = answer[0] if request.rolling else tuple(answer)

    def answer(arguments):
        if arguments not in answers:
            raise InputError(
                "it makes other requests than when the data set was prepared; delete the data set's file in "
                "results/datasets and run again"
            )
        return answers[arguments]

    results = _evaluate(key, settings, _Answering(answer), settings["bootstrap_iters"])
    rows = _first_filter(results)
    of_samples = [rows[one.sample.attributes["task"], one.sample.attributes["doc_id"]] for one in prepared]
    verdicts = _verdicts(_deciding_metric(key, settings, of_samples), of_samples)
    judged = [
        {**outcome, **dict(zip(verdicts, values, strict=True))}
        for outcome, values in zip(outcomes, zip(*verdicts.values(), strict=True), strict=True)
    ] if verdicts else outcomes  # fmt: skip
    parts = {
        name: _plain(results.get(name, {}))
        for name in ("results", "groups", "n-samples", "n-shot", "versions")
    }
    return {**parts, "samples": verdicts, "scores": harness.metrics(judged, dataset)}


def _evaluate(key, settings, lm, bootstrap_iters):
    """The harness's results, with whatever it cannot do in one sentence."""
    task = find_task(settings["harness"], settings["include_path"], f"{key}.harness")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    bars = io.StringIO()  # progress bars say nothing in a log
    # What the harness adds about the machine, for which it asks torch and pip, takes seconds and is not used.
    without_machine = mock.patch.object(evaluator, "add_env_info", create=True)
    try:
        with contextlib.redirect_stdout(bars), contextlib.redirect_stderr(bars), without_machine:
            # Only the files that the task needs are read: all 14,000 take eight seconds.
            manager = TaskManager(include_path=list(task.folders), include_defaults=False)
            return evaluator.simple_evaluate(
                lm,
                tasks=[settings["harness"]],
                num_fewshot=settings["num_fewshot"],
                limit=settings["max_samples"],
                bootstrap_iters=bootstrap_iters,
                task_manager=manager,
                torch_random_seed=None,  # nothing here draws with torch, which takes seconds to import
            )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{key}: lm-evaluation-harness {installed_version(key)} cannot evaluate {settings['harness']}: "
            + reason
        ) from error


def _first_filter(results):
    """What the harness logged of each document, {(task, document): row}, of the first of a task's filters."""
    rows = {}
    for task, of_task in results["samples"].items():
        for row in of_task:
            rows.setdefault((task, row["doc_id"]), row)
    return rows


def _deciding_metric(key, settings, rows):
    """The metric that says whether a sample is right; None where a task has only losses or perplexities."""
    shared = set.intersection(*(set(row["metrics"]) for row in rows))
    asked = settings["metric"]
    if asked is None:
        return next((name for name in DECIDING if name in shared), None)
    if asked not in shared:
        raise InputError(f"{key}.metric is {asked!r}, but must be one of {', '.join(sorted(shared))}")
    wrong = next((row[asked] for row in rows if row[asked] not in (0, 1)), None)
    if wrong is not None:
        raise InputError(f"{key}.metric is {asked!r}, which gives a sample {wrong!r}, but must give 0 or 1")
    return asked


def _verdicts(deciding, rows):
    """The harness's verdicts on samples: {name: list}."""
    found = {}
    if deciding is not None:
        found["correct"] = [bool(row[deciding]) for row in rows]
        if deciding == "acc_norm" and all("acc" in row for row in rows):
            found["correct_unnormalized"] = [bool(row["acc"]) for row in rows]
    if all(isinstance(row.get("perplexity"), numbers.Real) for row in rows):
        found["target_log_likelihood"] = [float(row["perplexity"]) for row in rows]
    for name, metric in (("num_words", "word_perplexity"), ("num_bytes", "byte_perplexity")):
        if all(metric in row for row in rows):
            found[name] = [row[metric][1] for row in rows]
    return found


def _request(instance):
    if instance.request_type == "loglikelihood_rolling":
        return Request(None, instance.args[0], rolling=True)
    return Request(*instance.args)


def _arguments(request):
    return (request.continuation,) if request.rolling else (request.context, request.continuation)


def _shown(request):
    """What readers see: the text, or the context without the examples before it."""
    if request.rolling or not request.context.strip():
        return request.continuation
    return request.context.rpartition("\n\n")[2] or request.context


def _right_choice(target, requests):
    """The index of the right choice; None where the harness names none, or not one of several texts.

    In WinoGrande, for one, the requests differ by their context, and the target is what follows all of them.
    """
    if len(requests) == 1:
        return None
    if isinstance(target, list) and target:
        target = target[0]
    if isinstance(target, numbers.Integral) and 0 <= target < len(requests):
        return int(target)
    alike = [i for i, one in enumerate(requests) if one.continuation.strip() == str(target).strip()]
    return alike[0] if len(alike) == 1 else None


def _plain(value):
    """The value as JSON has it: what is no number or text, "N/A" and NaN are None."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, bool | str):
        return None if value == "N/A" else value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and math.isfinite(value) else None
