"""The pass on a CPU, idle and beside busy processes, in one run, with ratios.

    python benchmarks/cpu_load.py                              # this checkout
    python benchmarks/cpu_load.py --against ../other-checkout  # and another one, alternating with it

For each number of cores (by affinity), a process of its own loads the model as a job does. Beside each
number of busy processes on the same cores it makes the passes of a data set. Tokens/s count forward time
only; the median of the repeats is printed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

# Runs in either checkout; one from before passes went side by side has other module names.
MEASURE = """
import json, os, sys
sys.path[:0] = ["workflow_scripts", "benchmarks"]
from setting import load_setting
setting = load_setting(json.loads(sys.argv[1]))
try:
    from adaptive_routing.evaluation.scoring import score_samples
    from adaptive_routing.model.devices import use_cores_for_passes
    from adaptive_routing.model.patching import RouterPatcher
    use_cores_for_passes()
except ModuleNotFoundError:
    from adaptive_routing.patching import RouterPatcher
    from adaptive_routing.scoring import score_samples
model, configurations = setting.loaded.model, {one.name: one for one in setting.settings["configurations"]}
samples, batch_tokens = setting.prepared[sys.argv[2]], setting.settings["evaluation"]["batch_tokens"]

def measure(name):
    seconds = tokens = 0
    with RouterPatcher(model, setting.strategy(configurations[name])) as patcher:
        for batch in score_samples(model, patcher, samples, batch_tokens, 0):
            seconds += batch.seconds
            tokens += len(batch.token_ids)
    return tokens / seconds

for name in sys.argv[3:]:
    measure(name)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(measure(line.strip())), flush=True)
"""


def busy():
    """Compute for ever, in one thread."""
    while True:
        sum(range(10**6))


@contextlib.contextmanager
def busy_processes(count, cores):
    """Some processes that compute on the given cores, while the context lasts."""
    processes = [multiprocessing.Process(target=busy, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
        os.sched_setaffinity(process.pid, cores)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


class Checkout:
    """A checkout's process with the model, on some cores."""

    def __init__(self, folder, cores, arguments):
        def pin():
            os.sched_setaffinity(0, cores)

        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        words = [json.dumps(arguments.configfile), arguments.dataset, *arguments.configurations]
        self._process = subprocess.Popen(
            [sys.executable, "-c", MEASURE, *words],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            preexec_fn=pin,
        )
        if self._process.stdout.readline().strip() != "ready":
            raise SystemExit(f"error: {folder} could not measure; is it a checkout of this project?")

    def tokens_per_second(self, configuration):
        self._process.stdin.write(f"{configuration}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--against", help="another checkout, measured alternately in the same run")
    arguments.add_argument("--configfile", nargs="*", default=[], help="as for snakemake; over config.yaml")
    arguments.add_argument("--dataset", default="hellaswag")
    arguments.add_argument(
        "--configurations", nargs="*", default=["8experts_topk_baseline", "16experts_bh_a030"]
    )
    arguments.add_argument("--busy", nargs="*", type=int, default=[0, 1, 2, 4], help="busy processes")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments = arguments.parse_args()
    arguments.configfile = [str(Path(path).resolve()) for path in arguments.configfile]
    available = sorted(os.sched_getaffinity(0))
    folders = {"this": REPOSITORY} | ({"other": arguments.against} if arguments.against else {})
    print(f"{arguments.dataset}, {len(available)} cores, median of {arguments.repeats}, tokens/s\n")
    headings = "".join(f" {name} | idle / this row |" for name in folders)
    print("| configuration | cores | busy processes |" + headings + " this / other |" * (len(folders) - 1))
    print("| --- " * (3 + 2 * len(folders) + (len(folders) > 1)) + "|")
    for count in sorted({1, len(available)}):
        cores = set(available[:count])
        checkouts = {name: Checkout(folder, cores, arguments) for name, folder in folders.items()}
        for configuration in arguments.configurations:
            idle = {}
            for number in arguments.busy:
                with busy_processes(number, cores):
                    runs = {name: [] for name in folders}
                    for _ in range(arguments.repeats):
                        for name, checkout in checkouts.items():
                            runs[name].append(checkout.tokens_per_second(configuration))
                medians = {name: statistics.median(values) for name, values in runs.items() if values}
                if number == 0:
                    idle = medians
                cells = [
                    f" {value:,.0f} | {idle[name] / value:.1f} |" if idle else f" {value:,.0f} | - |"
                    for name, value in medians.items()
                ]
                ratio = f" {medians['this'] / medians['other']:.2f} |" if len(medians) > 1 else ""
                print(f"| {configuration} | {count} | {number} |" + "".join(cells) + ratio, flush=True)
        for checkout in checkouts.values():
            checkout.close()


if __name__ == "__main__":
    main()
