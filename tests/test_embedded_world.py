"""The embedded model and data sets are what their card says, and the generator makes them again."""

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
RESOURCES = ROOT / "resources"
sys.path.insert(0, str(ROOT))  # the world is a package of scripts beside the workflow's package

from resources.world import activities, generate  # noqa: E402

COLUMNS = {
    "wikitext": {"text"},
    "lambada": {"text"},
    "hellaswag": {"ind", "activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"},
    "arc_challenge": {"id", "question", "choices", "answerKey"},
    "calibration": {"text"},
}


def rows(name: str) -> list[dict]:
    text = (RESOURCES / "datasets" / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(RESOURCES / "embedded_model")


def test_same_seed_writes_the_committed_files_byte_for_byte(tmp_path):
    generate.write_datasets(tmp_path)
    for name in COLUMNS:
        committed = (RESOURCES / "datasets" / f"{name}.jsonl").read_bytes()
        assert (tmp_path / f"{name}.jsonl").read_bytes() == committed


def test_another_seed_is_another_world():
    _, ours, _ = generate.build_datasets()
    _, others, _ = generate.build_datasets(generate.SEED + 1)
    assert all(ours[name] != others[name] for name in COLUMNS)


def test_training_text_holds_no_held_out_passage():
    world, datasets, held_out = generate.build_datasets()
    documents = generate.training_documents(world, held_out, generate.SEED, shard=7, count=20_000)
    generate.assert_disjoint(datasets, ["".join(document) for document in documents])


@pytest.mark.parametrize("name", COLUMNS)
def test_a_held_out_passage_in_training_text_is_found(name):
    _, datasets, _ = generate.build_datasets()
    leaked = {
        "wikitext": lambda: next(r["text"] for r in rows(name) if len(r["text"]) > 60),
        "lambada": lambda: rows(name)[0]["text"],
        "hellaswag": lambda: "".join(activities.training_pieces(rows(name)[0])),
        "arc_challenge": lambda: f"Question: {rows(name)[0]['question']}\nAnswer: none",
        "calibration": lambda: next(r["text"] for r in rows(name) if len(r["text"]) > 60),
    }[name]()
    with pytest.raises(AssertionError, match="in training"):
        generate.assert_disjoint(datasets, ["Something else.", f"Before. {leaked} After."])


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_and_columns(name):
    data = rows(name)
    with_text = [row for row in data if row.get("text") != ""]
    assert len(with_text) == (600 if name == "calibration" else 200)
    assert all(COLUMNS[name] <= set(row) for row in data)


def test_wikitext_has_the_hub_layout():
    texts = [row["text"] for row in rows("wikitext")]
    assert texts[:3:2] == ["", ""]
    assert re.fullmatch(r" = [^=]+ = \n", texts[1])
    assert all(text == "" or re.fullmatch(r" .*[.=] \n", text) for text in texts)
    assert any(text.startswith(" = = ") for text in texts)


def test_choices_are_distinct_and_answers_spread():
    hellaswag, arc = rows("hellaswag"), rows("arc_challenge")
    assert all(len(set(row["endings"])) == 4 for row in hellaswag)
    assert {row["label"] for row in hellaswag} == set("0123")
    assert all(len(set(row["choices"]["text"])) == 4 for row in arc)
    assert {row["answerKey"] for row in arc} == set("ABCD")


def test_last_word_of_a_story_is_in_the_passage_before():
    for row in rows("lambada"):
        before, word = row["text"].rsplit(" ", 1)
        assert re.search(rf"\b{word}\b", before), row["text"]


def test_calibration_has_about_20_000_tokens(tokenizer):
    count = sum(len(tokenizer(row["text"])["input_ids"]) for row in rows("calibration"))
    assert 15_000 <= count <= 25_000


@given(st.text())
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) <= len(text.encode())  # and no token is added


def test_everything_is_small():
    files = [path for path in RESOURCES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") <= 16 * 2**20


def card_figures() -> dict[str, float]:
    card = (RESOURCES / "embedded_model/README.md").read_text("utf-8")
    table = card.split("## Figures")[1].split("## Data sets")[0]
    return {name: float(value) for name, value in re.findall(r"^\| (.+?) \| ([\d.]+) \|$", table, re.M)}


def test_the_card_states_what_is_measured(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    from resources.world.evaluate import evaluate

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tests run beside one another; threads would wait on each other
    try:
        path = RESOURCES / "embedded_model"
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        measured = evaluate(model, tokenizer)
    finally:
        torch.set_num_threads(threads)

    assert model.config.num_hidden_layers == 16
    assert model.config.num_experts == 64
    assert model.config.num_experts_per_tok == 8
    assert not model.config.norm_topk_prob

    perplexity = measured["perplexity"]
    assert perplexity["8"] < 12
    assert perplexity["64"] > 1.15 * perplexity["8"]
    assert measured["lambada_accuracy"] >= 0.80
    assert measured["hellaswag_accuracy"] >= 0.75
    assert measured["experts_used_min"] >= 0.95
    assert measured["gini_max"] < 0.6

    stated = card_figures()
    assert stated == {
        **{f"perplexity, top-{k}": pytest.approx(v, rel=1e-3) for k, v in perplexity.items()},
        # one decision in 200 may fall otherwise on another CPU
        "lambada accuracy": pytest.approx(measured["lambada_accuracy"], abs=0.006),
        "hellaswag accuracy": pytest.approx(measured["hellaswag_accuracy"], abs=0.006),
        "arc accuracy": pytest.approx(measured["arc_accuracy"], abs=0.006),
        "experts used, least of all layers": pytest.approx(measured["experts_used_min"]),
        "Gini coefficient of usage, largest of all layers": pytest.approx(measured["gini_max"], abs=2e-3),
    }
