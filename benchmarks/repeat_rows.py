"""Repeat a data set's rows up to its real size, where only some of them are at hand.

    python benchmarks/repeat_rows.py rows.jsonl --to 10042 > rows_10042.jsonl

A repeated row has the words of its texts in another order, the last word of each in its place: it is as long,
and its context is nobody else's, which would be read once for both.
"""

import argparse
import json
import random
from pathlib import Path

CONTEXTS = "text", "ctx_a"  # the columns that begin a sequence; endings stay as they are


def in_another_order(text, draws):
    """A text with its words shuffled, but for the last one, which LAMBADA scores."""
    *words, last = text.split(" ")
    draws.shuffle(words)
    return " ".join([*words, last])


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("rows", type=Path, help="a .jsonl file")
    arguments.add_argument("--to", type=int, required=True, help="rows to write")
    arguments = arguments.parse_args()
    rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
    draws = random.Random(0)
    for number in range(arguments.to):
        row = dict(rows[number % len(rows)])
        if number >= len(rows):
            row |= {name: in_another_order(row[name], draws) for name in CONTEXTS if name in row}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
