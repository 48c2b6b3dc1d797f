"""How time and memory grow with the number of samples and with the length of sequences.

    python benchmarks/growth.py --configfile benchmarks/olmoe_shape.yaml

Whole experiments with full logging (native top-k and one BH configuration) on LAMBADA with 50, 200 and 800
samples (rows repeat where there are fewer), and on WikiText's text in sequences of 64 to 2,048 tokens. Memory
is the largest resident size of the process so far, without its log workers.
"""

import itertools
import os
import resource
import sys
import tempfile
import time

import torch
from adaptive_routing.data import EncodedSequence, PreparedSample
from adaptive_routing.experiment import ExperimentFiles, run_experiment
from adaptive_routing.log_workers import LogWorkers
from setting import load_setting, parser, print_table


def repeated(samples, number):
    """`number` samples, again from the first where there are fewer."""
    return list(itertools.islice(itertools.cycle(samples), number))


def cut_into(samples, length, tokens):
    """The text of WikiText samples in sequences of one length, about so many tokens in all."""
    stream = itertools.cycle(token for one in samples for token in one.sequences[0].token_ids)
    pieces = [list(itertools.islice(stream, length)) for _ in range(max(1, tokens // length))]
    return [
        PreparedSample(f"cut_{number}", samples[0].sample, (EncodedSequence(piece, 1, length, False),))
        for number, piece in enumerate(pieces)
    ]


def experiment(setting, configuration, dataset, samples, workers):
    """Run one experiment: (tokens, forward seconds, seconds in all, GB of resident memory)."""
    with tempfile.TemporaryDirectory() as folder:
        files = ExperimentFiles(f"{folder}/a.json", f"{folder}/a_routing.json", f"{folder}/a.safetensors")
        settings = {"routing": {"weights": "native"}, "dataset": {"max_samples": len(samples)}}
        started = time.perf_counter()
        summary = run_experiment(
            setting.loaded, configuration, setting.strategy(configuration), dataset, samples,
            setting.settings["evaluation"]["batch_tokens"], 0, settings, files, workers,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return summary["summary"]["total_tokens"], summary["timings"]["forward_seconds"], seconds, peak


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, nargs="+", default=[50, 200, 800])
    arguments.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 2048])
    arguments = arguments.parse_args()
    setting = load_setting(arguments.configfile)
    grid = setting.settings["configurations"]
    native = setting.loaded.info["native_top_k"]
    chosen = [next(one for one in grid if one.strategy == "topk" and one.max_experts == native)]
    chosen += [one for one in grid if one.strategy == "bh"][:1]
    most = setting.loaded.info["max_position_embeddings"]
    cases = [
        (f"{number} samples", "lambada", repeated(setting.prepared["lambada"], number))
        for number in arguments.samples
    ]
    cases += [
        (f"sequences of {length}", "wikitext", cut_into(setting.prepared["wikitext"], length, 32768))
        for length in arguments.lengths
        if length <= most
    ]
    rows = []
    with LogWorkers() as workers:
        for configuration in chosen:
            experiment(setting, configuration, "lambada", setting.prepared["lambada"][:20], workers)
            for name, dataset, samples in cases:
                tokens, forward, seconds, peak = experiment(setting, configuration, dataset, samples, workers)
                rows.append(
                    [configuration.name, name, tokens, tokens / forward, tokens / seconds, f"{peak:.2f}"]
                )
    print(f"{setting.loaded.device_name}, {setting.loaded.dtype}, {os.cpu_count()} cores")
    print(f"torch {torch.__version__}\n")
    print_table(
        ["configuration", "case", "tokens", "tokens/s forward", "tokens/s with logs", "resident GB so far"],
        rows,
    )


if __name__ == "__main__":
    main()
