"""Write the data sets of the embedded study, and make the training text that goes with them.

``python -m resources.world.generate`` writes ``resources/datasets``. The same seed gives the same
files byte for byte. Evaluation text, calibration text and training text share the world's facts
and no passage: evaluation comes first, calibration must differ from it, and training documents that
hold a passage of either are dropped as they are made.
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from . import activities, questions, stories
from .articles import make_article
from .facts import World, build_world

SEED = 2409
NUM_ROWS = 200  # evaluation rows of each data set
NUM_CALIBRATION_ROWS = 600  # about 20,000 tokens
DATASETS = Path(__file__).resolve().parent.parent / "datasets"

# Shares of the training documents. Stories and activities need many examples: what they teach
# (to look up a binding in the context) is learned late, and inventories are the practice for it.
TRAINING_MIX = {"story": 42, "activity": 23, "article": 15, "question": 8, "inventory": 12}


def passages(row: str) -> set[str]:
    """Every two sentences in a row of an article paragraph; headings have none.

    Two paragraphs are held apart by them: a training paragraph may not contain the first two
    sentences of a held-out one, in that order, anywhere.
    """
    sentences = row.strip().split(" . ")
    return {f"{one} . {two}".rstrip(" .") for one, two in pairwise(sentences)}


class HeldOut:
    """The passages that training text must not hold."""

    def __init__(self) -> None:
        self.paragraphs: set[str] = set()
        self.texts: set[str] = set()

    def is_new_paragraph(self, row: str) -> bool:
        return passages(row).isdisjoint(self.paragraphs)

    def add_paragraph(self, row: str) -> None:
        sentences = row.strip().split(" . ")
        self.paragraphs.add(f"{sentences[0]} . {sentences[1]}".rstrip(" ."))


def _is_paragraph(row: str) -> bool:
    return bool(row) and not row.startswith(" =")


def _new_row(rng: random.Random, world: World, make, key, held_out: HeldOut):
    """A row whose key is not held out yet; from now on it is."""
    while True:
        row = make(rng, world)
        if key(row) not in held_out.texts:
            held_out.texts.add(key(row))
            return row


def _new_article(rng: random.Random, world: World, taken: HeldOut, held_out: HeldOut) -> list[str]:
    """An article without a paragraph of ``taken``; its paragraphs are added to ``held_out``."""
    while True:
        rows = make_article(rng, world)
        paragraphs = [row for row in rows if _is_paragraph(row)]
        if all(taken.is_new_paragraph(row) for row in paragraphs):
            for row in paragraphs:
                held_out.add_paragraph(row)
            return rows


def evaluation_rows(world: World, seed: int, held_out: HeldOut) -> dict[str, list[dict]]:
    """The rows of the four evaluation data sets, in the hub data sets' own columns."""
    rng = random.Random(f"{seed}/evaluation")
    wikitext: list[dict] = []
    empty = HeldOut()
    num_texts = 0
    while num_texts < NUM_ROWS:
        for row in _new_article(rng, world, empty, held_out):
            if num_texts < NUM_ROWS:
                wikitext.append({"text": row})
                num_texts += bool(row)
    for _ in range(NUM_ROWS):
        # Stories of the training mix, held out with the rest: what a training run is tried on.
        _new_row(rng, world, stories.make_story, stories.passage, held_out)
    lambada = []
    story_rng = random.Random(f"{seed}/lambada")
    for _ in range(NUM_ROWS):
        story = _new_row(story_rng, world, stories.make_evaluation_story, stories.passage, held_out)
        lambada.append({"text": stories.passage(story)})
    hellaswag = []
    for i in range(NUM_ROWS):
        row = _new_row(rng, world, activities.make_activity, activities.scored_context, held_out)
        hellaswag.append({"ind": i} | row | {"source_id": f"world~{i}", "split": "val"})
    arc = []
    for i in range(NUM_ROWS):
        row = _new_row(rng, world, questions.make_question, lambda r: r["question"], held_out)
        arc.append({"id": f"world_{i:04d}"} | row)
    return {"wikitext": wikitext, "lambada": lambada, "hellaswag": hellaswag, "arc_challenge": arc}


def calibration_rows(world: World, seed: int, held_out: HeldOut) -> list[dict]:
    """Text that no evaluation and no training uses, of the three scored kinds."""
    rng = random.Random(f"{seed}/calibration")
    evaluated = HeldOut()
    evaluated.paragraphs = set(held_out.paragraphs)
    rows: list[str] = []
    while len(rows) < NUM_CALIBRATION_ROWS:
        rows += [row for row in _new_article(rng, world, evaluated, held_out) if row]
        for _ in range(2):
            story = _new_row(rng, world, stories.make_story, stories.passage, held_out)
            rows.append(stories.passage(story))
        for _ in range(3):
            make, key = activities.make_activity, activities.scored_context
            row = _new_row(rng, world, make, key, held_out)
            rows.append("".join(activities.training_pieces(row)))
    rows = rows[:NUM_CALIBRATION_ROWS]
    rng.shuffle(rows)
    return [{"text": row} for row in rows]


def build_datasets(seed: int = SEED) -> tuple[World, dict[str, list[dict]], HeldOut]:
    """The world, the five files' rows by name, and what training text must not hold."""
    world = build_world(seed)
    held_out = HeldOut()
    datasets = evaluation_rows(world, seed, held_out)
    datasets["calibration"] = calibration_rows(world, seed, held_out)
    return world, datasets, held_out


def _training_document(rng: random.Random, world: World, held_out: HeldOut) -> list[str] | None:
    """One document, or None where it would repeat a held-out passage."""
    kind = rng.choices(list(TRAINING_MIX), weights=list(TRAINING_MIX.values()))[0]
    if kind == "story":
        story = stories.make_story(rng, world)
        return None if stories.passage(story) in held_out.texts else stories.training_pieces(story)
    if kind == "activity":
        row = activities.make_activity(rng, world)
        held = activities.scored_context(row) in held_out.texts
        return None if held else activities.training_pieces(row)
    if kind == "inventory":
        return stories.make_inventory(rng, world)
    if kind == "question":
        row = questions.make_question(rng, world)
        return None if row["question"] in held_out.texts else questions.training_pieces(row)
    rows = [row for row in make_article(rng, world) if row]
    if not all(held_out.is_new_paragraph(row) for row in rows if _is_paragraph(row)):
        return None
    # Rows are scored alone, so half of the articles are cut down to one row.
    return ["".join(rows) if rng.random() < 0.5 else rng.choice(rows)]


def training_documents(
    world: World, held_out: HeldOut, seed: int, shard: int, count: int
) -> Iterator[list[str]]:
    """The ``count`` documents of one shard of the training text; shards are independent.

    A document is a list of pieces to be joined: text, answer, text, answer, ... An answer is what
    a task scores; it begins with a space, so that a piece's tokens are those of the whole.
    """
    rng = random.Random(f"{seed}/training/{shard}")
    while count:
        document = _training_document(rng, world, held_out)
        if document is not None:
            count -= 1
            yield document


def assert_disjoint(datasets: dict[str, list[dict]], documents: list[str]) -> None:
    """No evaluation or calibration passage occurs in ``documents``, nor the one in the other.

    Plain substring search over the written rows, so it does not trust the keys used above.
    """
    evaluation = [row["text"].strip() for row in datasets["wikitext"] if _is_paragraph(row["text"])]
    evaluation += [row["text"] for row in datasets["lambada"]]
    evaluation += [activities.scored_context(row) + " " for row in datasets["hellaswag"]]
    evaluation += [f"Question: {row['question']}\n" for row in datasets["arc_challenge"]]
    calibration = [row["text"].strip() for row in datasets["calibration"]]
    calibration_passages = [text for text in calibration if not text.startswith("= ")]
    for name, held, text in (
        ("evaluation in training", evaluation, "\n\n".join(documents)),
        ("calibration in training", calibration_passages, "\n\n".join(documents)),
        ("evaluation in calibration", evaluation, "\n\n".join(calibration)),
    ):
        for passage in held:
            assert passage not in text, f"{name}: {passage!r}"


def write_datasets(folder: Path, seed: int = SEED) -> None:
    """Write the five JSONL files, after checking a sample of the training text against them."""
    world, datasets, held_out = build_datasets(seed)
    sample = training_documents(world, held_out, seed, shard=0, count=20_000)
    assert_disjoint(datasets, ["".join(document) for document in sample])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in datasets.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=DATASETS)
    args = parser.parse_args()
    write_datasets(args.out, args.seed)


if __name__ == "__main__":
    main()
