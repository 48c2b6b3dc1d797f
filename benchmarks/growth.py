"""How time and memory grow with the number of samples and with the length of sequences.

    python benchmarks/growth.py --configfile benchmarks/olmoe_shape.yaml

Whole experiments with full logging (native top-k and one BH configuration) on LAMBADA with 50, 200 and 800
samples (rows repeat where there are fewer), and on WikiText's text in sequences of 64 to 2,048 tokens. Memory
is the process's largest resident size during the experiment, looked at every 10 ms, without its log workers.
"""

import itertools
import os
import threading

import psutil
import torch
from adaptive_routing.data.samples import PreparedSample
from adaptive_routing.data.tokens import EncodedSequence
from adaptive_routing.routing_log.workers import LogWorkers
from setting import load_setting, parser, print_table, run_logged


class ResidentSize:
    """The largest resident size of this process, in bytes, while the context is entered."""

    def __enter__(self):
        self.most, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        process = psutil.Process()
        while not self._end.wait(0.01):
            self.most = max(self.most, process.memory_info().rss)

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


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
    with ResidentSize() as resident:
        summary, seconds = run_logged(setting, configuration, dataset, samples, workers)
    totals, timings = summary["summary"], summary["timings"]
    return totals["total_tokens"], timings["forward_seconds"], seconds, resident.most / 1e9


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
        ["configuration", "case", "tokens", "tokens/s forward", "tokens/s with logs", "resident GB"],
        rows,
    )


if __name__ == "__main__":
    main()
