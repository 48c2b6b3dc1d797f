"""What is rerun after which change, counted from Snakemake's own plan; and that fingerprints see all code."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import matplotlib
import pytest
from adaptive_routing.figures.panels import PANELS, panel_module
from adaptive_routing.jobs.fingerprint import FOLDER, NOT_DECIDING, _dump, code_modules, library_versions
from study_folder import REPOSITORY, StudyFolder, copy_project

DATASETS = ("wikitext", "lambada", "hellaswag")
TOP_K = ("8experts_topk_baseline",)
BH = ("8experts_bh_a030", "16experts_bh_a030")
EXPERIMENTS = {(configuration, dataset) for configuration in TOP_K + BH for dataset in DATASETS}


def of(configurations=TOP_K + BH, datasets=DATASETS):
    """Experiments, as (configuration, data set)."""
    return {(configuration, dataset) for configuration in configurations for dataset in datasets}


def jobs(*rules, experiments=(), metrics=(), datasets=()):
    """The plan that follows when these rules, experiments, metrics and data sets are stale: jobs by rule."""
    rules, experiments, datasets = set(rules), set(experiments), set(datasets)
    if "inspect_model" in rules:
        rules |= {"collect_router_logits"}
        datasets |= set(DATASETS)
    if "collect_router_logits" in rules:
        rules |= {"fit_null_distribution"}
    if "fit_null_distribution" in rules:
        rules |= {"plot_null_distribution", "check_null_distribution"}
        experiments |= of(BH)
    if "check_null_distribution" in rules:
        rules |= {"plot_null_check"}
    experiments |= of(datasets=datasets)
    metrics = experiments | set(metrics)
    if metrics:
        rules |= {"tabulate_results", "draw_routing_atlas"}
    if "tabulate_results" in rules:
        rules |= {"plot_panels", "plot_routing_atlas", "draw_routing_atlas"}
    if {"plot_panels", "plot_null_check"} & rules:
        rules |= {"write_report"}
    counts = {"prepare_dataset": datasets, "run_experiment": experiments, "compute_metrics": metrics}
    return dict.fromkeys(rules, 1) | {rule: len(of_rule) for rule, of_rule in counts.items() if of_rule}


EVERYTHING = jobs("inspect_model")
NOTHING = jobs()
PASS = jobs("collect_router_logits", experiments=EXPERIMENTS)  # of calibration and experiments
METRICS = jobs(metrics=EXPERIMENTS)
TABLES, REPORT = jobs("tabulate_results"), jobs("write_report")
PANELS_ALONE, FIGURES = jobs("plot_panels"), jobs("plot_panels", "plot_routing_atlas")
LOOKS = jobs("plot_panels", "plot_routing_atlas", "plot_null_distribution", "plot_null_check")
ATLAS_PAGE, ATLAS_PICTURES = jobs("draw_routing_atlas"), jobs("plot_routing_atlas")
ATLAS = ATLAS_PAGE | ATLAS_PICTURES

AFTER_EDIT = {
    "__init__": EVERYTHING,
    "analysis/__init__": jobs("plot_null_distribution", "plot_null_check", metrics=EXPERIMENTS),
    "analysis/contrasts": REPORT | ATLAS,  # the atlas opens on the configuration that the report names
    "analysis/control_outcomes": REPORT | ATLAS,
    "analysis/difficulty": REPORT,
    "analysis/featured": REPORT | ATLAS,
    "analysis/harness": METRICS,
    "analysis/metrics": METRICS,
    "analysis/paired": TABLES,
    "analysis/recommendations": REPORT | ATLAS,
    "analysis/routing_curves": ATLAS,
    "analysis/routing_summary": METRICS,
    "analysis/rule_names": LOOKS | ATLAS,
    "analysis/same_compute": NOTHING,  # a study without controls
    "analysis/setting_effects": TABLES,
    "analysis/statistics": TABLES,
    "analysis/study": FIGURES | ATLAS,
    "analysis/tables": TABLES,
    "analysis/where": NOTHING,
    "atlas": ATLAS_PAGE,
    "compare": NOTHING,
    "data": jobs("collect_router_logits", datasets=DATASETS),
    "data/harness": NOTHING,  # a study without tasks of the harness
    "data/shared": jobs(datasets=DATASETS),
    "data/tasks/__init__": jobs("collect_router_logits", datasets=DATASETS),
    "data/tasks/accuracy": jobs("tabulate_results", datasets=("lambada", "hellaswag")),
    "data/tasks/arc_challenge": NOTHING,
    "data/tasks/harness": NOTHING,
    "data/tasks/hellaswag": jobs(datasets=("hellaswag",)),
    "data/tasks/lambada": jobs(datasets=("lambada",)),
    "data/tasks/multiple_choice": jobs(datasets=("hellaswag",)),
    "data/tasks/prompts": NOTHING,
    "data/tasks/uncertainty": jobs("tabulate_results", datasets=DATASETS),
    "data/tasks/wikitext": jobs(datasets=("wikitext",)),
    "data/tasks/wikitext_documents": NOTHING,
    "evaluation/__init__": PASS,
    "evaluation/arrangement": jobs(experiments=EXPERIMENTS),
    "evaluation/batches": PASS,
    "evaluation/calibration": jobs("collect_router_logits"),
    "evaluation/experiment": jobs(experiments=EXPERIMENTS),
    "evaluation/finiteness": PASS,
    "evaluation/generation": NOTHING,
    "evaluation/scoring": jobs(experiments=EXPERIMENTS),
    "figures": PANELS_ALONE,
    "figures/__init__": LOOKS,
    "figures/atlas": ATLAS_PICTURES,
    "figures/difficulty": NOTHING,  # a study without prompts
    "figures/layout": FIGURES,
    "figures/null_check": jobs("plot_null_check"),
    "figures/null_distribution": jobs("plot_null_distribution"),
    "figures/same_compute": NOTHING,  # a study without controls
    "figures/style": LOOKS,
    "jobs/__init__": jobs("collect_router_logits", experiments=EXPERIMENTS, datasets=DATASETS),
    "jobs/ending": NOTHING,
    "jobs/fingerprint": NOTHING,
    "jobs/host": NOTHING,
    "jobs/model_jobs/__init__": PASS,
    "jobs/model_jobs/cache": PASS,
    "jobs/model_jobs/collect_router_logits": jobs("collect_router_logits"),
    "jobs/model_jobs/run_experiment": jobs(experiments=EXPERIMENTS),
    "jobs/model_jobs/prepare_dataset": NOTHING,  # as `jobs/host`
    "jobs/preparation": jobs(datasets=DATASETS),
    "jobs/script": NOTHING,
    "jobs/version": NOTHING,
    "model": PASS,
    "model/__init__": EVERYTHING,
    "model/description": jobs("collect_router_logits", experiments=EXPERIMENTS, datasets=DATASETS),
    "model/inspect": EVERYTHING,
    "model/sample_logger": NOTHING,
    "model/tokenizer": jobs("collect_router_logits", experiments=EXPERIMENTS, datasets=DATASETS),
    "null_distribution": jobs("fit_null_distribution"),
    "null_distribution/check": jobs("check_null_distribution"),
    "null_distribution/from_model": NOTHING,
    "report": REPORT,
    "routing/__init__": PASS,
    "routing/base": PASS,
    "routing/batch": PASS,
    "routing/bh": jobs(experiments=of(BH)),
    "routing/confidence": NOTHING,
    "routing/control": NOTHING,  # a study without controls
    "routing/entropy": NOTHING,
    "routing/hc": NOTHING,
    "routing/layerwise": NOTHING,
    "routing/minp": NOTHING,
    "routing/pooled": NOTHING,
    "routing/probabilities": NOTHING,
    "routing/router_rule": PASS,
    "routing/topk": jobs("collect_router_logits", experiments=of(TOP_K)),  # calibration runs under top-k
    "routing/topp": NOTHING,
    "routing_log": PASS,
    "routing_log/arrays": jobs(experiments=EXPERIMENTS),
    "routing_log/json_file": jobs(experiments=EXPERIMENTS),
    "routing_log/reader": NOTHING,
    "routing_log/sequences": jobs(experiments=EXPERIMENTS),
    "routing_log/size": NOTHING,
    "routing_log/writer": jobs(experiments=EXPERIMENTS),
    "settings": NOTHING,
    "settings/config_files": NOTHING,
    "settings/__init__": jobs(experiments=EXPERIMENTS),
    "settings/configurations": jobs(experiments=EXPERIMENTS),
    "settings/left_over": NOTHING,
    "system/__init__": EVERYTHING,
    "system/content": NOTHING,
    "system/cores": NOTHING,
    "system/disk": NOTHING,
    "system/errors": NOTHING,
    "system/files": NOTHING,
    "system/harness_tasks": NOTHING,
    "system/hub": NOTHING,
    "system/hub_faults": NOTHING,
    "system/json_files": EVERYTHING,
    "system/processes": NOTHING,
    "system/text": REPORT | ATLAS_PAGE,
    "system/tensor_files": jobs("collect_router_logits", experiments=EXPERIMENTS),
}  # a folder stands for its modules; the longest name that fits applies

AFTER_EDIT_OF_SCRIPT = {
    "inspect_model": EVERYTHING,
    "prepare_dataset": jobs(datasets=DATASETS),
    "collect_router_logits": jobs("collect_router_logits"),
    "fit_null_distribution": jobs("fit_null_distribution"),
    "check_null_distribution": jobs("check_null_distribution"),
    "run_experiment": jobs(experiments=EXPERIMENTS),
    "compute_metrics": METRICS,
    "tabulate_results": TABLES,
    "plot_null_distribution": jobs("plot_null_distribution"),
    "plot_null_check": jobs("plot_null_check"),
    "plot_panels": PANELS_ALONE,
    "draw_routing_atlas": ATLAS_PAGE,
    "plot_routing_atlas": ATLAS_PICTURES,
    "plot_difficulty": NOTHING,
    "plot_same_compute": NOTHING,
    "tabulate_harness": NOTHING,
    "tabulate_same_compute": NOTHING,
    "tabulate_where": NOTHING,
    "tabulate_difficulty": NOTHING,
    "write_report": REPORT,
}


@pytest.fixture(scope="module")
def study(small_study, tmp_path_factory):
    """A finished study, 3 configurations x 3 data sets, of a copy of the project that tests can edit."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    return small_study(tmp_path_factory.mktemp("studies") / "study", project)


def expected_after_edit(module):
    """The plan after an edit of a module, given as "report/tables"; None without a row in the table."""
    names = [module, *("/".join(module.split("/")[:i]) for i in range(module.count("/"), 0, -1))]
    return next((AFTER_EDIT[name] for name in names if name in AFTER_EDIT), None)


def append(path, text):
    """Add to a file; returns what puts it back as it was."""
    before = path.read_text()
    path.write_text(before + text)
    return lambda: path.write_text(before)


PACKAGE = REPOSITORY / "workflow_scripts/adaptive_routing"
MODULES = sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path.name for path in PACKAGE.parent.glob("*.py"))


# Every file of code in `workflow_scripts/`, and the plan after an edit of it.
EDITS = {f"adaptive_routing/{module}.py": expected_after_edit(module) for module in MODULES}
EDITS |= {f"{script}.py": plan for script, plan in AFTER_EDIT_OF_SCRIPT.items()}


def plan_after_edit(study, paths):
    """The plan after an edit of these files, which are then put back as they were."""
    put_back = [append(study.project / "workflow_scripts" / path, "\nEDITED = True\n") for path in paths]
    try:
        return study.plan()
    finally:
        for one in put_back:
            one()


@pytest.fixture(scope="module")
def fingerprints(study):
    """The modules of every fingerprint that the workflow of the study takes, each a set."""
    seen = study.folder / "fingerprints"
    put_back = append(
        study.project / "workflow_scripts/adaptive_routing/jobs/fingerprint.py",
        f"""
hashed = code_fingerprint
def code_fingerprint(*names, without=()):
    with open({str(seen)!r}, "a") as file:
        print(*code_modules(*names, without=without), file=file)
    return hashed(*names, without=without)
""",
    )
    study.plan()
    put_back()
    lines = seen.read_text().splitlines()
    seen.unlink()
    return list(map(set, map(str.split, set(lines))))


# Paths by the plan that is expected after an edit of any one of them.
PATHS = {}
for path, expected in EDITS.items():
    if expected != NOTHING:
        PATHS.setdefault(str(sorted(expected.items())), []).append(path)


@pytest.mark.parametrize("paths", PATHS.values(), ids=lambda paths: paths[0])
def test_an_edit_of_any_module_reruns_what_it_decides(study, fingerprints, paths):
    """One is edited of those that the same fingerprints cover: an edit of any changes these and no others."""
    one_of_each = {}
    for path in paths:
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        covered = frozenset(i for i, modules in enumerate(fingerprints) if module in modules)
        one_of_each.setdefault(covered, path)
    for path in one_of_each.values():
        assert plan_after_edit(study, [path]) == EDITS[path], path


def test_edits_that_decide_nothing_rerun_nothing(study):
    idle = [path for path, expected in EDITS.items() if expected == NOTHING]
    assert len(idle) > 10
    assert plan_after_edit(study, idle) == NOTHING
    assert study.plan() == {}


def test_every_script_has_a_row():
    assert {f"{script}.py" for script in AFTER_EDIT_OF_SCRIPT} == set(SCRIPTS)


def test_a_server_says_what_the_command_says(study):
    """Plans are those of a fork that has Snakemake imported already: the same lines as the command's own."""
    targets = ["results/logs/16experts_bh_a030_lambada.json", "--force"]
    edited = study.project / "workflow_scripts/adaptive_routing/routing/bh.py"
    for edit, arguments in (("\nEDITED = True\n", ()), ("", targets), ("", ("no_such_rule",))):
        put_back = append(edited, edit)
        arguments = (*arguments, "--dry-run", "--quiet", "host")
        # The line with the time of day, to a minute, may differ.
        served = study.ask(*arguments)
        command = study.command(*arguments, check=False)
        put_back()
        assert served.returncode == command.returncode == int("no_such_rule" in arguments)
        assert lines_of(served.stdout) == lines_of(command.stdout)
        assert lines_of(served.stderr) == lines_of(command.stderr)
        assert "run_experiment" in served.stdout + served.stderr or served.returncode


def lines_of(text):
    """Lines without the time of day, sorted: Snakemake names jobs in no fixed order."""
    return sorted(re.sub(r"\d\d? \w{3} \d{4} @ \d\d:\d\d", "", text).splitlines())


@pytest.mark.parametrize("name", ["atlas.js", "atlas.css", "atlas.html"])
def test_an_edit_of_what_the_page_is_made_with_makes_the_page_anew(study, name):
    put_back = append(study.project / "workflow_scripts/adaptive_routing/atlas/page" / name, "\n")
    assert study.plan() == ATLAS_PAGE
    put_back()
    assert study.plan() == {}


def test_comments_and_docstrings_change_nothing(study):
    put_back = []
    for path in sorted((study.project / "workflow_scripts").rglob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        assert ast.get_docstring(tree) is not None or not tree.body, path
        put_back.append(append(path, "\n\n# A comment.\n"))
        if tree.body:
            lines = path.read_text().split("\n")
            lines[tree.body[0].end_lineno - 1] += "  # another"
            lines[0] = lines[0].replace('"""', '"""In other words: ', 1)
            path.write_text("\n".join(lines))
            ast.parse(path.read_text())
    assert study.plan() == {}
    for one in put_back:
        one()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8, 16], "alpha": [0.30, 0.40]}}},
         jobs("check_null_distribution",
              experiments={(f"{k}experts_bh_a040", one) for k in (8, 16) for one in DATASETS})),
        ({"strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8], "alpha": [0.30]}}},
         jobs("tabulate_results", "draw_routing_atlas")),
        ({"evaluation": {"max_samples": 5}}, jobs(datasets=DATASETS)),
        ({"evaluation": {"max_length": 256}}, jobs(datasets=("wikitext",))),
        ({"evaluation": {"share_contexts": False}}, jobs(datasets=("lambada", "hellaswag"))),
        ({"datasets": {"lambada": {"source": "resources/datasets/lambada.jsonl", "max_samples": 5}}},
         jobs(datasets=("lambada",))),
        ({"null_distribution": {"kernel": "tophat"}}, jobs("fit_null_distribution")),
        ({"null_distribution": {"calibration": {"max_tokens": 900}}}, jobs("collect_router_logits")),
        ({"evaluation": {"batch_tokens": 1024}}, REPORT),  # decides how, and the report states it
        ({"routing_log": {"json_samples": 5}}, jobs(experiments=of())),
        ({"routing_log": {"router_logits": 5}}, jobs(experiments=of())),
        ({"routing_log": {"json_compression": "zstd"}}, jobs(experiments=of())),
        ({"execution": "process"}, REPORT),
        ({"report": {"accuracy_margin": 0.01}}, REPORT | ATLAS),
        ({"baseline": "8experts_bh_a030"}, jobs("tabulate_results", "draw_routing_atlas")),
    ],
)  # fmt: skip
def test_a_changed_setting_reruns_what_it_decides(study, changes, expected):
    before = json.loads(json.dumps(study.settings))
    study.configure(**changes)
    plan = study.plan()
    study.settings = before
    study.configure()
    assert plan == expected
    assert study.plan() == {}


def test_a_changed_file_of_a_data_set_reruns_its_experiments(small_study, tmp_path):
    study = small_study(tmp_path / "study")
    rows = (REPOSITORY / "resources/datasets/lambada.jsonl").read_text().splitlines()
    source = study.folder / "lambada.jsonl"
    source.write_text("\n".join(rows[:20]) + "\n")
    study.configure(datasets={"lambada": {"source": "lambada.jsonl"}})
    assert study.plan() == jobs(datasets=("lambada",))
    target = TOP_K[0]
    of_target = dict.fromkeys((target, "prepare_dataset", "run_experiment", "compute_metrics"), 1)
    study.snakemake(target)
    assert study.plan(target) == {}
    source.write_text("\n".join(rows[5:25]) + "\n")
    assert study.plan(target) == of_target
    assert study.plan() == jobs(datasets=("lambada",))
    study.snakemake(target)
    assert study.plan(target) == {}


def test_forced_and_named_targets(study):
    targets = [f"results/logs/16experts_bh_a030_{dataset}.json" for dataset in DATASETS]
    assert study.plan(*targets) == {}
    # A configuration forced: its experiments, and in a run of everything also what follows from them.
    assert study.plan(*targets, "--force") == {"run_experiment": 3}
    assert study.plan("--forcerun", *targets) == jobs(experiments=of(BH[1:]))
    assert study.plan("--forcerun", "run_experiment", "--until", "run_experiment") == {"run_experiment": 9}
    empty = StudyFolder(study.folder / "empty", study.project)
    counts = {"inspect_model": 1, "prepare_dataset": 1, "collect_router_logits": 1}
    counts |= {"fit_null_distribution": 1, "run_experiment": 1}
    assert empty.plan(targets[1]) == counts
    assert empty.plan(targets[1].replace("16experts_bh_a030", TOP_K[0])) == {
        "inspect_model": 1, "prepare_dataset": 1, "run_experiment": 1,
    }  # fmt: skip


# What a job imports, as Python itself tells. The request's files come from the finished study.
LOADED = """
import json, sys
sys.path.insert(0, {folder!r})
{body}
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "adaptive_routing"]))
"""


def loaded_modules(study, body):
    """Names of the package's modules that are loaded after running `body` in the study's folder."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(folder=str(FOLDER), body=body)],
        cwd=study.folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("configuration", "dataset", "without"),
    [
        (
            TOP_K[0],
            "hellaswag",
            ("adaptive_routing.null_distribution", "adaptive_routing.evaluation.generation"),
        ),
        (BH[0], "wikitext", ("adaptive_routing.evaluation.generation",)),
    ],
)
def test_the_fingerprint_of_an_experiment_covers_all_that_it_loads(study, configuration, dataset, without):
    summary = json.loads(study.results("logs", f"{configuration}_{dataset}.json").read_text())
    null = "results/calibration/null_distribution.safetensors" if summary["strategy"] == "bh" else None
    request = {
        "model": "results/model.json", "dtype": "float32", "device": "cpu", "null_distribution": null,
        "control": None,
        "configuration": {
            "name": configuration, "strategy": summary["strategy"], "max_experts": summary["k_or_max_k"],
            "parameters": summary["provenance"]["settings"]["configuration"],
        },
        "routing": summary["provenance"]["settings"]["routing"], "dataset": dataset,
        "prepared": f"results/datasets/{dataset}.json",
        "batch_tokens": 2048, "second_pass_samples": 1,
        "outputs": {name: f"out_{name}" for name in ("summary", "internal_routing", "tensors")},
    }  # fmt: skip
    loaded = loaded_modules(
        study,
        "import contextlib\nfrom adaptive_routing.jobs.model_jobs import JOBS, Cache\n"
        f"with contextlib.closing(Cache()) as cache:\n    JOBS['run_experiment']({request!r}, cache)",
    )
    covered = code_modules(
        "run_experiment", "adaptive_routing.jobs.model_jobs.run_experiment",
        f"adaptive_routing.routing.{summary['strategy']}", f"adaptive_routing.data.tasks.{dataset}",
        without=without,
    )  # fmt: skip
    unused = (*NOT_DECIDING, *without)
    decisive = {name for name in loaded if not any(f"{name}.".startswith(f"{one}.") for one in unused)}
    assert decisive <= set(covered)
    assert "adaptive_routing.evaluation.experiment" in decisive


def test_the_fingerprint_of_figures_and_report_covers_all_that_they_load(study):
    tables = [
        f"results/bh_routing_{name}.csv" for name in ("results", "configurations", "layers", "comparisons")
    ]
    loaded = loaded_modules(
        study,
        "from adaptive_routing.figures.panels import PANELS, describe_panel, draw_panel\n"
        "from adaptive_routing.analysis.study import read_study\n"
        f"study = read_study(*{tables!r}, baseline={TOP_K[0]!r})\n"
        "for panel in PANELS:\n    draw_panel(panel, study)\n    describe_panel(panel, study)",
    )
    covered = set(code_modules("plot_panels", *map(panel_module, PANELS)))
    assert loaded - set(NOT_DECIDING) <= covered
    assert covered - {"plot_panels"} <= set(code_modules("write_report", *map(panel_module, PANELS)))


def test_what_is_no_code_leaves_no_trace_in_a_tree():
    one = 'def f(x):\n    """Doc."""\n    return f"{x:>{3}}"  # why\n'
    other = "def f(\n    x,\n):\n    'Other words.'\n\n    return f'{x:>{3}}'\n"
    changed = one.replace("3", "4")
    dumps = [_dump(ast.parse(text)) for text in (one, other, changed, one.replace(" return", " yield"))]
    assert dumps[0] == dumps[1]
    assert len(set(dumps)) == 3


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("matplotlib", LOOKS),
        ("torch", jobs("collect_router_logits", experiments=EXPERIMENTS)),
        ("transformers", jobs("collect_router_logits", datasets=DATASETS)),
        ("tokenizers", jobs("collect_router_logits", datasets=DATASETS)),
        ("numpy", EVERYTHING),
        ("scipy", jobs("fit_null_distribution", "tabulate_results")),
        ("huggingface_hub", NOTHING),
    ],
)
def test_another_version_of_a_library_reruns_what_uses_it(study, library, expected):
    """Python reads versions from the first folder on its path that has the library's metadata."""
    metadata = study.folder / f"{library}-99.dist-info/METADATA"  # the working directory is the first
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: 99\n")
    plan = study.plan()
    shutil.rmtree(metadata.parent)
    assert plan == expected


def test_libraries_are_those_that_the_modules_import():
    def libraries(script, *by_name):
        return set(library_versions(code_modules(script, *by_name)))

    assert {"torch", "transformers", "tokenizers", "numpy"} <= libraries(
        "run_experiment", "adaptive_routing.jobs.model_jobs.run_experiment", "adaptive_routing.routing.bh"
    )
    assert {"matplotlib", "pandas"} <= libraries("plot_panels", *map(panel_module, PANELS))
    assert "scipy" in libraries("fit_null_distribution") & libraries("tabulate_results")
    assert "matplotlib" not in libraries("compute_metrics") | libraries("tabulate_results")
    versions = library_versions(code_modules("write_report"))
    assert versions["matplotlib"] == matplotlib.__version__
    assert all(version[0].isdigit() and "+" not in version for version in versions.values())


def test_names_of_modules_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"no module adaptive_routing\.routing\.bhh"):
        code_modules("run_experiment", "adaptive_routing.routing.bhh")


def test_every_module_belongs_to_a_row_of_the_table():
    assert [module for module in MODULES if expected_after_edit(module) is None] == []
    used = Counter(name for name in AFTER_EDIT for module in MODULES if f"{module}/".startswith(f"{name}/"))
    assert set(used) == set(AFTER_EDIT)  # no row of a module that is gone
