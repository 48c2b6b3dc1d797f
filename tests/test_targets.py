"""What a run can be asked for by name, and what is said of a name that there is not."""

import json
import re

import pytest
from adaptive_routing.settings.configurations import grid
from adaptive_routing.settings.load import load_settings
from study_folder import REPOSITORY, StudyFolder

GRID = {"topk": {"k": [8, 16, 32, 64]}, "bh": {"max_k": [8, 16, 32, 64], "alpha": [0.30, 0.40, 0.50, 0.60]}}
NEEDED = {"inspect_model": 1, "prepare_dataset": 3}
P_VALUES = {"collect_router_logits": 1, "fit_null_distribution": 1}


@pytest.fixture
def study(tmp_path):
    """The study of 60 experiments, of which nothing was run."""
    return StudyFolder(tmp_path, strategies=GRID)


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("baselines", {"run_experiment": 12}),
        ("bh", P_VALUES | {"run_experiment": 48}),
        ("experiments", P_VALUES | {"run_experiment": 60}),
        ("metrics", P_VALUES | {"run_experiment": 60, "compute_metrics": 60}),
        ("16experts_bh_a030", P_VALUES | {"run_experiment": 3, "compute_metrics": 3}),
        ("64experts_topk_baseline", {"run_experiment": 3, "compute_metrics": 3}),
        ("tables", P_VALUES | {"run_experiment": 60, "compute_metrics": 60, "tabulate_results": 1}),
    ],
)
def test_a_name_plans_what_it_stands_for(study, target, jobs):
    plan = study.plan(target)
    assert plan.pop(target) == 1
    assert plan == NEEDED | jobs


def test_the_stages_together_are_the_whole_run(study):
    stages = ("experiments", "metrics", "tables", "figures", "report")
    plan = study.plan(*stages)
    whole = study.plan()
    assert {rule: count for rule, count in plan.items() if rule not in stages} == whole


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("16experts_bh_a31", "16experts_bh_a030"),
        ("baseline", "baselines"),
        ("results/logs/16experts_bh_a031_lambada.json", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_names_there_are(study, target, meant):
    done = study.snakemake(target, "--dry-run", check=False)
    assert done.returncode == 1
    (said,) = [line for line in (done.stdout + done.stderr).splitlines() if "target" in line]
    asked = (
        f"error: there is no target {target}"
        + (f" (did you mean {meant}?)" if meant else "")
        + "; there are "
    )
    assert said.startswith(asked)
    listed = said.removeprefix(asked).removesuffix(", and every file that a rule makes")
    names = listed.replace(" and ", ", ").split(", ")
    stages = ["all", "experiments", "metrics", "tables", "figures", "report", "baselines", "bh"]
    assert names == [*stages, *(one.name for one in grid(GRID)), "left_over", "remove_left_over"]


def test_config_holds_the_settings_alone(tmp_path, monkeypatch):
    """What differs from run to run would change the hash of the config in Snakemake's report."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "Snakefile").write_text(
        f"include: '{REPOSITORY}/Snakefile'\nimport json\nprint('config', json.dumps(config))\n"
    )
    study = StudyFolder(tmp_path / "study", project)
    (said,) = [line for line in study.snakemake("--list").stdout.splitlines() if line.startswith("config ")]
    monkeypatch.chdir(study.folder)
    config = json.loads(said.removeprefix("config "))
    settings = load_settings(config_without_derived(config))
    del settings["configurations"]
    assert config == settings


def config_without_derived(config):
    """A config as a file has it: without what `load_settings` adds."""
    config = json.loads(json.dumps(config))
    for section in (
        config["model"],
        config["null_distribution"]["calibration"],
        *config["datasets"].values(),
    ):
        del section["local"]
    return config


def test_a_job_asks_for_more_when_it_is_tried_again(study):
    def resources(attempt):
        arguments = ("results/model.json", "--dry-run", "--attempt", attempt, "--workflow-profile", "none")
        done = study.snakemake(*arguments)
        return re.findall(r"(?:runtime|mem_mb)=\d+", done.stdout + done.stderr)

    assert resources("1") == ["runtime=5", "mem_mb=4000"]
    assert resources("2") == ["runtime=10", "mem_mb=8000"]
