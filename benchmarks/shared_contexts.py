"""What reading shared contexts once saves: tokens, forward time, and wall time with logs, in pairs.

    python benchmarks/shared_contexts.py                                     # the embedded model and rows
    python benchmarks/shared_contexts.py --hellaswag rows.jsonl --arc rows.jsonl --samples 200
    python benchmarks/shared_contexts.py --configfile benchmarks/olmoe_shape.yaml --device cuda

Each data set is measured with every sequence read by itself and with what sequences share read once. The
few-shot tasks are made of the ARC rows: the first ones, with their answers, stand before each further one,
and the choices are letters, of one token each, or the answers' texts. `fewest tokens` measures where sharing
begins to pay: endings of 20 tokens after contexts of some lengths, of random tokens.
"""

import random
import statistics
import sys
import time

import torch
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import PreparedSample, prepare_samples
from adaptive_routing.data.shared import share_beginnings
from adaptive_routing.data.tasks import Request, Sample
from adaptive_routing.data.tokens import EncodedSequence, encode_request
from adaptive_routing.evaluation.scoring import score_samples
from adaptive_routing.model.patching import RouterPatcher
from setting import REPOSITORY, load_setting, parser, print_table, run_logged

ROWS = REPOSITORY / "resources/datasets"
ENDING, CONTEXTS = 20, (4, 8, 16, 32, 64, 128, 256)  # tokens


def question(row, answer=""):
    """A question with its choices under letters."""
    choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    return f"Question: {row['question']}\n" + "".join(f"{a}. {b}\n" for a, b in choices) + f"Answer:{answer}"


def few_shot(rows, shots, tokenizer, length, kind):
    """Samples that answer by a letter, or with the text of the choice."""
    key = {"letters": "label", "texts": "text"}[kind]

    def gold(row):
        return row["choices"]["label"].index(row["answerKey"])

    examples = [question(row, f" {row['choices'][key][gold(row)]}\n\n") for row in rows[:shots]]
    samples = []
    for number, row in enumerate(rows[shots:]):
        context = "".join(examples) + question(row)
        requests = tuple(Request(context, f" {choice}") for choice in row["choices"][key])
        sequences = tuple(encode_request(tokenizer, request, None, length)[0] for request in requests)
        sample = Sample(row["question"], requests, gold(row), {"cluster": number})
        samples.append(PreparedSample(f"arc_challenge_{number}", sample, sequences))
    return samples


def random_endings(context, samples, vocabulary):
    """Four endings after each of some contexts of one length."""
    draws = random.Random(0)
    made = []
    for number in range(samples):
        beginning = draws.choices(range(3, vocabulary), k=context)
        sequences = tuple(
            EncodedSequence(
                beginning + draws.choices(range(3, vocabulary), k=ENDING), context, context + ENDING, False
            )
            for _ in range(4)
        )
        made.append(PreparedSample(f"random_{number}", Sample("", (), 0, {}), sequences))
    return made


def forward(setting, configuration, samples):
    """(tokens that all passes read, their seconds, wall time)."""
    model, tokens, seconds = setting.loaded.model, [], 0.0
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    started = time.perf_counter()
    with RouterPatcher(model, setting.strategy(configuration)) as patcher:
        for batch in score_samples(
            model, patcher, samples, setting.settings["evaluation"]["batch_tokens"], 0
        ):
            seconds += batch.seconds
    handle.remove()
    # The first pass is that of the last sample alone, which is not counted.
    return sum(tokens[1:]), seconds, time.perf_counter() - started


def compare(setting, configuration, dataset, separate, repeats, logged):
    """A row of the table: tokens read both ways, and the medians of the ratios of times in pairs."""
    ways = {"separate": separate, "once": share_beginnings(separate)}
    runs = {way: [] for way in ways}
    for samples in ways.values():
        forward(setting, configuration, samples)
    for repeat in range(repeats):
        order = list(ways) if repeat % 2 == 0 else list(reversed(ways))
        for way in order:
            tokens, seconds, _ = forward(setting, configuration, ways[way])
            whole = run_logged(setting, configuration, "hellaswag", ways[way], None)[1] if logged else 1.0
            runs[way].append((tokens, seconds, whole))
    tokens, seconds, whole = ([[one[column] for one in runs[way]] for way in ways] for column in range(3))
    ratios = [
        statistics.median(before / after for before, after in zip(*column, strict=True))
        for column in (seconds, whole)
    ]
    own = sum(one.num_own_tokens for one in ways["once"])
    row = [dataset, configuration.name, len(separate), tokens[0][0], tokens[1][0], own]
    row += [
        tokens[0][0] / tokens[1][0],
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
        ratios[0],
    ]
    row.append(ratios[1] if logged else "-")
    print(*row, file=sys.stderr, flush=True)
    return row


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--hellaswag", default=ROWS / "hellaswag.jsonl", help="rows, as a local file")
    arguments.add_argument("--arc", default=ROWS / "arc_challenge.jsonl", help="rows, as a local file")
    arguments.add_argument("--samples", type=int, default=100)
    arguments.add_argument("--shots", type=int, default=5)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--device", help="in the place of the config's")
    arguments.add_argument(
        "--contexts", nargs="*", type=int, default=CONTEXTS, help="tokens of random contexts"
    )
    arguments.add_argument(
        "--configurations", nargs="*", default=["8experts_topk_baseline", "16experts_bh_a030"]
    )
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    setting = load_setting(arguments.configfile, arguments.device)
    configurations = {one.name: one for one in setting.settings["configurations"]}
    length, vocabulary = setting.max_length, setting.loaded.model.config.vocab_size
    tokenizer = setting.tokenizer
    rows = list(load_rows(str(arguments.arc)))[: arguments.samples + arguments.shots]
    sources = (("hellaswag", arguments.hellaswag), ("arc_challenge", arguments.arc))
    data = {
        name: prepare_samples(name, load_rows(str(path)), tokenizer, arguments.samples, length, length)
        for name, path in sources
    }
    for kind in ("letters", "texts"):
        data[f"{arguments.shots}-shot, {kind}"] = few_shot(rows, arguments.shots, tokenizer, length, kind)
    table = [
        compare(setting, configurations[name], dataset, samples, arguments.repeats, logged=True)
        for dataset, samples in data.items()
        for name in arguments.configurations
    ]
    for context in arguments.contexts:
        samples = random_endings(context, arguments.samples, vocabulary)
        name = f"fewest tokens: {context}"
        first = configurations[arguments.configurations[0]]
        table.append(compare(setting, first, name, samples, arguments.repeats, logged=False))
    headings = ["data", "configuration", "samples", "tokens read separately", "once", "logged", "ratio"]
    headings += ["forward, s", "once", "ratio", "ratio of whole experiments"]
    print_table(headings, table)


if __name__ == "__main__":
    main()
