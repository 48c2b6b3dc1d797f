"""Each task against lm-evaluation-harness's own code, and its metrics against numbers worked by hand."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from adaptive_routing.data import load_rows, prepare_samples
from adaptive_routing.errors import InputError
from adaptive_routing.scoring import score_batch
from adaptive_routing.tasks import SequenceScore, get_task
from conftest import ROOT

REAL_DATA = ROOT.parent / "shared/data"
HARNESS = {  # its task file and the split that it evaluates
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
    "lambada": ("lambada/lambada_openai.yaml", "test"),
}
SOURCES = [
    ("hellaswag", ROOT / "resources/datasets/hellaswag.jsonl"),
    ("arc_challenge", ROOT / "resources/datasets/arc_challenge.jsonl"),
    ("lambada", ROOT / "resources/datasets/lambada.jsonl"),
    ("hellaswag", REAL_DATA / "hellaswag_validation.jsonl"),
    ("lambada", REAL_DATA / "lambada_openai_test.jsonl"),
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """(data set, file) → the harness's task on that file: its YAML, its functions, our rows."""
    pytest.importorskip("lm_eval")
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    cache = tmp_path_factory.mktemp("harness")

    def task(dataset, path):
        file, split = HARNESS[dataset]
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / file)
        for key in ("include", "tag", "training_split", "validation_split", "test_split"):
            config.pop(key, None)
        config |= {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(path)}, "cache_dir": str(cache)},
            f"{split}_split": split,
        }
        return ConfigurableTask(config=config)

    return task


def rows_of(path):
    return list(load_rows(str(path)))


@pytest.mark.parametrize(("dataset", "path"), SOURCES)
def test_prompts_and_decisions_are_the_harness_s(harness, dataset, path):
    """Contexts, continuations and golds of every row; acc, acc_norm and perplexity for any scores."""
    if not path.exists():
        pytest.skip("the real rows are not here")
    theirs, ours = harness(dataset, path), get_task(dataset)
    theirs.build_all_requests(rank=0, world_size=1)
    arguments = {}
    for instance in theirs.instances:
        arguments.setdefault(instance.doc_id, []).append(instance.args)
    documents, rows = list(theirs.eval_docs), rows_of(path)
    assert len(documents) == len(rows) >= 200
    rng = random.Random(0)
    decisions = set()
    for number, (document, row) in enumerate(zip(documents, rows, strict=True)):
        sample = ours.sample(row)
        requests = [(request.context, request.continuation) for request in sample.requests]
        assert requests == arguments[number]
        # Coarse log-likelihoods, so that ties occur.
        scores = [
            SequenceScore(-float(rng.randint(1, 6) * rng.choice([1, 5])), 3, rng.random() < 0.5)
            for _ in requests
        ]
        results = [(score.log_likelihood, score.is_greedy) for score in scores]
        expected = theirs.process_results(document, results)
        outcome = ours.outcome(sample, scores)
        if dataset == "lambada":
            assert outcome["correct"] == bool(expected["acc"])
            assert outcome["log_likelihood"] == expected["perplexity"]
            decisions.add(outcome["correct"])
        else:
            assert outcome["correct"] == bool(expected["acc_norm"])
            assert (outcome["prediction_unnormalized"] == outcome["gold"]) == bool(expected["acc"])
            decisions.add(outcome["prediction"])
    assert len(decisions) >= 2


def one_at_a_time(model, tokenizer):
    """The harness's tokenisation of requests, over a plain forward pass each, cut as `hf` does."""
    from lm_eval.api.model import TemplateLM

    class OneAtATime(TemplateLM):
        backend = "causal"
        eot_token_id = prefix_token_id = tokenizer.eos_token_id
        loglikelihood_rolling = generate_until = None

        def tok_encode(self, string, add_special_tokens=None):
            return tokenizer.encode(string, add_special_tokens=False)

        @torch.inference_mode()
        def _loglikelihood_tokens(self, requests, disable_tqdm=False):
            results = []
            for _, context, continuation in requests:
                inputs = (context + continuation)[-(model.config.max_position_embeddings + 1) :][:-1]
                logits = model(torch.tensor([inputs])).logits[0, -len(continuation) :]
                targets = torch.tensor(continuation)
                chosen = logits.log_softmax(-1).gather(-1, targets[:, None])
                results.append((float(chosen.sum()), bool((logits.argmax(-1) == targets).all())))
            return results

    return OneAtATime()


@pytest.mark.parametrize("dataset", ["hellaswag", "arc_challenge", "lambada"])
def test_scores_are_the_harness_s(harness, embedded, dataset):
    """Tokens, log-likelihoods and greedy flags of the first rows."""
    path = ROOT / f"resources/datasets/{dataset}.jsonl"
    theirs, model = harness(dataset, path), embedded.loaded.model
    theirs.build_all_requests(limit=6, rank=0, world_size=1)
    expected = one_at_a_time(model, embedded.tokenizer).loglikelihood(theirs.instances, disable_tqdm=True)
    maximum = model.config.max_position_embeddings
    prepared = prepare_samples(dataset, rows_of(path), embedded.tokenizer, 6, maximum, maximum)
    sequences = [sequence for one in prepared for sequence in one.sequences]
    scores = score_batch(model, sequences).scores
    assert len(scores) == len(expected)
    for score, (log_likelihood, is_greedy) in zip(scores, expected, strict=True):
        assert score.log_likelihood == pytest.approx(log_likelihood, rel=1e-4, abs=1e-3)
        assert score.is_greedy == is_greedy


def test_hellaswag_clean_up_is_the_harness_s():
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    clean = get_task("hellaswag").clean
    texts = [
        "  a [title] b", "[header] How to [step] go", "x  y   z    ", "[a [b] c]", "[]", "", " [title]",
        "one [substeps] two", "[unclosed", "a\n[b\nc] d",
    ]  # fmt: skip
    rng = random.Random(0)
    texts += ["".join(rng.choice("a b[]  title.\n") for _ in range(30)) for _ in range(500)]
    texts += [" ".join(rng.choice(["[title]", "[", "]", "a", ""]) for _ in range(8)) for _ in range(500)]
    for text in texts:
        assert clean(text) == utils.preprocess(text)


# Metrics by hand


def scores(*log_likelihoods, tokens=2, greedy=False):
    return [SequenceScore(value, tokens, greedy) for value in log_likelihoods]


HELLASWAG_ROW = {
    "activity_label": "Cooking",
    "ctx_a": "A man stands.",
    "ctx_b": "he",
    "endings": ["cooks [step] rice.", "runs.", "x" * 40, "sings loud."],
    "label": "2",
}


def test_hellaswag_by_hand():
    task = get_task("hellaswag")
    sample = task.sample(HELLASWAG_ROW)
    assert sample.text == "Cooking: A man stands. He" == sample.requests[0].context
    assert [request.continuation for request in sample.requests] == [
        " cooks rice.", " runs.", " " + "x" * 40, " sings loud.",
    ]  # fmt: skip
    assert sample.gold == 2
    # By length: -10/11, -5/5, -30/40, -12/11; unnormalised the second is best.
    outcome = task.outcome(sample, scores(-10, -5, -30, -12, tokens=4))
    assert outcome == {
        "loss": 7.5,
        "log_likelihoods": [-10, -5, -30, -12],
        "prediction": 2,
        "prediction_unnormalized": 1,
        "gold": 2,
        "correct": True,
    }
    wrong = task.outcome(sample, scores(-1, -5, -90, -1))
    assert wrong["prediction"] == wrong["prediction_unnormalized"] == 0  # of equals the first
    assert task.metrics([outcome, wrong, outcome, outcome]) == {
        "hellaswag_accuracy": 0.75,
        "hellaswag_accuracy_stderr": math.sqrt(0.75 * 0.25 / 3),
        "hellaswag_acc": 0.0,
        "hellaswag_acc_stderr": 0.0,
    }
    assert task.metrics([outcome])["hellaswag_accuracy_stderr"] is None


def test_arc_challenge_by_hand():
    task = get_task("arc_challenge")
    row = {
        "question": "What is wet?",
        "choices": {"text": ["sand", "the water", "salt"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }
    sample = task.sample(row)
    assert sample.requests[1].context == "Question: What is wet?\nAnswer:"
    assert sample.requests[1].continuation == " the water"
    outcome = task.outcome(sample, scores(-4, -8, -6))
    assert (outcome["prediction"], outcome["prediction_unnormalized"], outcome["correct"]) == (1, 0, True)
    assert outcome["loss"] == 4.0
    metrics = task.metrics([outcome, outcome])
    assert (metrics["arc_challenge_accuracy"], metrics["arc_challenge_acc"]) == (1.0, 0.0)


def test_lambada_by_hand():
    task = get_task("lambada")
    sample = task.sample({"text": "The king  gave her a  crown"})
    assert [(one.context, one.continuation) for one in sample.requests] == [
        ("The king  gave her a ", " crown")
    ]
    (of_a_space,) = task.sample({"text": "ends with a space "}).requests
    assert (of_a_space.context, of_a_space.continuation) == ("ends with a space", " ")
    (of_one_word,) = task.sample({"text": "word"}).requests
    assert (of_one_word.context, of_one_word.continuation) == ("", " word")
    assert task.sample({"text": " \n "}) is None
    outcomes = [
        task.outcome(sample, scores(-2.0, greedy=True)),
        task.outcome(sample, scores(-4.0, greedy=False)),
        task.outcome(sample, scores(-3.0, greedy=True)),
    ]
    assert outcomes[0] == {"loss": 1.0, "log_likelihood": -2.0, "correct": True}
    metrics = task.metrics(outcomes)
    assert metrics["lambada_accuracy"] == 2 / 3
    assert metrics["lambada_accuracy_stderr"] == pytest.approx(math.sqrt(2 / 9 / 2))
    assert metrics["lambada_perplexity"] == pytest.approx(math.exp(3.0))


def test_wikitext_by_hand():
    task = get_task("wikitext")
    assert task.sample({"text": " \n"}) is None
    sample = task.sample({"text": " = A = \n"})
    assert (sample.text, sample.requests[0].context, sample.requests[0].continuation) == (
        "= A =", None, " = A = \n",
    )  # fmt: skip
    outcomes = [
        task.outcome(sample, scores(-3.0, tokens=3)) | {"num_predicted_tokens": 3},
        task.outcome(sample, scores(-2.0, tokens=1)) | {"num_predicted_tokens": 1},
    ]
    assert [one["loss"] for one in outcomes] == [1.0, 2.0]
    metrics = task.metrics(outcomes)
    assert metrics["perplexity"] == pytest.approx(math.exp(1.5))
    assert metrics["token_perplexity"] == pytest.approx(math.exp(5 / 4))
    # The standard deviation of 1 and 2 is sqrt(1/2), of their mean 1/2.
    assert metrics["perplexity_stderr"] == pytest.approx(math.exp(1.5) * 0.5)
    assert task.metrics(outcomes[:1])["perplexity_stderr"] is None


# Rows


def test_the_first_rows_that_can_be_scored_are_taken(embedded):
    rows = [
        {"text": text} for text in ("", " \n", "The king went home .", "   ", "A queen came .", "Third .")
    ]
    prepared = prepare_samples("wikitext", rows, embedded.tokenizer, 2, 512, 512)
    assert [one.sample_id for one in prepared] == ["wikitext_2", "wikitext_4"]
    assert prepared[0].sequences[0].token_ids == embedded.tokenizer.encode("The king went home .")
    cut = prepare_samples("wikitext", rows, embedded.tokenizer, 2, 3, 512)[0].sequences[0]
    assert cut.truncated and cut.token_ids == prepared[0].sequences[0].token_ids[:3]


ARC_ROW = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}


@pytest.mark.parametrize(
    ("dataset", "good", "changes", "words"),
    [
        ("wikitext", {"text": "fine text"}, {"text": None}, ["'text' holds None", "a text"]),
        ("wikitext", {"text": "fine text"}, {"text": 3}, ["'text' holds 3"]),
        ("lambada", {"text": "fine text"}, {"text": ["a"]}, ["'text' holds ['a']"]),
        ("hellaswag", HELLASWAG_ROW, {"ctx_b": None}, ["'ctx_b' holds None"]),
        ("hellaswag", HELLASWAG_ROW, {"endings": "abcd"}, ["'endings' holds 'abcd'", "a list of texts"]),
        ("hellaswag", HELLASWAG_ROW, {"endings": ["a", None]}, ["'endings'"]),
        ("hellaswag", HELLASWAG_ROW, {"endings": []}, ["'endings'"]),
        ("hellaswag", HELLASWAG_ROW, {"label": ""}, ["label is ''", "allowed are 0 to 3"]),
        ("hellaswag", HELLASWAG_ROW, {"label": "4"}, ["label is '4'", "allowed are 0 to 3"]),
        ("hellaswag", HELLASWAG_ROW, {"label": -1}, ["label is -1"]),
        ("hellaswag", HELLASWAG_ROW, {"label": None}, ["'label' holds None"]),
        ("arc_challenge", ARC_ROW, {"answerKey": "C"}, ["answerKey is 'C'", "'A', 'B'"]),
        ("arc_challenge", ARC_ROW, {"choices": ["a", "b"]}, ["'choices' holds ['a', 'b']"]),
        ("arc_challenge", ARC_ROW, {"choices": {"text": ["a"], "label": ["A", "B"]}}, ["of one length"]),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_with_its_column(embedded, dataset, good, changes, words):
    assert len(prepare_samples(dataset, [good, good], embedded.tokenizer, 5, 512, 512)) == 2
    with pytest.raises(InputError) as caught:
        prepare_samples(dataset, [good, {**good, **changes}], embedded.tokenizer, 5, 512, 512)
    message = str(caught.value)
    assert message.startswith(f"datasets.{dataset}: row 1: ") and "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_column_and_an_empty_data_set_are_named(embedded):
    row = {key: value for key, value in HELLASWAG_ROW.items() if key != "ctx_b"}
    with pytest.raises(
        InputError, match=r"datasets\.hellaswag: column 'ctx_b' is missing; found 'activity_label'"
    ):
        prepare_samples("hellaswag", [row], embedded.tokenizer, 5, 512, 512)
    with pytest.raises(InputError, match=r"datasets\.wikitext: no row holds text"):
        prepare_samples("wikitext", [{"text": " "}], embedded.tokenizer, 5, 512, 512)


def test_local_files_of_each_format_hold_the_same_rows(tmp_path):
    import pandas as pd

    rows = [{"text": "eins\n"}, {"text": "zwei “drei”"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert rows_of(tmp_path / name) == rows
    with pytest.raises(InputError, match=r"datasets\.wikitext: cannot read"):
        list(load_rows(str(tmp_path / "none.jsonl"), name="datasets.wikitext"))


def test_the_embedded_tokenizer_round_trips_any_text(embedded):
    for text in ("plain words", "Übermut — “quoted” 中文 🙂\n\ttab", "\x00\x7f", "a  b   c "):
        token_ids = embedded.tokenizer.encode(text, add_special_tokens=False)
        assert embedded.tokenizer.decode(token_ids) == text
        assert torch.tensor(token_ids).max() < embedded.loaded.model.config.vocab_size
