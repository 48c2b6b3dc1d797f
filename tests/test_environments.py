"""The places that name package versions agree."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
FILES = ("requirements.txt", "requirements-test.txt", "requirements-slurm.txt")


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
    for name in FILES:
        for package, requirement in requirements(name).items():
            assert version(requirement) == version(constraints[package])


def test_the_conda_environment_is_the_same_pins_and_an_allowed_python():
    environment = yaml.safe_load((REPOSITORY / "envs" / "adaptive_routing.yaml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert [str(Requirement(line)) for line in pip] == [
        str(r) for r in requirements("requirements.txt").values()
    ]
    python, *others = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert is_allowed_python(python.removeprefix("python="))
    assert others == ["pip"]


def is_allowed_python(text):
    """Whether a version like 3.12 is one that the project runs on."""
    return SpecifierSet(PROJECT["requires-python"]).contains(f"{text}.0")


def test_the_container_is_built_from_the_pins():
    recipe = (REPOSITORY / "envs" / "Dockerfile").read_text().replace("\\\n", " ")
    (base,) = re.findall(r"^FROM python:([\d.]+)-slim$", recipe, re.MULTILINE)
    assert is_allowed_python(base)
    ((*copied, target),) = (line.split() for line in re.findall(r"^COPY (.*)$", recipe, re.MULTILINE))
    assert all((REPOSITORY / path).is_file() for path in copied)
    (install,) = re.findall(r"^RUN (python -m pip install .*)$", recipe, re.MULTILINE)
    there = {target + Path(path).name for path in copied}
    assert set(re.findall(r"-[rc] (\S+)", install)) == there
    assert {"requirements.txt", "constraints.txt"} <= {Path(path).name for path in there}


def test_the_package_allows_what_is_pinned_and_needs_nothing_else():
    pinned = {package: one for name in FILES for package, one in requirements(name).items()}
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    ranges = [Requirement(line) for line in PROJECT["dependencies"] + extras]
    assert {one.name.lower().replace("_", "-") for one in ranges} == set(pinned)
    for one in ranges:
        package = one.name.lower().replace("_", "-")
        assert one.specifier.contains(version(pinned[package])), f"{one} excludes {pinned[package]}"
