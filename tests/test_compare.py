"""Two results folders compared: what is changed in one of them is found and named, and nothing else."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from adaptive_routing.analysis.metrics import compute_metrics
from adaptive_routing.analysis.tables import comparisons_table, experiments_table, layers_table, write_table
from adaptive_routing.compare import differences
from adaptive_routing.compare.__main__ import compare, main
from adaptive_routing.compare.differences import tensor_differences
from adaptive_routing.compare.summary import paired_experiments
from adaptive_routing.data.samples import prepared_to_json
from adaptive_routing.evaluation.calibration import save_router_logits
from adaptive_routing.null_distribution.check import check, save_check
from adaptive_routing.routing_log.json_file import open_to_write
from adaptive_routing.system.json_files import read_json, write_json
from adaptive_routing.system.tensor_files import TensorFile
from conftest import ROOT, normal_null_distribution
from safetensors.numpy import load_file, save_file
from test_experiment import prepare, run

TOP_K, BH = "8experts_topk_baseline", "16experts_bh_a050"
SUMMARY = f"logs/{BH}_lambada.json"
ROUTING_LOG = f"logs/{BH}_lambada_internal_routing.json"
TENSORS = f"logs/{BH}_lambada_internal_routing.safetensors"
METRICS = f"metrics/{BH}_lambada.json"


@pytest.fixture(scope="module")
def results(tmp_path_factory, embedded):
    """A results folder of 2 configurations x 2 data sets, all but the workflow around it."""
    folder = tmp_path_factory.mktemp("results")
    write_json(folder / "model.json", embedded.loaded.info)
    embedded.null_distribution.save(folder / "calibration/null_distribution.safetensors")
    logits = embedded.loaded.model.lm_head.weight[:60].reshape(5, 4, -1)
    save_router_logits(folder / "calibration/router_logits.safetensors", logits, [5], {"dtype": "float32"})
    found = check(embedded.null_distribution, logits.detach().float().numpy(), [0.3, 0.6], 0, 8, 1)
    save_check(found, *(folder / f"calibration/null_check.{suffix}" for suffix in ("csv", "safetensors")), {})
    summaries, metrics = [], []
    for dataset in ("wikitext", "lambada"):
        prepared = prepared_to_json(dataset, prepare(embedded, dataset), {"max_samples": 8})
        write_json(folder / f"datasets/{dataset}.json", prepared)
        for name in (TOP_K, BH):
            summary, files = run(folder, embedded, name, dataset)
            with TensorFile(files.tensors) as tensors:
                metrics.append(compute_metrics(summary, tensors))
            write_json(folder / f"metrics/{name}_{dataset}.json", metrics[-1])
            summaries.append(summary)
    for table, name in (
        (experiments_table(metrics), "results"),
        (layers_table(metrics), "layers"),
        (comparisons_table(summaries, TOP_K), "comparisons"),
    ):
        write_table(table, folder / f"bh_routing_{name}.csv", folder / f"bh_routing_{name}.json")
    (folder / "visualizations").mkdir()
    (folder / "visualizations/panel_1_perplexity.png").write_bytes(b"a figure")
    (folder / "bh_routing_report.md").write_text("A report.\n")
    return folder


@pytest.fixture
def other(results, tmp_path):
    """A copy of the results."""
    return shutil.copytree(results, tmp_path / "other")


@pytest.fixture
def said(capsys):
    """The command's exit status, output and errors."""

    def run_command(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run_command


def in_json(path, *keys, value):
    """What sets a value in a JSON file; a function is called with the value that is there."""

    def change(folder):
        content = read_json(folder / path)
        node = content
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value(node[keys[-1]]) if callable(value) else value
        write_json(folder / path, content)

    return change


def in_routing_log(line, old, new):
    """What replaces text in a line of the routing log, which stays a sample a line."""

    def change(folder):
        lines = (folder / ROUTING_LOG).read_text().split("\n")
        assert old in lines[line]
        lines[line] = lines[line].replace(old, new, 1)
        (folder / ROUTING_LOG).write_text("\n".join(lines))

    return change


def in_tensor(path, name, edit):
    """What edits a tensor in a file; `edit` changes an array in place or returns another."""

    def change(folder):
        with TensorFile(folder / path) as file:
            metadata = file.metadata
        tensors = load_file(folder / path)
        edited = edit(tensors[name])
        if edited is not None:
            tensors[name] = np.ascontiguousarray(edited)
        save_file(tensors, folder / path, metadata=metadata)

    return change


def set_at(index, value):
    """An edit that sets one element, or adds to it."""

    def edit(array):
        array[index] = value(array[index])

    return edit


def in_table(path, column, value):
    def change(folder):
        with open(folder / path, newline="") as file:
            rows = list(csv.DictReader(file))
        rows[0][column] = value
        with open(folder / path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return change


def without_last_line(path):
    def change(folder):
        lines = (folder / path).read_text().splitlines(keepends=True)
        (folder / path).write_text("".join(lines[:-1]))

    return change


def test_a_folder_and_its_copy_are_identical(results, other, said):
    status, text, errors = said(results, other)
    assert (status, errors) == (0, "")
    assert text == "identical: 4 experiments, timings left out\n"


EXPERIMENT = f"{BH}_lambada:"
CHANGES = {
    "metric": (
        in_json(METRICS, "metrics", "gini_coefficient", value=lambda v: v + 0.25),
        [EXPERIMENT, "selections: identical", "metrics: metrics.gini_coefficient: 0.", "(+0.25)"],
    ),
    "metric of a layer": (
        in_json(METRICS, "per_layer", "avg_experts", 1, value=lambda v: v + 0.5),
        [EXPERIMENT, "per_layer.avg_experts[]: 1 of 16 differ, by 0.5 at most"],
    ),
    "metric that does not exist": (
        in_json(METRICS, "metrics", "gini_coefficient", value=None),
        ["metrics.gini_coefficient: 0.", "| null"],
    ),
    "score": (
        in_json(SUMMARY, "metrics", "lambada_perplexity", value=lambda v: v + 2.0),
        [EXPERIMENT, "answers: identical", "summary: metrics.lambada_perplexity: ", "(+2)"],
    ),
    "loss of a sample": (
        in_json(SUMMARY, "samples", 3, "loss", value=lambda v: v + 0.125),
        ["summary: samples[].loss: 1 of 8 differ, by 0.125 at most"],
    ),
    "answer": (
        in_json(SUMMARY, "samples", 3, "correct", value=lambda v: not v),
        ["selections: identical", "samples[].correct: 1 of 8 differ, such as"],
    ),
    "number of samples": (
        in_json(SUMMARY, "samples", value=lambda v: v[:-1]),
        ["summary: samples: length: 8 | 7"],
    ),
    "setting": (
        in_json(SUMMARY, "provenance", "settings", "routing", "temperature", value=2.0),
        ["settings:", "provenance.settings.routing.temperature: 1.0 | 2.0 (1 experiment)"],
    ),
    "fingerprint": (
        in_json(SUMMARY, "provenance", "model", "fingerprint", value="0" * 64),
        ["settings:", "provenance.model.fingerprint"],
    ),
    "head of the routing log": (
        in_routing_log(0, '"alpha":0.5', '"alpha":0.25'),
        ["settings:", "alpha: 0.5 | 0.25 (1 experiment)"],
    ),
    "sample of the routing log": (
        in_routing_log(3, '"sample_id":"lambada_2"', '"sample_id":"another"'),
        [EXPERIMENT, 'routing log: samples[].sample_id: lambada_2 | another'],
    ),
    "statistics of the routing log": (
        in_routing_log(9, '"num_tokens":', '"num_tokens":9'),
        [EXPERIMENT, "routing log: aggregate_stats.num_tokens: "],
    ),
    "selection": (
        in_tensor(TENSORS, "selected_experts", set_at((5, 2, 0), lambda v: v ^ 1)),
        [EXPERIMENT, "tensors: selected_experts: the same expert set in 99.", "answers: identical"],
    ),
    "router logit": (
        in_tensor(TENSORS, "router_logits", set_at((5, 2, 7), lambda v: v + 3)),
        ["selections: identical", "tensors: router_logits: 1 of ", "differ, by 3 at most"],
    ),
    "loss that does not exist": (
        in_tensor(TENSORS, "token_losses", lambda array: np.full_like(array, np.nan)),
        ["tensors: token_losses: "],
    ),
    "shape": (
        in_tensor(TENSORS, "greedy_tokens", lambda array: array[:-1]),
        ["tensors: type and shape of greedy_tokens: I32 ["],
    ),
    "null distribution": (
        in_tensor("calibration/null_distribution.safetensors", "survival",
                  lambda array: np.where(array < 1e-3, 0, array)),
        ["calibration/null_distribution.safetensors:", "survival functions: ", "at most"],
    ),
    "calibration logits": (
        in_tensor("calibration/router_logits.safetensors", "router_logits", set_at((0, 0, 0), np.negative)),
        ["calibration/router_logits.safetensors:", "router_logits: 1 of "],
    ),
    "check of a null distribution": (
        in_table("calibration/null_check.csv", "share_zero", "0.25"),
        ["calibration/null_check.csv:", "share_zero: 1 of 8 "],
    ),
    "tokens of a data set": (
        in_json("datasets/lambada.json", "samples", 0, "sequences", 0, "token_ids", 1, value=0),
        ["datasets/lambada.json:", "samples[].sequences[].token_ids[]: 1 of "],
    ),
    "model": (
        in_json("model.json", "shapes", "num_experts", value=32),
        ["model.json:", "shapes.num_experts: 64 | 32"],
    ),
    "cell": (
        in_table("bh_routing_results.csv", "avg_experts", "9.5"),
        ["bh_routing_results.csv:", "avg_experts: 1 of 4 differ, by 1.5 at most"],
    ),
    "empty cell": (
        in_table("bh_routing_layers.csv", "gini_coefficient", ""),
        ["bh_routing_layers.csv:", "gini_coefficient: 1 of 64 differ, such as 0.", "| null"],
    ),
    "row": (
        without_last_line("bh_routing_comparisons.csv"),
        ["bh_routing_comparisons.csv:", f"row {BH} lambada loss: there | missing"],
    ),
    "table in JSON": (
        in_json("bh_routing_comparisons.json", 0, "p_value", value=0.5),
        ["bh_routing_comparisons.json:", "[].p_value: 1 of "],
    ),
    "metrics missing": (lambda folder: (folder / METRICS).unlink(), [f"only in the first folder: {METRICS}"]),
    "table missing": (
        lambda folder: (folder / "bh_routing_layers.csv").unlink(),
        ["only in the first folder: bh_routing_layers.csv"],
    ),
    "experiment missing": (
        lambda folder: (folder / SUMMARY).unlink(),
        [f"only in the first folder: {BH}_lambada"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_what_is_changed_is_found_and_named(results, other, said, change, words):
    change(other)
    status, text, _ = said(results, other)
    assert status == 1
    first, *rest = text.splitlines()
    assert first.startswith("different: 1 ")
    for one in words:
        assert one in text, text
    assert len(rest) <= 5, text  # and nothing else is
    assert said(other, results)[0] == 1
    assert json.loads(said(results, other, "--json")[1])["verdict"] == "different"


NOT_COUNTED = {
    "figure": (
        lambda folder: (folder / "visualizations/panel_1_perplexity.png").write_bytes(b"another"),
        "visualizations/panel_1_perplexity.png",
    ),
    "report missing": (lambda folder: (folder / "bh_routing_report.md").unlink(), "bh_routing_report.md"),
    "device": (in_json(SUMMARY, "provenance", "device", value="GPU"), 'provenance.device: "cpu" | "GPU"'),
    "version": (in_json(SUMMARY, "provenance", "versions", "numpy", value="9"), "provenance.versions.numpy"),
    "host": (in_json(SUMMARY, "provenance", "run", "host", value="elsewhere"), "provenance.run.host"),
    "folder of the model": (in_json("model.json", "folder", value="/elsewhere"), "folder:"),
}


@pytest.mark.parametrize(("change", "words"), NOT_COUNTED.values(), ids=NOT_COUNTED)
def test_what_is_no_result_is_named_and_not_counted(results, other, said, change, words):
    change(other)
    status, text, _ = said(results, other)
    assert status == 0 and text.startswith("identical: 4 experiments")
    assert words in text


@pytest.mark.parametrize(
    "change",
    [
        in_json(SUMMARY, "timings", "forward_seconds", value=1e6),
        in_json(SUMMARY, "provenance", "run", "started", value="2001-01-01T00:00:00+00:00"),
        in_json(METRICS, "metrics", "tokens_per_second", value=1e6),
        in_json(METRICS, "metrics", "latency_ms_per_token", value=None),
        in_table("bh_routing_results.csv", "forward_seconds", "1e6"),
    ],
)
def test_timings_are_shown_when_asked_for(results, other, said, change):
    change(other)
    assert said(results, other)[:2] == (0, "identical: 4 experiments, timings left out\n")
    status, text, _ = said(results, other, "--timings")
    assert status == 0 and ", timings:" in text and len(text.splitlines()) == 3
    assert len(json.loads(said(results, other, "--timings", "--json")[1])["timings"]) == 1


def test_a_tolerance_lets_numbers_differ_and_no_decision(results, other, said):
    in_json(SUMMARY, "samples", 0, "loss", value=lambda v: v + 1e-6)(other)
    in_tensor(TENSORS, "router_logits", lambda array: array * np.float32(1 + 1e-5))(other)
    status, text, _ = said(results, other)
    assert status == 1 and "no decision differs, and no number by more than" in text
    status, text, _ = said(results, other, "--tolerance", "2e-5")
    assert status == 0 and text.startswith("equal to rounding (")
    assert said(results, other, "--tolerance", "1e-7")[0] == 1
    in_tensor(TENSORS, "selected_experts", set_at((0, 0, 0), lambda v: v ^ 1))(other)
    status, text, _ = said(results, other, "--tolerance", "0.5")
    assert status == 1 and text.startswith("different: 1 experiment\n")


def test_settings_are_told_once_for_all_experiments(results, other, said):
    for name in (TOP_K, BH):
        for dataset in ("wikitext", "lambada"):
            path = f"logs/{name}_{dataset}.json"
            in_json(path, "provenance", "settings", "routing", "weights", value="renormalized")(other)
    text = said(results, other)[1]
    line = '  provenance.settings.routing.weights: "native" | "renormalized" (4 experiments)'
    assert text.splitlines() == ["different: 1 setting", "settings:", line]


def test_sizes_of_differences_are_numpys(results, other, monkeypatch):
    """All slices are read, and each difference is that of whole arrays."""
    rng = np.random.default_rng(0)
    before = load_file(results / TENSORS)
    noise = rng.normal(size=before["router_logits"].shape).astype(np.float32)
    flips = rng.random(before["selected_experts"].shape[:2]) < 0.2
    in_tensor(TENSORS, "router_logits", lambda array: array + noise)(other)
    in_tensor(TENSORS, "selected_experts", lambda array: array ^ flips[..., None])(other)
    after = load_file(other / TENSORS)
    monkeypatch.setattr(differences, "_SLICE", 1000)
    found = {one.name: one for one in tensor_differences(results / TENSORS, other / TENSORS)}
    assert set(found) == {"router_logits", "selected_experts"}
    exact = np.abs(before["router_logits"].astype(np.float64) - after["router_logits"])
    logits, selections = found["router_logits"], found["selected_experts"]
    assert logits.count == np.count_nonzero(exact) and logits.total == exact.size
    assert logits.largest == exact.max()
    assert (selections.count, selections.total) == (flips.sum(), flips.size)


def test_null_distributions_are_compared_as_functions(tmp_path):
    """On grids of different steps, too: the same functions differ by the interpolation's error."""
    for name, points in (("coarse", 2001), ("fine", 4001)):
        normal_null_distribution(3, points).save(tmp_path / name)
    found = {one.name: one for one in tensor_differences(tmp_path / "coarse", tmp_path / "fine")}
    assert found["type and shape of survival"].first == "F64 [3, 2001]"
    steepest_bend = 0.242  # of the normal distribution's S'', at 1
    assert 0 < found["survival functions"].largest < 1.01 * steepest_bend * 0.008**2 / 8


def broken(path, text=None):
    def change(folder):
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2] if text is None else text)

    return change


@pytest.mark.parametrize("path", [SUMMARY, ROUTING_LOG, TENSORS, METRICS, "model.json"])
def test_a_damaged_file_is_one_sentence(results, other, said, path):
    broken(path)(other)
    status, text, errors = said(results, other)
    assert (status, text) == (2, "")
    assert errors.startswith("error: ") and str(other / path) in errors and errors.count("\n") == 1


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "of something else"])
def test_a_folder_without_results_is_one_sentence(results, tmp_path, said, kind):
    folder = tmp_path / "other"
    if kind == "a file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "of something else":
        (folder / "logs").mkdir()
        (folder / "logs" / "a_internal_routing.json").write_text("{}")
    for arguments in ((results, folder), (folder, results)):
        status, text, errors = said(*arguments)
        assert (status, text) == (2, "")
        assert errors.startswith("error: ") and str(folder) in errors and errors.count("\n") == 1


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf", "small"])
def test_a_tolerance_is_a_number_from_0_on(results, tolerance, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(results), str(results), f"--tolerance={tolerance}"])
    assert ended.value.code == 2
    assert tolerance in capsys.readouterr().err


def test_the_command_needs_no_torch(results, other):
    in_json(SUMMARY, "samples", 3, "loss", value=lambda v: v + 0.125)(other)
    in_tensor(TENSORS, "router_logits", lambda array: array + np.float32(1))(other)
    check = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('adaptive_routing.compare', run_name='__main__')\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, results, other],
        env={**os.environ, "PYTHONPATH": str(ROOT / "workflow_scripts")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("different: 1 experiment")
    assert done.stdout.endswith("False\n")


def test_the_summary_shows_answers_and_paired_differences_on_one_screen(results, other, said):
    (other / "bh_routing_summary.txt").write_text("BH does better.\n" + "Why: for a reason. " * 60)
    status, text, _ = said(results, results, "--summary")
    assert status == 0
    assert re.search(r"wikitext token perplexity +0 +0 +0 +2   \+0.0 %", text)
    assert "no answers yet" in text
    in_json(SUMMARY, "samples", value=lambda samples: [one | {"correct": False} for one in samples])(other)
    path = f"logs/{BH}_wikitext.json"
    worse = in_json(path, "samples", value=lambda ones: [one | {"loss": one["loss"] + 0.5} for one in ones])
    worse(other)
    (other / f"logs/{TOP_K}_lambada.json").unlink()
    status, text, _ = said(results, other, "--summary")
    assert status == 0 and len(text.splitlines()) <= 40
    assert "  BH does better." in text and "[…]" in text
    assert re.search(r"wikitext token perplexity +0 +1 +0 +1   \+28.4 %", text)  # half of exp(0.5) in nats
    assert re.search(r"worse +\+64.9 % \(.*\) +BH max_k 16, α 0.5 on wikitext", text)
    assert "experiments not paired: 1 only in FIRST" in text
    rename = in_json(path, "samples", value=lambda ones: [one | {"sample_id": f"no {one}"} for one in ones])
    rename(other)
    assert "1 only in FIRST, 1 without a shared sample" in said(results, other, "--summary")[1]


def test_paired_differences_are_those_of_the_tests(results, other):
    rng = np.random.default_rng(0)
    path = f"logs/{BH}_wikitext.json"
    noise = rng.normal(0.1, 0.05, size=len(read_json(other / path)["samples"]))
    in_json(
        path,
        "samples",
        value=lambda ones: [one | {"loss": one["loss"] + d} for one, d in zip(ones, noise, strict=True)],
    )(other)
    pairs, apart = paired_experiments(results, other, [f"{BH}_wikitext", f"{TOP_K}_lambada"])
    changed, same = pairs
    assert apart == [] and same.verdict == "identical" and same.paired.difference == 0
    sizes = [one["num_predicted_tokens"] for one in read_json(other / path)["samples"]]
    assert changed.paired.difference == pytest.approx(np.average(noise, weights=sizes))
    assert changed.p_holm == min(1.0, 2 * changed.paired.p_value)


def test_a_compressed_log_equals_the_plain_one(results, other):
    log = other / ROUTING_LOG
    compressed = log.with_name(f"{log.name}.zst")
    with open_to_write(compressed) as file:
        file.write(log.read_bytes())
    log.unlink()
    assert compare(results, other).verdict() == "identical"
    with open_to_write(compressed) as file:
        file.write(
            (results / ROUTING_LOG).read_bytes().replace(b'"sample_id":"lambada_2"', b'"sample_id":"another"')
        )
    assert compare(results, other).verdict() == "different"


def test_a_comparison_has_no_difference_with_itself(results):
    found = compare(results, results)
    assert found.num_experiments == 4 and found.verdict() == "identical"
    assert not (found.timings or found.bytes or found.environment)
