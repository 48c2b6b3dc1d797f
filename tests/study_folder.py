"""Whole studies in folders of their own, run through Snakemake as a user does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]


class StudyFolder:
    """A working directory with the project's resources, a small config and its own results.

    Args:
        folder: the working directory.
        project: where the Snakefile is.
        changes: of the small config, by section.
    """

    def __init__(self, folder, project=REPOSITORY, **changes):
        self.folder, self.project = folder, project
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "resources").exists():
            (folder / "resources").symlink_to(REPOSITORY / "resources")
        shutil.copy(REPOSITORY / "config.yaml", folder / "config.yaml")
        self.settings = {
            "evaluation": {"max_samples": 6, "second_pass_samples": 2},
            "strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8, 16], "alpha": [0.30]}},
            "null_distribution": {"calibration": {"max_tokens": 1000}},
        }
        self.configure(**changes)

    def configure(self, **changes):
        """Change settings, section by section."""
        for section, values in changes.items():
            if isinstance(values, dict):
                self.settings.setdefault(section, {}).update(values)
            else:
                self.settings[section] = values
        (self.folder / "study.yaml").write_text(yaml.safe_dump(self.settings))

    def begin(self, *arguments, output=subprocess.PIPE, **variables):
        """Start Snakemake in a process group of its own; returns the process.

        Args:
            output: where what it prints goes.
            variables: of its environment, besides this process's own.
        """
        # Targets come first: --resources and --configfile take all words that follow them.
        command = [sys.executable, "-m", "snakemake", *arguments, "--snakefile", self.project / "Snakefile"]
        command += ["--cores", "2", "--resources", "gpu=2", "--configfile", "study.yaml"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            stdout=output,
            stderr=output,
            text=True,
            process_group=0,
        )

    def snakemake(self, *arguments, check=True):
        """Run Snakemake; returns the completed process."""
        process = self.begin(*arguments)
        stdout, stderr = process.communicate()
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def plan(self, *arguments):
        """Jobs that a run would do, by rule: Snakemake's own count."""
        output = self.snakemake(*arguments, "--dry-run", "--quiet", "host")
        text = output.stdout + output.stderr
        if "Nothing to be done" in text:
            return {}
        table = text.split("Job stats")[1].split("total")[0]
        rows = re.findall(r"^ *(\w[\w ]*?) +(\d+) *$", table, re.MULTILINE)
        return {name.replace(" ", "_"): int(count) for name, count in rows}

    def results(self, *parts):
        return self.folder.joinpath(self.settings.get("results", "results"), *parts)
