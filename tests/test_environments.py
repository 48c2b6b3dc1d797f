"""The places that name package versions agree."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]


def requirements(name):
    """The requirements in a file of envs/, by package name."""
    lines = (REPOSITORY / "envs" / name).read_text().splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name.lower().replace("_", "-"): one for one in parsed}


def version(requirement):
    """The one version that a requirement pins."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned"
    return specifier.version


def test_every_requirement_is_pinned_as_in_the_constraints():
    constraints = requirements("constraints.txt")
    for name in ("requirements.txt", "requirements-test.txt"):
        for package, requirement in requirements(name).items():
            assert version(requirement) == version(constraints[package])


def test_the_conda_environment_has_the_same_pins():
    environment = yaml.safe_load((REPOSITORY / "envs" / "adaptive_routing.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [str(Requirement(line)) for line in pip] == [
        str(r) for r in requirements("requirements.txt").values()
    ]


def test_the_package_allows_what_is_pinned_and_needs_nothing_else():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pinned = {**requirements("requirements.txt"), **requirements("requirements-test.txt")}
    ranges = [
        Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["test"]
    ]
    assert {one.name.lower().replace("_", "-") for one in ranges} == set(pinned)
    for one in ranges:
        package = one.name.lower().replace("_", "-")
        assert one.specifier.contains(version(pinned[package])), f"{one} excludes {pinned[package]}"
