"""Where a study's time goes: runs it from nothing and splits its wall time.

    python benchmarks/study_time.py --configfile benchmarks/olmoe_shape.yaml

The results folder that the config names must not exist. Times of jobs are those of Snakemake's metadata; jobs
that ran side by side count each for itself. What the experiments spend comes from their summaries.
"""

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import yaml
from setting import REPOSITORY, parser, print_table


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
    config = {}
    for path in [REPOSITORY / "config.yaml", *arguments.configfile]:
        config |= yaml.safe_load(Path(path).read_text())
    results = Path(config["results"])
    if (REPOSITORY / results).exists():
        sys.exit(f"{results} exists; move it away to measure a study from nothing")
    command = [sys.executable, "-m", "snakemake", *options]
    if arguments.configfile:
        command += ["--configfile", *arguments.configfile]
    started = time.time()
    code = subprocess.run(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, check=False).returncode
    wall = time.time() - started
    if code:
        sys.exit(f"snakemake ended with exit status {code}; its log is in .snakemake/log")

    rows, totals = [], defaultdict(float)
    for rule, jobs in sorted(jobs_by_rule(str(results), started).items(), key=lambda item: min(item[1])):
        starts, ends = zip(*jobs, strict=True)
        seconds = sum(ends) - sum(starts)
        rows.append(
            [rule, len(jobs), min(starts) - started, max(ends) - started, seconds, seconds / len(jobs)]
        )
    for path in (REPOSITORY / results / "logs").glob("*.json"):
        if not path.name.endswith("_internal_routing.json"):
            timings = json.loads(path.read_bytes())["timings"]
            totals["forward pass"] += timings["forward_seconds"]
            totals["second pass"] += sum(timings["single_sample"]["seconds"])
            totals["whole experiment, in its process"] += timings["total_seconds"]
    host = "".join(path.read_text() for path in (REPOSITORY / results / "job_logs").glob("model_host_*.log"))
    for name, seconds in re.findall(r"(loaded) .* in ([\d.]+) s", host):
        totals[f"model {name}"] += float(seconds)
    print(f"{wall:.1f} s of wall time\n")
    print_table(["rule", "jobs", "from s", "to s", "sum of s", "s a job"], rows)
    print()
    print_table(["of the experiments", "s"], [[name, f"{seconds:.1f}"] for name, seconds in totals.items()])


if __name__ == "__main__":
    main()
