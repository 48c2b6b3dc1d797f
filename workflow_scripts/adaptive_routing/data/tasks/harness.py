"""Any task of lm-evaluation-harness: what its requests' scores say of a sample, and the study's own scores.

`data/harness.py` asks the harness which requests a task makes, and what it makes of the answers. Its verdicts
on samples, which `metrics` needs, are known only then: until they are, a data set has its loss alone.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptive_routing.data.tasks import Sample, SequenceScore, wikitext_documents
from adaptive_routing.data.tasks.accuracy import accuracy_with_stderr
from adaptive_routing.data.tasks.uncertainty import clusters_of, exp_mean_with_stderr, mean_with_stderr


def outcome(sample: Sample, scores: Sequence[SequenceScore]) -> dict[str, Any]:
    """The answers to the requests, [log-likelihood, whether greedy] each, and the loss.

    The loss is that of the right choice; where the harness names none, and in tasks without choices, it is
    that of all requests.
    """
    totals = [score.log_likelihood for score in scores]
    if sample.requests[0].rolling:  # its sequences are windows
        answers = [[math.fsum(totals), False]]
    else:
        answers = [[score.log_likelihood, score.is_greedy] for score in scores]
    if sample.gold is not None:
        right = {"loss": scores[sample.gold].loss, "log_likelihoods": totals, "gold": sample.gold}
        return right | {"answers": answers}
    predicted = sum(score.num_predicted_tokens for score in scores)
    return {"loss": -math.fsum(totals) / predicted, "log_likelihood": math.fsum(totals), "answers": answers}


def metrics(outcomes: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float | None]:
    """`{dataset}_loss`, and what the harness's verdicts allow.

    `{dataset}_accuracy` and `{dataset}_acc` are shares of samples, `{dataset}_perplexity` is exp of the mean
    negative log-likelihood of a target, and texts have the perplexities of whole articles.
    """
    clusters = clusters_of(outcomes)

    def known(column):
        return all(one.get(column) is not None for one in outcomes)

    found = {"loss": mean_with_stderr([one["loss"] for one in outcomes], clusters)}
    for name, column in (("accuracy", "correct"), ("acc", "correct_unnormalized")):
        if known(column):
            found[name] = accuracy_with_stderr([one[column] for one in outcomes], clusters)
    if known("target_log_likelihood"):
        losses = [-one["target_log_likelihood"] for one in outcomes]
        found["perplexity"] = exp_mean_with_stderr(losses, clusters)
    named: dict[str, float | None] = {}
    for name, (value, stderr) in found.items():
        named |= {f"{dataset}_{name}": value, f"{dataset}_{name}_stderr": stderr}
    if known("num_words") and known("num_bytes"):
        named |= wikitext_documents.metrics(outcomes, dataset)
    return named
