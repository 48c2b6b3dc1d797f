"""Scores against lm-evaluation-harness itself: its `HFLM` and its evaluator, on the same rows.

Natively routed, the harness has the model as transformers loads it, without any code of ours; otherwise
it has our model with the patcher in force. Our side is the whole path from rows to metrics.
"""

import copy
import json
import math
import random
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from adaptive_routing.data.samples import prepare_samples
from adaptive_routing.data.tasks import Request, SequenceScore, get_task
from adaptive_routing.data.tokens import encode_request
from adaptive_routing.evaluation.batches import make_batches
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.model.load import load_model
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing import make_strategy
from adaptive_routing.settings.configurations import grid
from adaptive_routing.system.errors import InputError
from conftest import ROOT
from harness import REAL_DATA, make_task, rows_of
from rounding import undecided
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
evaluate = pytest.importorskip("lm_eval.evaluator").evaluate
weighted_perplexity = pytest.importorskip("lm_eval.api.metrics").weighted_perplexity

EMBEDDED = ROOT / "resources/datasets"
NATIVE, TOP_16, BH_16 = "8experts_topk_baseline", "16experts_topk_baseline", "16experts_bh_a030"
CONFIGURATIONS = {
    one.name: one for one in grid({"topk": {"k": [8, 16]}, "bh": {"max_k": [16], "alpha": [0.3]}})
}
ROUTING = {"min_k": 1, "temperature": 1.0, "weights": "native"}
REAL_FILES = {
    "wikitext": REAL_DATA / "wikitext2_raw_test.jsonl",
    "lambada": REAL_DATA / "lambada_openai_test.jsonl",
    "hellaswag": REAL_DATA / "hellaswag_validation.jsonl",
    "arc_challenge": EMBEDDED / "arc_challenge.jsonl",
}
MODEL_LENGTH = 512  # of the embedded model
BATCH_SIZE = 32  # the harness's, in sequences
BATCH_TOKENS = 4096  # ours


def cases(*datasets):
    """(configuration, data set, file, rows): real rows and embedded ones."""
    found = []
    for dataset in datasets:
        real, own = REAL_FILES[dataset], EMBEDDED / f"{dataset}.jsonl"
        for name, rows in ((NATIVE, 40), (BH_16, 40), (TOP_16, 10)):
            found.append(pytest.param(name, dataset, real, rows, id=f"{name}-{dataset}-real"))
        if real != own:
            for name in (NATIVE, BH_16):
                found.append(pytest.param(name, dataset, own, 40, id=f"{name}-{dataset}-embedded"))
    return found


@dataclass(frozen=True)
class Scored:
    """Our side of a comparison."""

    prepared: list
    scores: list  # of each sample: `SequenceScore` per sequence
    outcomes: list
    metrics: dict


class RecordingHFLM(HFLM):
    """The harness's model, which also keeps what it scored, in the order of its requests.

    `scored` holds (context tokens, continuation tokens, log-likelihood, greedy) of each.
    """

    scored = ()

    def _loglikelihood_tokens(self, requests, **kwargs):
        results = super()._loglikelihood_tokens(requests, **kwargs)
        pairs = [(context, continuation) for _, context, continuation in requests]
        self.scored = (*self.scored, *((*pair, *one) for pair, one in zip(pairs, results, strict=True)))
        return results


@pytest.fixture(scope="module")
def stock_model():
    """The embedded model as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(ROOT / "resources/embedded_model", dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.fixture
def both(embedded, stock_model, monkeypatch):
    """Configuration → (the harness's model, its patcher or nothing, our model's patcher)."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # the harness's bootstrap, for ten numbers

    def start(name, tokenizer=None, **settings):
        strategy = make_strategy(CONFIGURATIONS[name], ROUTING, embedded.null_distribution)
        model = embedded.loaded.model
        theirs, patched = (
            (stock_model, nullcontext) if name == NATIVE else (model, lambda: RouterPatcher(model, strategy))
        )
        lm = RecordingHFLM(
            pretrained=theirs, tokenizer=tokenizer or embedded.tokenizer, batch_size=BATCH_SIZE, **settings
        )
        assert lm.max_length == MODEL_LENGTH
        return lm, patched, RouterPatcher(model, strategy)

    return start


def flatten(items):
    return [one for of_item in items for one in of_item]


def score(patcher, tokenizer, dataset, path, rows, protocol=None):
    """Our side: from the file's rows to the metrics."""
    task = get_task(dataset, protocol)
    prepared = prepare_samples(dataset, rows_of(path), tokenizer, rows, MODEL_LENGTH, MODEL_LENGTH, protocol)
    scores = [None] * len(prepared)
    with patcher:
        for batch in make_batches(prepared, BATCH_TOKENS):
            found = score_batch(patcher.model, flatten(prepared[index].sequences for index in batch)).scores
            for index in batch:
                count = len(prepared[index].sequences)
                scores[index], found = found[:count], found[count:]
    outcomes = [
        task.outcome(one.sample, own)
        | {"num_predicted_tokens": sum(score.num_predicted_tokens for score in own)}
        for one, own in zip(prepared, scores, strict=True)
    ]
    return Scored(prepared, scores, outcomes, task.metrics(outcomes, dataset))


def close(log_likelihood):
    """Within 1e-4, or within four units in the last place of the harness's sums, which are float32.

    A row of 511 tokens has a log-likelihood of -7000 here, where float32 numbers lie 5e-4 apart.
    """
    return pytest.approx(log_likelihood, abs=1e-4, rel=4 * 2**-23)


def check_scores(patcher, scores, sequences, lm):
    """Tokens, log-likelihoods and greedy flags of sequences, against what the harness's model scored.

    A few sequences may be further apart: where the logits of the last expert selected and of the next one
    are equal up to float32 rounding, every way to compute them (the harness at another batch size, too)
    may select another expert.
    """
    differing = []
    for score, sequence, (context, continuation, log_likelihood, is_greedy) in zip(
        scores, sequences, lm.scored, strict=True
    ):
        assert sequence.token_ids == (context + continuation)[-(MODEL_LENGTH + 1) :]
        assert sequence.num_predicted_tokens == len(continuation)
        assert score.is_greedy == is_greedy
        if score.log_likelihood != close(log_likelihood):
            differing.append(sequence)
            assert abs(score.log_likelihood - log_likelihood) < 0.01 * len(continuation)
    assert len(differing) <= 1 + len(scores) // 50
    for sequence in differing:
        with patcher:
            score_batch(patcher.model, [sequence])
        assert undecided(patcher.strategy, patcher.take_batch().router_logits).any()


def compare(both, tokenizer, cache, name, dataset, path, rows):
    """Score a data set on both sides and compare each sample and each metric.

    Returns (our side, the harness's metrics).
    """
    lm, patched, patcher = both(name)
    ours = score(patcher, tokenizer, dataset, path, rows)
    task = make_task(dataset, path, cache)
    with patched():
        results = evaluate(lm, {"tasks": {dataset: task}, "groups": {}}, limit=rows, bootstrap_iters=1000)
    samples, expected = results["samples"][dataset], results["results"][dataset]
    assert [one["doc_id"] for one in samples] == list(range(rows))
    assert [one.sample_id for one in ours.prepared] == [f"{dataset}_{number}" for number in range(rows)]
    check_scores(patcher, flatten(ours.scores), flatten(one.sequences for one in ours.prepared), lm)
    for outcome, sample in zip(ours.outcomes, samples, strict=True):
        if dataset == "lambada":
            assert outcome["correct"] == bool(sample["acc"])
            continue
        log_likelihoods = np.array([value for value, _ in sample["filtered_resps"]])
        lengths = np.array([float(len(choice)) for choice in task.doc_to_choice(sample["doc"])])
        with np.errstate(divide="ignore"):  # a choice of no characters
            assert outcome["prediction"] == np.argmax(log_likelihoods / lengths)
        assert outcome["prediction_unnormalized"] == np.argmax(log_likelihoods)
        assert outcome["correct"] == bool(sample["acc_norm"])
        assert (outcome["prediction_unnormalized"] == outcome["gold"]) == bool(sample["acc"])
    pairs = {"accuracy": "acc"} if dataset == "lambada" else {"accuracy": "acc_norm", "acc": "acc"}
    for own, theirs in pairs.items():
        assert ours.metrics[f"{dataset}_{own}"] == expected[f"{theirs},none"]
        assert ours.metrics[f"{dataset}_{own}_stderr"] == pytest.approx(
            expected[f"{theirs}_stderr,none"], rel=1e-12, abs=1e-12
        )
    if dataset == "lambada":
        assert ours.metrics["lambada_perplexity"] == pytest.approx(expected["perplexity,none"], rel=1e-4)
    return ours, expected


@pytest.mark.parametrize(("name", "dataset", "path", "rows"), cases("lambada", "hellaswag", "arc_challenge"))
def test_decisions_and_metrics_are_the_harness_s(both, embedded, tmp_path, name, dataset, path, rows):
    if not path.exists():
        pytest.skip("the real rows are not here")
    ours, expected = compare(both, embedded.tokenizer, tmp_path, name, dataset, path, rows)
    if dataset == "lambada" and path.parent == EMBEDDED:
        # The model knows these rows, so that both answers occur and words are likely enough for a
        # bootstrap of 1000 draws, which is the harness's error; ours is the delta method.
        assert 0 < ours.metrics["lambada_accuracy"] < 1
        assert ours.metrics["lambada_perplexity_stderr"] == pytest.approx(
            expected["perplexity_stderr,none"], rel=0.2
        )


@pytest.mark.parametrize("dataset", ["lambada", "hellaswag", "arc_challenge"])
def test_bfloat16_is_near_the_harness(embedded, dataset):
    """Both round, at other places.

    Measured on these rows: a log-likelihood differs by at most 2.2 (median at most 0.06), their sum by at
    most 0.01 a token, and no decision does. The tolerances are some twice that, and one decision.
    """
    stock = AutoModelForCausalLM.from_pretrained(ROOT / "resources/embedded_model", dtype=torch.bfloat16)
    lm = HFLM(
        pretrained=stock.eval(), tokenizer=embedded.tokenizer, batch_size=BATCH_SIZE, softmax_dtype="float32"
    )
    model = load_model(embedded.loaded.info, "bfloat16", "cpu").model
    patcher = RouterPatcher(model, make_strategy(CONFIGURATIONS[NATIVE], ROUTING, None))
    ours = score(patcher, embedded.tokenizer, dataset, EMBEDDED / f"{dataset}.jsonl", 40)

    sequences = flatten(one.sequences for one in ours.prepared)
    pairs = [(one.token_ids, one.num_context_tokens) for one in sequences]
    theirs = lm._loglikelihood_tokens([(None, ids[:n], ids[n:]) for ids, n in pairs], disable_tqdm=True)
    values = np.array([value for value, _ in theirs])
    apart = np.array([one.log_likelihood for one in flatten(ours.scores)]) - values
    assert np.abs(apart).max() < 4 and np.median(np.abs(apart)) < 0.12
    assert abs(apart.sum()) < 0.02 * sum(one.num_predicted_tokens for one in sequences)
    remaining = (SequenceScore(value, 1, is_greedy) for value, is_greedy in theirs)
    decisions = [
        get_task(dataset).outcome(one.sample, [next(remaining) for _ in one.sequences])["correct"]
        for one in ours.prepared
    ]
    assert sum(one["correct"] != other for one, other in zip(ours.outcomes, decisions, strict=True)) <= 1


LONG = "The king went to the village of Oxley . " * 60  # more tokens than the model reads
EDGE_ROWS = {
    "lambada": [
        {"text": text}
        for text in (
            "ends with a space ", "ends with two  ", "word", "word ", " word", "two  spaces",
            "a line\nends\n", "tab\tand word", f"{LONG}crown", "<|endoftext|>The king",
            "<|endoftext|> king", "— “quoted”",
        )
    ],
    "hellaswag": [
        {"activity_label": label, "ctx_a": context, "ctx_b": "", "endings": endings, "label": "1"}
        for label, context, endings in (
            ("[header]", "[step]", [" a ", "[title] b", "c\n", "d"]),
            ("Cooking", "A man stands. ", ["", "cooks rice.", "cooks rice", "cooks rice."]),
            ("Riding", LONG, ["home", "homes", "to the village", "<|endoftext|>"]),
        )
    ],
    "arc_challenge": [
        {
            "question": question,
            "choices": {"text": choices, "label": list("ABCDE"[: len(choices)])},
            "answerKey": "B",
        }
        for question, choices in (
            ("", ["salt", "water", "water"]),
            ("What is wet? ", ["5", "'s \\\"quoted\"", "[1]", " led by a space", "a\nb"]),
            (LONG, ["the water", "the waters", "the"]),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("dataset", EDGE_ROWS)
def test_edge_rows_are_scored_as_by_the_harness(both, embedded, tmp_path, dataset):
    """Empty contexts and choices, spaces at ends, equal choices, texts that are cut or start like a start."""
    rows, path = EDGE_ROWS[dataset], tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, _ = compare(both, embedded.tokenizer, tmp_path, NATIVE, dataset, path, len(rows))
    assert any(sequence.truncated for one in ours.prepared for sequence in one.sequences)


@pytest.mark.parametrize(("name", "dataset", "path", "rows"), cases("wikitext"))
def test_rows_of_wikitext_are_scored_as_by_the_harness_s_model(both, embedded, name, dataset, path, rows):
    """The harness has no task of rows: its model scores the tokens after the first."""
    if not path.exists():
        pytest.skip("the real rows are not here")
    lm, patched, patcher = both(name)
    ours = score(patcher, embedded.tokenizer, dataset, path, rows)
    encoded = [lm.tok_encode(row["text"])[:MODEL_LENGTH] for row in rows_of(path) if row["text"].strip()]
    encoded = [token_ids for token_ids in encoded if len(token_ids) >= 2][:rows]
    assert len(encoded) == rows
    with patched():
        expected = lm._loglikelihood_tokens([(None, one[:1], one[1:]) for one in encoded], disable_tqdm=True)
    check_scores(patcher, flatten(ours.scores), flatten(one.sequences for one in ours.prepared), lm)
    totals = np.array([-log_likelihood for log_likelihood, _ in expected])
    lengths = np.array([len(one) - 1 for one in encoded])
    assert ours.metrics["perplexity"] == pytest.approx(math.exp(np.mean(totals / lengths)), rel=1e-4)
    assert ours.metrics["token_perplexity"] == pytest.approx(math.exp(totals.sum() / lengths.sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "path", "rows"),
    [
        pytest.param(NATIVE, REAL_FILES["wikitext"], 60, id=f"{NATIVE}-real"),
        pytest.param(BH_16, REAL_FILES["wikitext"], 60, id=f"{BH_16}-real"),
        pytest.param(NATIVE, EMBEDDED / "wikitext.jsonl", 60, id=f"{NATIVE}-embedded"),
        pytest.param(BH_16, EMBEDDED / "wikitext.jsonl", 60, id=f"{BH_16}-embedded"),
    ],
)
def test_documents_of_wikitext_are_the_harness_s(both, embedded, tmp_path, name, path, rows):
    """The harness's `wikitext` task, on articles joined from the first rows."""
    if not path.exists():
        pytest.skip("the real rows are not here")
    lines, pages = tmp_path / "lines.jsonl", tmp_path / "pages.jsonl"
    first = rows_of(path)[:rows]
    lines.write_text("".join(json.dumps(row) + "\n" for row in first))
    articles = [row for row in get_task("wikitext", "documents").regroup(first) if row["page"].strip()]
    pages.write_text("".join(json.dumps(row) + "\n" for row in articles))

    lm, patched, patcher = both(name)
    with patched():
        results = evaluate(
            lm, {"tasks": {"wikitext": make_task("wikitext", pages, tmp_path)}, "groups": {}},
            bootstrap_iters=0,
        )  # fmt: skip
    samples, expected = results["samples"]["wikitext"], results["results"]["wikitext"]
    # Articles may come as lines or whole.
    for source in (lines, pages)[: 2 if path.parent == EMBEDDED else 1]:
        ours = score(patcher, embedded.tokenizer, "wikitext", source, len(articles), "documents")
        assert len(samples) == len(ours.outcomes) == len(articles) >= 2
        check_scores(patcher, flatten(ours.scores), flatten(one.sequences for one in ours.prepared), lm)
        for outcome, sample in zip(ours.outcomes, samples, strict=True):
            log_likelihood, num_words = sample["word_perplexity"]
            assert outcome["log_likelihood"] == pytest.approx(log_likelihood, rel=1e-5)
            assert outcome["num_words"] == num_words
            assert outcome["num_bytes"] == sample["byte_perplexity"][1]
        log_likelihoods = [one["log_likelihood"] for one in ours.outcomes]
        for unit in ("word", "byte"):
            pairs = list(zip(log_likelihoods, [one[f"num_{unit}s"] for one in ours.outcomes], strict=True))
            own = ours.metrics[f"{unit}_perplexity"]
            assert own == pytest.approx(weighted_perplexity(pairs), rel=1e-12)
            # Words of text that the model does not know have perplexities of 1e15: compared as logarithms.
            theirs = expected[f"{unit}_perplexity,none"]
            assert math.log(own) == pytest.approx(math.log(theirs), rel=1e-5)
        assert ours.metrics["bits_per_byte"] == pytest.approx(expected["bits_per_byte,none"], rel=1e-5)


def with_template(tokenizer, template):
    """A copy of a tokenizer that adds special tokens around a text; `template` names them by role."""
    adapted = copy.deepcopy(tokenizer)
    tokens = {"start": tokenizer.bos_token, "end": tokenizer.pad_token}
    parts = [tokens.get(part, part) for part in template.split()]
    adapted._tokenizer.post_processor = TemplateProcessing(
        single=parts, special_tokens=[(one, tokenizer.convert_tokens_to_ids(one)) for one in tokens.values()]
    )
    return adapted


def edge_requests(start):
    """Contexts and continuations with spaces, newlines and the start token at every edge."""
    rng = random.Random(0)
    edges = ["", " ", "  ", "\n", start, f"{start} "]
    middles = ["The king", "Question: What is wet?\nAnswer:", "a b", "x", "Übermut — “quoted”"]
    contexts = ["", start] + [a + b + c for a in edges for b in middles for c in edges]
    requests = [
        (context, rng.choice(["", " ", " ", "\n", start]) + rng.choice([*middles, " "]))
        for context in contexts
        for _ in range(2)
    ]
    words = ["the", " queen", " ", "  ", ",", "\n", " rain", "ing", start]
    requests += [tuple("".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(2)) for _ in range(60)]
    # A context of white space alone is none for the harness, which then fails.
    return [(context, text) for context, text in requests if not context or context.strip()]


TOKENIZERS = {"plain": "$A", "start": "start $A", "start and end": "start $A end"}


@pytest.mark.parametrize("template", TOKENIZERS.values(), ids=TOKENIZERS)
def test_special_tokens_are_added_as_by_the_harness(both, embedded, template):
    from lm_eval.api.instance import Instance

    tokenizer = with_template(embedded.tokenizer, template)
    assert len(tokenizer.encode("a")) == len(template.split())
    # The harness's cache takes requests with the same tokens for one, wherever their continuation starts.
    lm, _, patcher = both(NATIVE, tokenizer, logits_cache=False)

    def theirs(requests):
        return lm.loglikelihood(
            [Instance("loglikelihood", {}, request, 0) for request in requests], disable_tqdm=True
        )

    scored, sequences, refused = [], [], 0
    for request in edge_requests(tokenizer.bos_token):
        try:
            (sequence,) = encode_request(tokenizer, Request(*request), MODEL_LENGTH, MODEL_LENGTH)
        except InputError:  # nothing to score, which stops the harness
            with pytest.raises((AssertionError, IndexError)):
                theirs([request])
            refused += 1
        else:
            scored.append(request)
            sequences.append(sequence)
    assert len(scored) > 100 > 10 * refused
    theirs(scored)
    check_scores(patcher, score_batch(patcher.model, sequences).scores, sequences, lm)

    start = tokenizer.bos_token
    for text in ("The king", f"{start}The king", f"{start} king", " led by a space", LONG):
        lm.scored = ()
        (log_likelihood,) = lm.loglikelihood_rolling(
            [Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True
        )
        windows = encode_request(tokenizer, Request(None, text, rolling=True), MODEL_LENGTH, MODEL_LENGTH)
        scores = score_batch(patcher.model, windows).scores
        check_scores(patcher, scores, windows, lm)
        assert math.fsum(one.log_likelihood for one in scores) == pytest.approx(log_likelihood, rel=1e-5)
        (row,) = encode_request(tokenizer, Request(None, text), 100, MODEL_LENGTH)
        assert row.token_ids == lm.tok_encode(text)[:100]
