"""Each task against lm-evaluation-harness's own code, and its metrics against numbers worked by hand."""

import json
import math
import random

import pytest
import torch
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import prepare_samples, skipped_rows
from adaptive_routing.data.tasks import (
    Request,
    Sample,
    SequenceScore,
    Task,
    as_label,
    get_task,
    wikitext_documents,
)
from adaptive_routing.data.tokens import encode_request
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.settings.schema import resolved, schema
from adaptive_routing.system.errors import InputError
from conftest import ROOT
from harness import REAL_DATA, make_task, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCES = [
    ("hellaswag", ROOT / "resources/datasets/hellaswag.jsonl"),
    ("arc_challenge", ROOT / "resources/datasets/arc_challenge.jsonl"),
    ("lambada", ROOT / "resources/datasets/lambada.jsonl"),
    ("hellaswag", REAL_DATA / "hellaswag_validation.jsonl"),
    ("lambada", REAL_DATA / "lambada_openai_test.jsonl"),
]


@pytest.mark.parametrize(("dataset", "path"), SOURCES)
def test_prompts_and_decisions_are_the_harness_s(tmp_path, dataset, path):
    """Contexts, continuations and golds of every row; acc, acc_norm and perplexity for any scores."""
    if not path.exists():
        pytest.skip("the real rows are not here")
    pytest.importorskip("lm_eval")
    theirs, ours = make_task(dataset, path, tmp_path), get_task(dataset)
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


# The modules


def test_every_data_set_has_a_task():
    """The schema's names and protocols, each with all that a `Task` has."""
    for name, node in schema()["properties"]["datasets"]["properties"].items():
        protocols = resolved(node)["properties"].get("protocol", {"enum": [None]})["enum"]
        for protocol in protocols:
            assert isinstance(get_task(name, protocol), Task)


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
    assert task.metrics([outcome, wrong, outcome, outcome], "hellaswag") == {
        "hellaswag_accuracy": 0.75,
        "hellaswag_accuracy_stderr": math.sqrt(0.75 * 0.25 / 3),
        "hellaswag_acc": 0.0,
        "hellaswag_acc_stderr": 0.0,
    }
    assert task.metrics([outcome], "hellaswag")["hellaswag_accuracy_stderr"] is None


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
    metrics = task.metrics([outcome, outcome], "arc_challenge")
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
    metrics = task.metrics(outcomes, "lambada")
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
    metrics = task.metrics(outcomes, "wikitext")
    assert metrics["perplexity"] == pytest.approx(math.exp(1.5))
    assert metrics["token_perplexity"] == pytest.approx(math.exp(5 / 4))
    # The standard deviation of 1 and 2 is sqrt(1/2), of their mean 1/2.
    assert metrics["perplexity_stderr"] == pytest.approx(math.exp(1.5) * 0.5)
    assert task.metrics(outcomes[:1], "wikitext")["perplexity_stderr"] is None


# Rows


def test_the_first_rows_that_can_be_scored_are_taken(embedded):
    rows = [
        {"text": text} for text in ("", " \n", "The king went home .", "   ", "A queen came .", "Third .")
    ]
    prepared = prepare_samples("wikitext", rows, embedded.tokenizer, 2, 512, 512)
    assert [one.sample_id for one in prepared] == ["wikitext_2", "wikitext_4"]
    assert prepared[0].sequences[0].token_ids == embedded.tokenizer.encode("The king went home .")
    assert skipped_rows(prepared) == 3
    assert skipped_rows(prepare_samples("wikitext", rows[2:3], embedded.tokenizer, 2, 512, 512)) == 0
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
        ("hellaswag", HELLASWAG_ROW, {"label": ""}, ["'label' holds ''"]),
        ("hellaswag", HELLASWAG_ROW, {"label": 1.5}, ["'label' holds 1.5", "a whole number"]),
        ("hellaswag", HELLASWAG_ROW, {"label": True}, ["'label' holds True"]),
        ("hellaswag", HELLASWAG_ROW, {"label": float("nan")}, ["'label' holds nan"]),
        ("hellaswag", HELLASWAG_ROW, {"label": 4.0}, ["label is 4.0", "allowed are 0 to 3"]),
        ("hellaswag", HELLASWAG_ROW, {"label": "B"}, ["label is 'B'", "allowed are 0 to 3"]),
        ("hellaswag", HELLASWAG_ROW, {"label": "4"}, ["label is '4'", "allowed are 0 to 3"]),
        ("hellaswag", HELLASWAG_ROW, {"label": -1}, ["label is -1"]),
        ("hellaswag", HELLASWAG_ROW, {"label": None}, ["'label' holds None"]),
        ("arc_challenge", ARC_ROW, {"answerKey": "C"}, ["answerKey is 'C'", "'A', 'B'"]),
        ("arc_challenge", ARC_ROW, {"choices": ["a", "b"]}, ["'choices' holds ['a', 'b']"]),
        ("arc_challenge", ARC_ROW, {"choices": {"text": ["a"], "label": ["A", "B"]}}, ["of equal length"]),
        ("arc_challenge", ARC_ROW, {"choices": {"text": ["a", "b"], "label": ["A", None]}}, ["'choices'"]),
        ("arc_challenge", ARC_ROW, {"answerKey": None}, ["'answerKey' holds None"]),
        ("arc_challenge", ARC_ROW, {"answerKey": ""}, ["'answerKey' holds ''"]),
        ("arc_challenge", ARC_ROW, {"answerKey": 1}, ["answerKey is 1;", "'A', 'B'"]),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_with_its_column(embedded, dataset, good, changes, words):
    assert len(prepare_samples(dataset, [good, good], embedded.tokenizer, 5, 512, 512)) == 2
    with pytest.raises(InputError) as caught:
        prepare_samples(dataset, [good, {**good, **changes}], embedded.tokenizer, 5, 512, 512)
    message = str(caught.value)
    assert message.startswith(f"datasets.{dataset}: row 1: ") and "\n" not in message
    assert all(word in message for word in words), message


def clusters_of(embedded, dataset, rows, *protocol):
    prepared = prepare_samples(dataset, rows, embedded.tokenizer, 50, 512, 512, *protocol)
    return [one.sample.attributes["cluster"] for one in prepared]


def test_rows_of_an_article_are_one_cluster(embedded):
    rows = [" = One = \n", " = = Home = = \n", " It is small . \n", "", " = Two = \n", " = = Home = = \n",
            " It is tall . \n", " = Three = \n", " Not there . \n"]  # fmt: skip
    assert clusters_of(embedded, "wikitext", [{"text": row} for row in rows]) == [0, 0, 0, 1, 1, 1, 2, 2]
    # A repeated title or paragraph joins articles, also by way of a third; a section's heading does not.
    rows += [" = One = \n", " It is tall . \n", " = Five = \n", " A new one . \n"]
    joined = [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2, 2]
    assert clusters_of(embedded, "wikitext", [{"text": row} for row in rows]) == joined


def test_rows_without_titles_are_their_own_clusters_unless_they_repeat(embedded):
    rows = [
        {"text": text} for text in ("A first row .", " = = Heading = = ", "Another .", " A first row .\n")
    ]
    assert clusters_of(embedded, "wikitext", rows) == [0, 1, 2, 0]
    assert clusters_of(embedded, "wikitext", [{"page": one["text"]} for one in rows], "documents") == [
        0,
        1,
        2,
        3,
    ]


def test_samples_with_the_same_text_are_one_cluster(embedded):
    other = {**HELLASWAG_ROW, "ctx_a": "Somebody else arrives."}
    endings = {**HELLASWAG_ROW, "endings": [*HELLASWAG_ROW["endings"][:-1], "something new"]}
    assert clusters_of(embedded, "hellaswag", [HELLASWAG_ROW, other, HELLASWAG_ROW, endings]) == [0, 1, 0, 0]
    texts = [{"text": text} for text in ("the king went home", "the queen went home", "the king went home")]
    assert clusters_of(embedded, "lambada", texts) == [0, 1, 0]


def test_clusters_of_the_embedded_data_sets(embedded):
    counts = {}
    for dataset in ("wikitext", "lambada", "hellaswag"):
        rows = rows_of(ROOT / f"resources/datasets/{dataset}.jsonl")
        prepared = prepare_samples(dataset, rows, embedded.tokenizer, 200, 512, 512)
        counts[dataset] = len({one.sample.attributes["cluster"] for one in prepared})
    assert counts == {"wikitext": 32, "lambada": 200, "hellaswag": 200}


def test_a_missing_column_and_an_empty_data_set_are_named(embedded):
    row = {key: value for key, value in HELLASWAG_ROW.items() if key != "ctx_b"}
    with pytest.raises(
        InputError, match=r"datasets\.hellaswag: column 'ctx_b' is missing; found 'activity_label'"
    ):
        prepare_samples("hellaswag", [row], embedded.tokenizer, 5, 512, 512)
    with pytest.raises(InputError, match=r"datasets\.wikitext: no row holds text"):
        prepare_samples("wikitext", [{"text": " "}], embedded.tokenizer, 5, 512, 512)


def test_a_fault_in_lines_of_articles_is_that_of_the_line(embedded):
    def prepare(*rows):
        return prepare_samples("wikitext", rows, embedded.tokenizer, 5, 512, 512, "documents")

    with pytest.raises(
        InputError, match=r"^datasets\.wikitext: row 2: column 'text' holds None; needed is a text$"
    ):
        prepare({"text": " = One = "}, {"text": ""}, {"text": None})
    with pytest.raises(InputError, match=r"^datasets\.wikitext: row 0: column 'page' holds 3"):
        prepare({"page": 3, "text": "fine"})
    with pytest.raises(
        InputError,
        match=r"^datasets\.wikitext: column 'page' or 'text' is missing; found 'body', needed 'page'$",
    ):
        prepare({"body": "fine text"})
    with pytest.raises(InputError, match=r"^datasets\.wikitext: no row holds text"):
        prepare({"text": ""}, {"text": " \n"})


def test_a_choice_is_scored_where_there_is_any_text(embedded):
    """Without a context, or without choices; a row that has neither is passed over."""
    no_hellaswag = {
        **HELLASWAG_ROW,
        "activity_label": " ",
        "ctx_a": "[step]",
        "ctx_b": "",
        "endings": ["", " "],
    }
    no_arc = {"question": " ", "choices": {"text": ["", "\n"], "label": ["A", "B"]}, "answerKey": "B"}
    blank, spoken = {**no_hellaswag, "label": "1"}, {"text": ["", "b"], "label": ["A", "B"]}
    for dataset, rows in {
        "hellaswag": [blank, {**blank, "ctx_b": "x"}, blank, {**blank, "endings": ["", "b"]}],
        "arc_challenge": [no_arc, {**no_arc, "question": "x"}, no_arc, {**no_arc, "choices": spoken}],
    }.items():
        prepared = prepare_samples(dataset, rows, embedded.tokenizer, 5, 512, 512)
        assert [one.sample_id for one in prepared] == [f"{dataset}_1", f"{dataset}_3"]
        assert skipped_rows(prepared) == 2
        with pytest.raises(InputError, match="no row holds text"):
            prepare_samples(dataset, rows[::2], embedded.tokenizer, 5, 512, 512)


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


# WikiText by documents


@settings(deadline=None)
@given(tokens=st.lists(st.integers(1, 9), max_size=70), model_max_length=st.integers(1, 20))
def test_rolling_windows_are_the_harness_s(tokens, model_max_length):
    """What is read and what is scored, window by window; every token of the text is scored once."""
    utils = pytest.importorskip("lm_eval.utils")
    expected = [
        (context + continuation, len(context))
        for context, continuation in map(
            utils.make_disjoint_window,
            utils.get_rolling_token_windows(
                tokens, prefix_token=0, max_seq_len=model_max_length, context_len=1
            ),
        )
    ]

    class Tokens:
        bos_token_id, eos_token_id = None, 0

        def encode(self, text):
            return tokens

        def decode(self, token):
            return "<end>"

    sequences = encode_request(Tokens(), Request(None, "text", rolling=True), 5, model_max_length)
    assert [(one.token_ids, one.num_context_tokens) for one in sequences] == expected
    assert sum(one.num_predicted_tokens for one in sequences) == len(tokens)
    assert all(one.num_inputs == min(len(one.token_ids), model_max_length) for one in sequences)
    assert not any(one.truncated for one in sequences)


MARKED = [
    "s '", " @-@ ", " @.@ ", " : ", " . ", "( a )", "[ b ", "{ c }", '" d "', "' e '", "= = =", " ° ",
    " \n", "\n ", " N ", " 's", "/' 5/", "x", " ", "=", "'", '"', "(", ")",
]  # fmt: skip


@given(parts=st.lists(st.sampled_from(MARKED), max_size=12))
def test_articles_are_detokenized_as_in_the_harness(parts):
    utils = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    text = "".join(parts)
    assert wikitext_documents.detokenize(text) == utils.wikitext_detokenizer({"page": text})


def test_lines_become_articles_at_their_titles():
    lines = [
        "",
        " = One = \n",
        "",
        " A line . \n",
        " = = Part = = \n",
        " Another . \n",
        " = Two = \n",
        " = x \n",
    ]
    pages = list(wikitext_documents.regroup({"text": line} for line in lines))
    assert pages == [  # nothing of the blank line before the first title
        {"page": " = One = \n \n A line . \n = = Part = = \n Another . "},
        {"page": " = Two = \n = x "},
    ]
    assert list(wikitext_documents.regroup(pages)) == pages
    samples = [wikitext_documents.sample(page) for page in pages]
    assert samples[1].requests == (Request(None, " = Two =\n= x ", rolling=True),)
    assert list(wikitext_documents.regroup([{"text": "no title"}, {"text": ""}])) == [{"page": "no title\n "}]


def test_a_document_by_hand():
    task = get_task("wikitext", "documents")
    sample = task.sample({"page": " = Ä = \n two words "})
    outcomes = [
        task.outcome(sample, scores(-6.0, -2.0, tokens=4)) | {"num_predicted_tokens": 8},
        task.outcome(sample, scores(-12.0, tokens=4)) | {"num_predicted_tokens": 4},
    ]
    # Split at white space as the harness counts words: an empty one before the first and after the last.
    assert outcomes[0] == {
        "loss": 1.0, "log_likelihood": -8.0, "num_words": 7, "num_bytes": 20, "num_predicted_tokens": 8,
    }  # fmt: skip
    metrics = task.metrics(outcomes, "wikitext")
    assert metrics["perplexity"] == pytest.approx(math.exp(2.0))
    assert metrics["token_perplexity"] == pytest.approx(math.exp(20 / 12))
    assert metrics["word_perplexity"] == pytest.approx(math.exp(20 / 14))
    assert metrics["byte_perplexity"] == pytest.approx(math.exp(20 / 40))
    assert metrics["bits_per_byte"] == pytest.approx(20 / 40 / math.log(2))
    # 8 and 12 are 2 below and above the mean of 10 a document; the mean's standard error is 2.
    assert metrics["bits_per_byte_stderr"] == pytest.approx(2 / 20 / math.log(2))
    assert metrics["word_perplexity_stderr"] == pytest.approx(math.exp(20 / 14) * 2 / 7)
    assert task.metrics(outcomes[:1], "wikitext")["word_perplexity_stderr"] is None


def test_documents_of_the_embedded_rows(embedded):
    path = ROOT / "resources/datasets/wikitext.jsonl"
    prepared = prepare_samples("wikitext", rows_of(path), embedded.tokenizer, 200, 512, 96, "documents")
    text = "".join(row["text"] for row in rows_of(path))
    assert 5 <= len(prepared) < 200 and prepared[0].sample_id == "wikitext_0"
    assert all(one.sample.text.startswith(" = ") for one in prepared)
    assert "".join("".join(one.sample.text.split()) for one in prepared) == "".join(text.split())
    assert max(len(one.sequences) for one in prepared) >= 2  # longer than the 96 tokens of a window
    for one in prepared:
        tokens = embedded.tokenizer.encode(wikitext_documents.detokenize(one.sample.text))
        assert sum(sequence.num_predicted_tokens for sequence in one.sequences) == len(tokens)


# Prompts


def test_prompts_by_hand(embedded):
    task = get_task("prompts")
    row = {"prompt": "Say a word", "difficulty": 3}
    sample = task.sample(row)
    request = Request(None, "Say a word", keep_end=True)
    assert sample == Sample("Say a word", (request,), None, {"difficulty": 3})
    assert task.sample({"prompt": " \n", "difficulty": 1}) is None
    outcomes = [task.outcome(sample, scores(-4.0, tokens=4)), task.outcome(sample, scores(-3.0, tokens=1))]
    metrics = task.metrics(outcomes, "prompts")
    assert metrics["prompt_perplexity"] == pytest.approx(math.exp(2.0))
    assert metrics["prompt_perplexity_stderr"] == pytest.approx(math.exp(2.0) * 1.0)
    for level in ("3", " 3", 3.0):
        assert task.sample({**row, "difficulty": level}) == sample
    for wrong in (0, "0", -1, "two", "", True, 1.5, "1.5", float("nan"), None):
        with pytest.raises(InputError, match="row 0: column 'difficulty' holds"):
            prepare_samples("prompts", [{**row, "difficulty": wrong}], embedded.tokenizer, 5, 512, 512)


# Edge rows


EDGE_TEXTS = {
    "emoji": "The fox 🦊🦊 met a 👩‍👩‍👧 family 🇫🇷 today",
    "right to left": "היא אמרה שלום and then قال مرحبا بكم",
    "combining": "e\u0301 a\u030a o\u0308 \u200b end",
    "control": "a\tb\r\nc\x00d end",
    "cjk": "吾輩は猫である。名前はまだ無い。 end",
    "one very long word": "x" * 3000 + " end",
}


@pytest.mark.parametrize("name", EDGE_TEXTS)
def test_any_text_can_be_scored(embedded, name):
    """Every data set takes it, no token is lost at the boundary, and the score is a number."""
    text = EDGE_TEXTS[name]
    rows = {
        "wikitext": {"text": text},
        "lambada": {"text": text},
        "hellaswag": {**HELLASWAG_ROW, "ctx_a": text, "endings": [text[:99], "b", text[:-99:-1], "🙂"]},
        "arc_challenge": {**ARC_ROW, "question": text},
        "prompts": {"prompt": text, "difficulty": 1},
    }
    for dataset, row in rows.items():
        (one,) = prepare_samples(dataset, [row], embedded.tokenizer, 5, 96, 512)
        for request, sequence in zip(one.sample.requests, one.sequences, strict=True):
            tokens = embedded.tokenizer.encode((request.context or "") + request.continuation)
            if request.context is None and not request.keep_end:
                assert sequence.token_ids == tokens[:96]
            elif request.keep_end:
                assert sequence.token_ids == tokens[-512:]
            else:
                assert sequence.token_ids == tokens[-513:]
            assert sequence.truncated == (len(sequence.token_ids) < len(tokens))
        found = score_batch(embedded.loaded.model, one.sequences).scores
        assert all(math.isfinite(score.log_likelihood) and score.log_likelihood < 0 for score in found)
        assert math.isfinite(get_task(dataset).outcome(one.sample, found)["loss"])


@pytest.mark.parametrize("label", ["2", 2, " 2 ", 2.0])
def test_a_label_is_text_or_number(embedded, label):
    """In every data set, and as JSON lines bring it: whole numbers as floats beside a null."""
    choices = {"text": ["a", "b", "c"], "label": [1, 2, 3]}
    rows = {
        "hellaswag": ({**HELLASWAG_ROW, "label": label}, 2),
        "arc_challenge": ({"question": "q", "choices": choices, "answerKey": label}, 1),
    }
    for dataset, (row, gold) in rows.items():
        for labels in (["1", "2", "3"], [1, 2, 3], [1.0, 2.0, 3.0]):
            changed = {**row, "choices": {**choices, "label": labels}}
            (one,) = prepare_samples(dataset, [changed], embedded.tokenizer, 5, 512, 512)
            assert one.sample.gold == gold


def test_what_is_no_label():
    assert [as_label(value) for value in ("A", " b ", "02", -1)] == ["A", "b", "02", "-1"]
    for value in ("", "  ", 1.5, float("nan"), float("inf"), True, False, None, ["1"], {"1": 1}):
        assert as_label(value) is None


def test_labels_of_a_parquet_file_of_pandas(tmp_path, embedded):
    """Where a label is missing further down, pandas writes the others as floats."""
    import pandas as pd

    path = tmp_path / "rows.parquet"
    pd.DataFrame([{**HELLASWAG_ROW, "label": 2}, {**HELLASWAG_ROW, "label": None}]).to_parquet(path)
    assert rows_of(path)[0]["label"] == 2.0
    (one,) = prepare_samples("hellaswag", rows_of(path), embedded.tokenizer, 1, 512, 512)
    assert one.sample.gold == 2
    with pytest.raises(InputError, match="row 1: column 'label' holds"):
        prepare_samples("hellaswag", rows_of(path), embedded.tokenizer, 2, 512, 512)


@pytest.mark.parametrize("protocol", ["rows", "documents"])
def test_a_perplexity_beyond_the_largest_float_is_none(protocol):
    outcomes = [
        {"loss": 900.0, "log_likelihood": -1800.0, "num_predicted_tokens": 2, "num_words": 2, "num_bytes": 10,
         "correct": False}
    ] * 2  # fmt: skip
    metrics = get_task("wikitext", protocol).metrics(outcomes, "wikitext")
    assert metrics["perplexity"] is None and metrics["perplexity_stderr"] is None
    assert metrics["token_perplexity"] is None
    if protocol == "documents":
        assert metrics["word_perplexity"] is None and metrics["word_perplexity_stderr"] is None
        assert metrics["byte_perplexity"] == pytest.approx(math.exp(180))
        assert metrics["bits_per_byte"] == pytest.approx(180 / math.log(2))
    assert get_task("prompts").metrics(outcomes, "prompts")["prompt_perplexity"] is None
    assert get_task("lambada").metrics(outcomes, "lambada")["lambada_perplexity"] is None


def test_one_token_is_nothing_to_predict_without_context(embedded):
    rows = [{"text": "The"}, {"text": ""}, {"text": "The king"}]
    assert len(embedded.tokenizer.encode("The")) == 1
    (one,) = prepare_samples("wikitext", rows, embedded.tokenizer, 5, 512, 512)
    assert one.sample_id == "wikitext_2"
    # The last word of a text of one word has the start token before it, as in the harness.
    first, second = prepare_samples("lambada", rows, embedded.tokenizer, 5, 512, 512)
    assert (first.sample_id, second.sample_id) == ("lambada_0", "lambada_2")
    assert first.sequences[0].token_ids[0] == embedded.tokenizer.eos_token_id
