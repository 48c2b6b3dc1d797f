"""Where a study's time goes: runs it from nothing and splits its wall time.

    python benchmarks/study_time.py --configfile benchmarks/olmoe_shape.yaml

The results folder that the config names must not exist. Times of jobs are those of Snakemake's metadata; jobs
that ran side by side count each for itself. What the experiments spend comes from their summaries: tokens/s
of a configuration are those of all its data sets, *whole* with second passes and until the logs are on disk.
Memory is looked at every second; what processes share counts in each of them.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
from setting import REPOSITORY, merged_config, parser, print_table

HOST = "-m adaptive_routing.jobs.host.server "


class Memory:
    """The largest resident sizes, in bytes, of a run's processes while the context is entered."""

    def __enter__(self):
        self.most, self._end = {"model host": 0, "all processes": 0}, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._end.wait(1):
            sizes = {"model host": 0, "all processes": 0}
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                line, memory = " ".join(process.info["cmdline"] or []), process.info["memory_info"]
                if memory and ("adaptive_routing" in line or "snakemake" in line):
                    sizes["all processes"] += memory.rss
                    sizes["model host"] += memory.rss * (HOST in line)
            self.most = {name: max(size, sizes[name]) for name, size in self.most.items()}

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def speeds(summaries):
    """Per configuration: tokens, tokens/s of its passes and of whole experiments, and their ratio."""
    totals = defaultdict(lambda: [0, 0.0, 0.0])
    for one in summaries:
        of_one = (
            one["summary"]["total_tokens"],
            one["timings"]["forward_seconds"],
            one["timings"]["total_seconds"],
        )
        name = one["config"]
        totals[name] = [total + more for total, more in zip(totals[name], of_one, strict=True)]
    return [
        [name, tokens, tokens / forward, tokens / whole, forward / whole]
        for name, (tokens, forward, whole) in totals.items()
    ]


def jobs_by_rule(results, started):
    """(start, end) of every job since a time by rule, from the metadata of the results' files."""
    jobs = defaultdict(dict)  # by rule and log: a job of several files has a record for each
    for path in (REPOSITORY / ".snakemake/metadata").rglob("*"):
        if path.is_file():
            record = json.loads(path.read_bytes())
            if f"{results}/" in str(record.get("log", "")) and (record.get("starttime") or 0) >= started:
                of_rule, log = jobs[record["rule"]], str(record["log"])
                of_rule[log] = max(of_rule.get(log, (0, 0)), (record["starttime"], record["endtime"]))
    return {rule: set(of_rule.values()) for rule, of_rule in jobs.items()}


def main():
    arguments, options = parser(__doc__).parse_known_args()
    results = Path(merged_config(arguments.configfile)["results"])
    if (REPOSITORY / results).exists():
        sys.exit(f"{results} exists; move it away to measure a study from nothing")
    command = [sys.executable, "-m", "snakemake", *options]
    if arguments.configfile:
        command += ["--configfile", *arguments.configfile]
    started = time.time()
    with Memory() as memory, tempfile.TemporaryFile("w+", errors="replace") as said:
        ended = subprocess.run(command, cwd=REPOSITORY, stderr=said, check=False)
        wall = time.time() - started
        if ended.returncode:
            said.seek(0)
            sys.exit(f"{said.read()[-5000:]}\nsnakemake ended with exit status {ended.returncode}")

    rows, totals = [], defaultdict(float)
    for rule, jobs in sorted(jobs_by_rule(str(results), started).items(), key=lambda item: min(item[1])):
        starts, ends = zip(*jobs, strict=True)
        seconds = sum(ends) - sum(starts)
        rows.append(
            [rule, len(jobs), min(starts) - started, max(ends) - started, seconds, seconds / len(jobs)]
        )
    paths = (REPOSITORY / results / "logs").glob("*.json")
    summaries = [
        json.loads(path.read_bytes()) for path in paths if not path.name.endswith("_internal_routing.json")
    ]
    for one in summaries:
        timings = one["timings"]
        totals["forward pass"] += timings["forward_seconds"]
        totals["second pass"] += sum(timings["single_sample"]["seconds"])
        totals["whole experiment, in its process"] += timings["total_seconds"]
    host = "".join(path.read_text() for path in (REPOSITORY / results / "job_logs").glob("model_host_*.log"))
    for name, seconds in re.findall(r"(loaded) .* in ([\d.]+) s", host):
        totals[f"model {name}"] += float(seconds)
    disk = sum(path.stat().st_size for path in (REPOSITORY / results).rglob("*") if path.is_file())
    sizes = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in memory.most.items())
    print(f"{wall:.1f} s of wall time; {disk / 1e9:.1f} GB on disk; resident memory: {sizes}\n")
    print_table(["rule", "jobs", "from s", "to s", "sum of s", "s a job"], rows)
    print()
    print_table(["of the experiments", "s"], [[name, f"{seconds:.1f}"] for name, seconds in totals.items()])
    print()
    headings = ["configuration", "tokens", "tokens/s of passes", "whole", "whole / passes"]
    print_table(headings, sorted(speeds(summaries)))


if __name__ == "__main__":
    main()
