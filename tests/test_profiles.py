"""What the profiles must say of each other and of the rules; tests/slurm/ runs the one for Slurm."""

import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]


def profile(name):
    """A profile's settings; those of resources as a dict."""
    settings = yaml.safe_load((REPOSITORY / "profiles" / name / "config.yaml").read_text())
    if isinstance(settings["resources"], list):
        settings["resources"] = {
            key: int(value) for key, value in (item.split("=") for item in settings["resources"])
        }
    return settings


def test_what_goes_before_the_slurm_profile_says_the_same():
    """`profiles/default` is always read, after the file given with --profile, and goes before it."""
    default, slurm = profile("default"), profile("slurm")
    assert {"resources", "rerun-triggers", "rerun-incomplete", "scheduler"} == default.keys() & slurm.keys()
    assert all(slurm[key] == default[key] for key in default.keys() & slurm.keys())


def test_on_slurm_every_rule_has_a_group_and_every_resource_limit_is_a_jobs_own():
    text = "".join(path.read_text() for path in sorted((REPOSITORY / "rules").glob("*.smk")))
    slurm = profile("slurm")
    assert slurm["groups"].keys() == set(re.findall(r"^ *rule (\w+):", text, re.MULTILINE))
    assert slurm["set-resources"].keys() <= slurm["groups"].keys()
    assert slurm["set-resource-scopes"] == dict.fromkeys(slurm["resources"], "local")
