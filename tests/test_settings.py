"""The config file: what is accepted, what comes out, and the sentence that each fault gets."""

import copy
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from adaptive_routing.settings.load import (
    check_against_model,
    is_local,
    load_settings,
    null_distributions,
    task_of,
)
from adaptive_routing.settings.schema import dotted_keys, resolved, schema
from adaptive_routing.system.errors import InputError
from snakemake.cli import parse_config
from snakemake.utils import update_config
from synthetic import PLAIN

ROOT = Path(__file__).parents[1]
NUM_EXPERTS = 64


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def merged(*configs):
    """Merge configs as Snakemake merges `--configfile` and `--config` over the Snakefile's own."""
    result = read("config.yaml")
    for config in configs:
        update_config(result, copy.deepcopy(config))
    return result


@pytest.fixture(autouse=True)
def no_hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, so that the outcome does not depend on what this machine has downloaded."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def study(tmp_path):
    """A working directory with the files that config.yaml names, and some that are wrong."""
    base_dir = tmp_path / "study"
    config = read("config.yaml")
    for data in (*config["datasets"].values(), config["null_distribution"]["calibration"]):
        path = base_dir / data["source"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make_model(base_dir / config["model"]["name"])
    make_model(base_dir / "models/small", num_experts=16)
    make_model(base_dir / "models/pickled", weights="pytorch_model.bin")
    make_model(base_dir / "models/without_weights", weights="README.md")
    make_model(base_dir / "models/broken", config="{not json")
    (base_dir / "models/without_config").mkdir()
    np.savez(base_dir / "table.npz", x=np.zeros((1, 2)), cdf=np.zeros((1, 2)))
    np.savez(base_dir / "other.npz", grid=np.zeros(2))
    (base_dir / "a_file").touch()
    (base_dir / "notes.txt").touch()
    return base_dir


def make_model(folder, num_experts=NUM_EXPERTS, weights="model.safetensors", config=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config or json.dumps({"num_experts": num_experts}), encoding="utf-8")
    (folder / weights).touch()


# What is accepted


def test_default_study(study):
    settings = load_settings(merged(), study)
    assert len(settings["configurations"]) == 20
    assert settings["baseline"] == settings["configurations"][0].name
    assert settings["datasets"]["lambada"] == {
        "source": "resources/datasets/lambada.jsonl",
        "subset": None,
        "split": None,
        "revision": None,
        "max_samples": 200,
        "local": True,
    }


def test_olmoe_study(study):
    settings = load_settings(merged(read("configs/olmoe_1b_7b.yaml")), study)
    assert len(settings["configurations"]) == 20
    assert not settings["model"]["local"]
    assert settings["datasets"]["hellaswag"]["split"] == "validation"
    assert settings["null_distribution"]["calibration"]["split"] == "train"
    assert settings["null_distribution"]["kernel"] == "gaussian"


def test_older_grid(study):
    settings = load_settings(merged(read("configs/olmoe_1b_7b.yaml"), read("configs/older_grid.yaml")), study)
    names = [configuration.name for configuration in settings["configurations"]]
    assert len(names) == 21
    assert {"8experts_topk_baseline", "4experts_bh_a001", "64experts_bh_a020"} <= set(names)


def test_the_grid_of_rival_strategies(study):
    settings = load_settings(merged(read("configs/rivals.yaml")), study)
    names = [one.name for one in settings["configurations"]]
    assert {one.strategy for one in settings["configurations"]} == set(
        schema()["properties"]["strategies"]["properties"]
    )
    assert len(names) == 19
    assert {"16experts_hc_b050", "16experts_hc_bauto", "16experts_topp_p020", "32experts_confidence"} <= set(
        names
    )
    assert settings["baseline"] in names


def own(name, **values):
    """A data set under a name of its own."""
    return {name: {"task": "lambada", "source": "owner/name"} | values}


def task(name, **values):
    """A data set that is a task of lm-evaluation-harness."""
    return {"mine": {"harness": name} | values}


def rival(strategy, **lists):
    return {"strategies": {strategy: {"max_k": [8]} | lists}}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            rival("hc", beta=[0]),
            "strategies.hc.beta[0] is 0, but must be a number above 0 and up to 1, or auto",
        ),
        (rival("hc", beta=["all"]), "strategies.hc.beta[0] is 'all', but must be"),
        (rival("hc"), "strategies.hc.beta is missing, but must be a list"),
        (rival("topp", p=[1.0]), "strategies.topp.p[0] is 1.0, but must be a number above 0 and below 1"),
        (rival("minp", p=[0.0]), "strategies.minp.p[0] is 0.0, but must be a number above 0 and below 1"),
        (
            rival("entropy", steps=[1]),
            "strategies.entropy.steps[0] is 1, but must be an integer from 2 to 32",
        ),
        (rival("entropy", steps=[2.5]), "strategies.entropy.steps[0] is 2.5, but must be an integer"),
        (rival("layerwise", budget=[2.5]), "strategies.layerwise.budget[0] is 2.5, but must be an integer"),
        (rival("pooled", budget=[0]), "strategies.pooled.budget[0] is 0, but must be a number above 0"),
        (rival("confidence", p=[0.3]), "strategies.confidence.p is not a known key"),
        (rival("pooled", max_k=[65], budget=[4]), "strategies.pooled.max_k[0] is 65, but the model"),
    ],
)
def test_wrong_values_of_rival_strategies(study, change, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        load_settings(merged(change), study)


@pytest.mark.parametrize(("budget", "limits"), [(15, "16 to 128"), (129, "16 to 128")])
def test_a_layerwise_budget_has_to_fit_the_model(study, budget, limits):
    settings = load_settings(merged(rival("layerwise", budget=[64, budget])), study)
    check_against_model(settings, 64)  # a model of which nothing but that is known
    with pytest.raises(
        InputError, match=rf"^strategies\.layerwise\.budget\[1\] is {budget}, but .*from {limits}"
    ):
        check_against_model(settings, 64, 16)
    check_against_model(load_settings(merged(rival("layerwise", budget=[16, 128])), study), 64, 16)


@pytest.mark.parametrize(
    ("name", "num_experts", "count"),
    [
        ("qwen3_30b_a3b", 128, 20),
        ("deepseek_v2_lite", 64, 20),
        ("gpt_oss_20b", 32, 15),
        ("mixtral_8x7b", 8, 14),
    ],
)
def test_grids_of_other_models_fit_them(study, name, num_experts, count):
    settings = load_settings(merged(read("configs/olmoe_1b_7b.yaml"), read(f"configs/{name}.yaml")), study)
    assert len(settings["configurations"]) == count
    assert settings["configurations"][0].name == settings["baseline"]
    assert settings["results"] == f"results/{name}"
    check_against_model(settings, num_experts)


def test_native_stands_for_the_models_own_number(study):
    make_model(study / "models/four", config=json.dumps({"num_local_experts": 32, "num_experts_per_tok": 4}))
    model = {"name": "models/four"}
    grid = {"topk": {"k": ["native", 16, 4]}, "bh": {"max_k": [16, "native"], "alpha": [0.3]}}
    settings = load_settings(merged({"model": model, "strategies": grid, "baseline": "native"}), study)
    assert settings["strategies"]["topk"]["k"] == [4, 16]
    assert settings["strategies"]["bh"]["max_k"] == [16, 4]
    assert "4experts_bh_a030" in [configuration.name for configuration in settings["configurations"]]
    assert settings["baseline"] == "4experts_topk_baseline"
    # A baseline that the grid does not hold is added to it.
    grid = {"topk": None, "bh": {"max_k": [16], "alpha": [0.3]}}
    settings = load_settings(merged({"model": model, "strategies": grid, "baseline": "native"}), study)
    names = [one.name for one in settings["configurations"]]
    assert names == ["4experts_topk_baseline", "16experts_bh_a030"]


def test_native_of_a_model_that_does_not_tell_is_a_fault(study):
    make_model(study / "models/silent", config=json.dumps({"num_experts": 64}))
    with pytest.raises(InputError, match=r"does not tell what native is; write the number"):
        load_settings(merged({"model": {"name": "models/silent"}, "baseline": "native"}), study)


def test_defaults_are_those_of_the_default_study(study):
    """Keys that config.yaml leaves out get the value that config.yaml shows."""
    full = merged()
    short = {
        "model": {"name": full["model"]["name"]},
        "datasets": {name: {"source": dataset["source"]} for name, dataset in full["datasets"].items()},
        "strategies": full["strategies"],
        "null_distribution": {"calibration": {"source": full["null_distribution"]["calibration"]["source"]}},
    }
    assert load_settings(short, study) == load_settings(full, study)


def test_null_leaves_out_a_data_set_and_a_strategy(study):
    config = merged({"datasets": {"wikitext": None}, "strategies": {"bh": None}})
    settings = load_settings(config, study)
    assert list(settings["datasets"]) == ["lambada", "hellaswag"]
    assert {configuration.strategy for configuration in settings["configurations"]} == {"topk"}


def test_config_stays_as_it_was(study):
    config = merged()
    before = copy.deepcopy(config)
    settings = load_settings(config, study)
    settings["strategies"]["bh"]["alpha"].append(0.9)
    assert config == before


def test_leftovers_of_a_hub_data_set_change_nothing_for_a_local_file(study):
    leftover = {"subset": "wikitext-2-raw-v1", "split": "test", "revision": "main"}
    config = merged({"datasets": {"wikitext": leftover}})
    assert load_settings(config, study) == load_settings(merged(), study)


def test_more_data_sets(study):
    """The file, and the command line that it shows."""
    more = read("configs/more_datasets.yaml")
    (study / more["datasets"]["arc_challenge"]["source"]).touch()
    command_line = parse_config(["results=results/documents", "datasets={wikitext: {protocol: documents}}"])
    settings = load_settings(merged(more, command_line), study, command_line)
    assert list(settings["datasets"]) == ["wikitext", "lambada", "hellaswag", "arc_challenge"]
    assert settings["datasets"]["wikitext"]["protocol"] == "documents"
    assert settings["datasets"]["wikitext"]["source"] == "resources/datasets/wikitext.jsonl"


def test_data_sets_under_names_of_ones_own(study):
    """Two of one kind, with that kind's keys and split; null leaves one out."""
    own = {
        "articles": {"task": "wikitext", "source": "owner/name", "protocol": "documents"},
        "endings": {"task": "hellaswag", "source": "owner/name"},
        "dropped": None,
    }
    settings = load_settings(merged({"datasets": own | {"lambada": {"task": "lambada"}}}), study)
    assert list(settings["datasets"]) == ["wikitext", "lambada", "hellaswag", "articles", "endings"]
    assert settings["datasets"]["articles"]["protocol"] == "documents"
    assert settings["datasets"]["wikitext"]["protocol"] == "rows"
    assert [settings["datasets"][name]["split"] for name in ("articles", "endings")] == ["test", "validation"]
    # A kind's own name says nothing new.
    assert settings["datasets"]["lambada"] == load_settings(merged(), study)["datasets"]["lambada"]
    assert [task_of(settings, name) for name in ("lambada", "endings")] == ["lambada", "hellaswag"]
    command_line = parse_config(["datasets={own: {task: lambada, source: owner/name, max_samples: 5}}"])
    settings = load_settings(merged(command_line), study, command_line)
    assert settings["datasets"]["own"]["max_samples"] == 5


def test_tasks_of_the_harness(study):
    datasets = {"exams": {"harness": "mmlu", "num_fewshot": 5}, "wikitext": None}
    settings = load_settings(merged({"datasets": datasets}), study)
    assert settings["datasets"]["exams"] == {
        "harness": "mmlu", "task": "harness", "include_path": None, "num_fewshot": 5, "metric": None,
        "max_samples": 200, "bootstrap_iters": 100_000,
    }  # fmt: skip


@pytest.mark.parametrize(("version", "words"), [(None, "is not installed"), ("0.4.8", "or newer, but 0.4.8")])
def test_tasks_of_the_harness_need_it(study, monkeypatch, version, words):
    def found(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("importlib.metadata.version", found)
    with pytest.raises(InputError, match=rf"datasets.mine.harness needs .*{words}.*pip install"):
        load_settings(merged({"datasets": task("mmlu")}), study)


def test_max_samples_of_one_data_set(study):
    settings = load_settings(merged({"datasets": {"lambada": {"max_samples": 5}}}), study)
    samples = {name: dataset["max_samples"] for name, dataset in settings["datasets"].items()}
    assert samples == {"wikitext": 200, "lambada": 5, "hellaswag": 200}


def test_hub_splits_default_to_the_scored_ones(study):
    hub = {"source": "owner/name"}
    names = ("wikitext", "lambada", "hellaswag", "arc_challenge")
    settings = load_settings(merged({"datasets": dict.fromkeys(names, hub)}), study)
    assert [settings["datasets"][name]["split"] for name in names] == ["test", "test", "validation", "test"]


def test_values_from_the_command_line_have_their_types(study):
    """Snakemake leaves what `--config` nests in braces as text."""
    command_line = parse_config(
        [
            "evaluation={max_samples: 10}",
            "strategies={bh: {alpha: [0.25, 1e-1]}, topk: {k: [8]}}",
            "datasets={wikitext: null, lambada: {revision: 1234567}}",
            "baseline=8experts_bh_a025",
        ]
    )
    assert command_line["evaluation"] == {"max_samples": "10"}
    config = merged(command_line)
    with pytest.raises(InputError, match=re.escape("strategies.bh.alpha[1] is the text '1e-1'")):
        load_settings(config, study, command_line)
    command_line["strategies"]["bh"]["alpha"][1] = config["strategies"]["bh"]["alpha"][1] = "0.1"
    settings = load_settings(config, study, command_line)
    assert settings["evaluation"]["max_samples"] == settings["datasets"]["lambada"]["max_samples"] == 10
    assert settings["strategies"]["bh"]["alpha"] == [0.25, 0.1]
    assert list(settings["datasets"]) == ["lambada", "hellaswag"]
    assert settings["baseline"] == "8experts_bh_a025"


def test_only_what_is_used_has_to_exist(study):
    missing = {"source": "missing.jsonl"}
    config = merged({"null_distribution": {"table": "table.npz", "calibration": missing}})
    assert load_settings(config, study)["null_distribution"]["table"] == "table.npz"
    config = merged({"null_distribution": {"calibration": missing}, "strategies": {"bh": None}})
    assert len(load_settings(config, study)["configurations"]) == 4


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("allenai/OLMoE-1B-7B-0924", False),
        ("hellaswag", False),
        ("resources/missing", True),
        ("./allenai/OLMoE-1B-7B-0924", True),
        ("/models/olmoe", True),
        ("missing/test.jsonl", True),
        ("missing/folder/model", True),
        ("missing/", True),
    ],
)
def test_paths_and_hub_names(study, name, local):
    assert is_local(name, study) is local


# What is refused


BH = {"strategies": {"bh": {"max_k": [8], "alpha": [0.3]}}}


def alpha(*values):
    return {"strategies": {"bh": {"alpha": list(values)}}}


def dataset(source, name="wikitext"):
    return {"datasets": {name: {"source": source}}}


WRONG = [
    # unknown keys
    ({"evaluations": {}}, "evaluations", "did you mean evaluation?"),
    ({"max_samples": 5}, "max_samples", "did you mean evaluation.max_samples?"),
    ({"evaluation": {"max_sample": 5}}, "evaluation.max_sample", "did you mean evaluation.max_samples?"),
    (
        {"strategies": {"bonferroni": {"max_k": [8]}}},
        "strategies.bonferroni",
        "may hold topk, bh, hc, .* and pooled",
    ),
    ({"strategies": {"bh": {"alphas": [0.3]}}}, "strategies.bh.alphas", "did you mean strategies.bh.alpha?"),
    (
        {"datasets": {"triviaqa": {"source": "owner/name"}}},
        "datasets.triviaqa",
        "hellaswag, arc_challenge, prompts and names of one's own with the key task or harness",
    ),
    (
        {"null_distribution": {"calibration": {"text": "x"}}},
        "null_distribution.calibration.text",
        "source, subset, split, revision, column",
    ),
    ({True: 1}, "True", "not a known key"),
    # wrong types and ranges
    (alpha(0.3, 0.4, 0), "strategies.bh.alpha[2]", "is 0, but must be a number above 0 and below 1"),
    (alpha(1), "strategies.bh.alpha[0]", "is 1,"),
    (alpha(1.5), "strategies.bh.alpha[0]", "is 1.5,"),
    (alpha(-0.1), "strategies.bh.alpha[0]", "is -0.1,"),
    (alpha("0.3"), "strategies.bh.alpha[0]", "is the text '0.3'", "write 0.3 without quotes"),
    (alpha("1e-3"), "strategies.bh.alpha[0]", "is the text '1e-3'", "write 0.001,"),
    (alpha("1.5"), "strategies.bh.alpha[0]", "is the text '1.5', but must be a number above 0 and below 1$"),
    (alpha("thirty"), "strategies.bh.alpha[0]", "is 'thirty', but must be a number above 0 and below 1$"),
    (alpha(float("nan")), "strategies.bh.alpha[0]", "is NaN,"),
    (alpha(True), "strategies.bh.alpha[0]", "is true,"),
    (alpha(None), "strategies.bh.alpha[0]", "is null,"),
    (alpha(), "strategies.bh.alpha", "is empty, but must be a list of one or more values"),
    ({"strategies": {"bh": {"alpha": 0.3}}}, "strategies.bh.alpha", "is 0.3, but must be a list"),
    (
        {"strategies": {"topk": {"k": [8, 0]}}},
        "strategies.topk.k[1]",
        "is 0, but must be an integer from 1 up",
    ),
    ({"strategies": {"topk": {"k": [8.0]}}}, "strategies.topk.k[0]", "is 8.0,", "write 8$"),
    ({"strategies": {"bh": {"max_k": [True]}}}, "strategies.bh.max_k[0]", "is true,"),
    ({"strategies": {"bh": {"max_k": [8, "a\nb"]}}}, "strategies.bh.max_k[1]", r"is 'a\\nb',"),
    (
        {"strategies": {"bh": 5}},
        "strategies.bh",
        "is 5, but must be a group of the keys max_k, alpha, null and weights or null",
    ),
    ({"routing": None}, "routing", "is null, but must be a group of the keys min_k,"),
    ({"routing": {"min_k": 0}}, "routing.min_k", "is 0,"),
    ({"routing": {"temperature": 0.0}}, "routing.temperature", "is 0.0, but must be a number above 0$"),
    ({"routing": {"temperature": float("inf")}}, "routing.temperature", "is inf,"),
    (
        {"routing": {"weights": "softmax"}},
        "routing.weights",
        "is 'softmax', but must be native, renormalized or uniform",
    ),
    ({"evaluation": {"max_samples": 0}}, "evaluation.max_samples", "is 0,"),
    ({"evaluation": {"second_pass_samples": -1}}, "evaluation.second_pass_samples", "is -1,"),
    (
        {"routing_log": {"json_samples": "first"}},
        "routing_log.json_samples",
        "is 'first', but must be an integer from 0 up or all",
    ),
    (
        {"routing_log": {"router_logits": -1}},
        "routing_log.router_logits",
        "is -1, but must be an integer from 0 up or all",
    ),
    ({"datasets": {"wikitext": {"max_samples": 0}}}, "datasets.wikitext.max_samples", "is 0,"),
    ({"seed": 0}, "seed", "is not a known key"),
    ({"results": ""}, "results", "is '',"),
    ({"results": "  "}, "results", "is '  ',"),
    (
        {"results": "results/{study}"},
        "results",
        "is 'results/{study}', but must be a folder name, not empty and without braces",
    ),
    ({"model": {"dtype": "fp16"}}, "model.dtype", "is 'fp16', but must be float32, bfloat16 or float16"),
    (
        {"model": {"gpus_per_experiment": 0}},
        "model.gpus_per_experiment",
        "is 0, but must be an integer from 1 up",
    ),
    ({"model": {"gpus_per_experiment": 1.5}}, "model.gpus_per_experiment", "is 1.5, but must be an integer"),
    (
        {"model": {"gpus_per_experiment": 2, "device": "cuda:1"}},
        "model.gpus_per_experiment",
        "is 2, but model.device is cuda:1, which is one GPU; set model.device to cuda or auto",
    ),
    ({"model": {"device": "cuda:"}}, "model.device", "is 'cuda:', but must be auto, cpu, cuda or cuda:N"),
    ({"model": {"revision": 1234567}}, "model.revision", "is 1234567,", "put it in quotes: '1234567'"),
    ({"model": {"revision": date(2024, 9, 1)}}, "model.revision", "is 2024-09-01,"),
    (
        {"null_distribution": {"kernel": "gausian"}},
        "null_distribution.kernel",
        "is 'gausian'",
        "tophat or linear",
    ),
    ({"null_distribution": {"bandwidth": 0}}, "null_distribution.bandwidth", "is 0,"),
    (
        {"null_distribution": {"bandwidth": "silvermann"}},
        "null_distribution.bandwidth",
        "is 'silvermann', but must be silverman, scott or a number above 0$",
    ),
    (
        {"null_distribution": {"bandwidth": "0.2"}},
        "null_distribution.bandwidth",
        "is the text '0.2'",
        "write 0.2",
    ),
    ({"null_distribution": {"trim": 3}}, "null_distribution.trim", "is 3, but must be 0, 2, 4 or 8"),
    ({"null_distribution": {"trim": 2.0}}, "null_distribution.trim", "is 2.0,"),
    ({"datasets": {"wikitxt": None}}, "datasets.wikitxt", "did you mean datasets.wikitext"),
    (
        {"datasets": own("mine", task="wiki")},
        "datasets.mine.task",
        "is 'wiki', but must be wikitext, lambada",
    ),
    ({"datasets": own("mine", task="prompts")}, "datasets.mine.task", "is 'prompts', but must be wikitext"),
    ({"datasets": own("lambada", task="wikitext")}, "datasets.lambada.task", "is 'wikitext', .* be lambada"),
    ({"datasets": own("mine", protocol="rows")}, "datasets.mine.protocol", "is not a known key"),
    ({"datasets": own("my-data")}, "datasets", "the name 'my-data', .* letters, digits and underscores"),
    ({"datasets": own("token")}, "datasets", "the name 'token', .* none of avg_task"),
    (
        {"datasets": own("mine") | own("mine_internal_routing")},
        "datasets.mine_internal_routing and datasets.mine",
        "would both have a file",
    ),
    ({"datasets": task("arc_esy")}, "datasets.mine.harness", "no task, group or tag .* mean arc_easy"),
    ({"datasets": task("gsm8k")}, "datasets.mine.harness", "is 'gsm8k', which generates text"),
    ({"datasets": task("bbh")}, "datasets.mine.harness", "is 'bbh', which holds bbh_cot_.*, which generates"),
    (
        {"datasets": task("mmlu", source="x.jsonl")},
        "datasets.mine.source",
        "is not a known key",
        "num_fewshot",
    ),
    (
        {"datasets": task("mmlu", num_fewshot=-1)},
        "datasets.mine.num_fewshot",
        "is -1, but must be an integer",
    ),
    ({"datasets": task("mmlu", include_path="notes.txt")}, "datasets.mine.include_path", "is no folder"),
    (
        {"datasets": {"hellaswag": {"harness": "hellaswag"}}},
        "datasets.hellaswag.harness",
        "another name, such as hellaswag_harness",
    ),
    ({"datasets": None}, "datasets", "is null,"),
    # checks across keys
    ({"datasets": dict.fromkeys(["wikitext", "lambada", "hellaswag"])}, "datasets", "is empty,"),
    (
        {"strategies": dict.fromkeys(["topk", "bh"])},
        "strategies",
        "is empty, but must hold .* topk, bh, hc, .* or pooled",
    ),
    (alpha(0.3, 0.4, 0.3), "strategies.bh.alpha[2]", "is 0.3, which the list already holds"),
    ({"strategies": {"topk": {"k": [8, 128]}}}, "strategies.topk.k[1]", "is 128,", "64 experts"),
    ({"strategies": {"bh": {"max_k": [65]}}}, "strategies.bh.max_k[0]", "is 65,", "64 experts"),
    ({"routing": {"min_k": 9}}, "routing.min_k", "is 9, but strategies.bh.max_k holds 8"),
    ({"baseline": "8experts_topk"}, "baseline", "is '8experts_topk'", "did you mean 8experts_topk_baseline?"),
    ({"baseline": "own"}, "baseline", "is 'own'", "8experts_bh_a030.*20 in all"),
    (
        {"evaluation": {"batch_tokens": 256}},
        "evaluation.batch_tokens",
        "is 256, but must be at least evaluation.max_length, 512",
    ),
    (
        {"null_distribution": {"calibration": {"source": "resources/datasets/lambada.jsonl"}}},
        "null_distribution.calibration.source",
        "is 'resources/datasets/lambada.jsonl', which datasets.lambada evaluates",
    ),
    (
        {"model": {"name": "models/small"}, **BH, "strategies": {"topk": {"k": [8]}, **BH["strategies"]}}
        | {"null_distribution": {"trim": 8}},
        "null_distribution.trim",
        "is 8,",
        "16 experts",
    ),
    # files and names
    (
        dataset("resources/datasets/wiki.jsonl"),
        "datasets.wikitext.source",
        "wiki.jsonl', which does not exist",
    ),
    (dataset("./wikitext"), "datasets.wikitext.source", "is './wikitext', which does not exist"),
    (
        dataset("resources/wikitext"),
        "datasets.wikitext.source",
        "not taken for a hub name because 'resources'",
    ),
    (dataset("resources"), "datasets.wikitext.source", "is a folder", ".jsonl, .json or .parquet"),
    (dataset("notes.txt"), "datasets.wikitext.source", "is 'notes.txt', which is a file of another kind"),
    (dataset("two words"), "datasets.wikitext.source", "is 'two words', which is neither"),
    (dataset("text"), "datasets.wikitext.source", "is 'text', which is neither"),
    (dataset("json"), "datasets.wikitext.source", "is 'json', which is neither"),
    (dataset("owner--x/name"), "datasets.wikitext.source", "is 'owner--x/name', which is neither"),
    (
        dataset("Salesforce/wikitext"),
        "datasets.wikitext.subset",
        "is null, but must be a subset of Salesforce/wikitext",
        "such as wikitext-2-raw-v1$",
    ),
    (dataset("allenai/ai2_arc", "arc_challenge"), "datasets.arc_challenge.subset", "ARC-Challenge$"),
    (
        {"null_distribution": {"calibration": {"source": "Salesforce/wikitext"}}},
        "null_distribution.calibration.subset",
        "is null,",
    ),
    ({"datasets": {"arc_challenge": {}}}, "datasets.arc_challenge.source", "is missing, but must be text"),
    (
        {"null_distribution": {"calibration": {"source": "missing.parquet"}}},
        "null_distribution.calibration.source",
        "is 'missing.parquet'",
    ),
    ({"model": {"name": "resources/mdel"}}, "model.name", "is 'resources/mdel'", "not taken for a hub name"),
    ({"model": {"name": "/missing/model"}}, "model.name", "is '/missing/model', which does not exist"),
    ({"model": {"name": "notes.txt"}}, "model.name", "is 'notes.txt', which is a file"),
    ({"model": {"name": "models/without_config"}}, "model.name", "without config.json"),
    ({"model": {"name": "models/without_weights"}}, "model.name", r"holds no \*.safetensors"),
    (
        {"model": {"name": "models/pickled"}},
        "model.name",
        "pytorch_model.bin",
        "safetensors only",
        "save_pretrained",
    ),
    ({"model": {"name": "models/broken"}}, "model.name", "models/broken/config.json must be JSON"),
    ({"null_distribution": {"table": "null.pkl"}}, "null_distribution.table", "is 'null.pkl'", "numpy.savez"),
    (
        {"null_distribution": {"table": "null.csv"}},
        "null_distribution.table",
        "is 'null.csv'",
        "must be a .npz",
    ),
    (
        {"null_distribution": {"table": "null.npz"}},
        "null_distribution.table",
        "is 'null.npz'",
        "does not exist",
    ),
    (
        {"null_distribution": {"table": "other.npz"}},
        "null_distribution.table",
        "whose arrays are grid",
        "x and cdf",
    ),
    ({"results": "a_file"}, "results", "a_file is a file", "must be a folder"),
    ({"results": "a_file/below"}, "results", "a_file is a file", "must be a folder"),
]


@pytest.mark.parametrize(("change", "key", "patterns"), [(change, key, rest) for change, key, *rest in WRONG])
def test_wrong_config_gets_one_sentence(study, change, key, patterns):
    with pytest.raises(InputError) as error:
        load_settings(merged(change), study)
    message = str(error.value)
    assert message.startswith(key) and not message.startswith((f"{key}.", f"{key}["))
    assert "\n" not in message and len(message) < 400
    for pattern in patterns:
        assert re.search(pattern.replace("?", r"\?"), message), message


def test_a_missing_group_is_named(study):
    config = merged()
    del config["null_distribution"]
    with pytest.raises(
        InputError, match=r"^null_distribution is missing, but must be a group of the keys table"
    ):
        load_settings(config, study)


def test_a_misspelt_key_is_named_before_the_one_it_leaves_missing(study):
    config = merged()
    config["model"] = {"nam": "resources/embedded_model"}
    with pytest.raises(InputError, match=r"^model\.nam is not a known key \(did you mean model\.name\?\)"):
        load_settings(config, study)


def test_a_long_value_is_shortened(study):
    with pytest.raises(InputError) as error:
        load_settings(merged({"execution": "x" * 10_000}), study)
    assert "execution is 'xxx" in str(error.value) and len(str(error.value)) < 200


def test_hub_model_in_the_cache_is_checked(study, no_hub_cache):
    """A hub model's number of experts is known before any job where its config.json has been downloaded."""
    config = merged({"model": {"name": "owner/small-moe"}})
    assert load_settings(config, study)["model"]["local"] is False
    repository = no_hub_cache / "models--owner--small-moe"
    make_model(repository / "snapshots/0123abc", num_experts=32)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abc")
    with pytest.raises(
        InputError, match=r"^strategies\.topk\.k\[3\] is 64, but the model owner/small-moe has 32"
    ):
        load_settings(config, study)


@pytest.mark.parametrize("num_experts", [64, 65, 128])
def test_a_model_with_enough_experts_passes(study, num_experts):
    check_against_model(load_settings(merged(), study), num_experts)


@pytest.mark.parametrize(("num_experts", "allowed"), [(17, True), (16, False)])
def test_trim_leaves_some_logits(study, num_experts, allowed):
    settings = load_settings(
        merged({"strategies": {"topk": {"k": [8]}, "bh": {"max_k": [8]}}, "null_distribution": {"trim": 8}}),
        study,
    )
    if allowed:
        check_against_model(settings, num_experts)
    else:
        with pytest.raises(InputError, match=r"^null_distribution\.trim is 8"):
            check_against_model(settings, num_experts)


# Null distributions by name


def bh_under(*nulls, **null_distributions):
    """A study of BH under null distributions, of which these are made by name."""
    return {
        "strategies": {"bh": {"max_k": [8], "alpha": [0.3], "null": list(nulls)}},
        "null_distributions": null_distributions,
    }


def test_a_null_distribution_inherits_what_it_leaves_out(study):
    shared = {"null_distribution": {"kernel": "linear", "trim": 2}}
    config = merged(shared, bh_under("default", "centred", centred={"center": "mean"}))
    settings = load_settings(config, study)
    variants = null_distributions(settings)
    default = {"table": None, "kernel": "linear", "bandwidth": "silverman", "trim": 2, "center": "none"}
    assert variants == {"default": default, "centred": default | {"center": "mean"}}
    names = [one.name for one in settings["configurations"] if one.strategy == "bh"]
    assert names == ["8experts_bh_a030", "8experts_bh_a030_ncentred"]


def test_null_as_a_key_may_stand_without_quotes(study):
    """YAML reads the word as no value."""
    text = "strategies: {bh: {null: [default, centred]}}\nnull_distributions: {centred: {center: mean}}"
    config = merged(yaml.safe_load(text))
    assert None in config["strategies"]["bh"]
    assert len(load_settings(config, study)["configurations"]) == 4 + 2 * 16
    command_line = parse_config(
        ["strategies={bh: {null: [centred]}}", "null_distributions={centred: {center: mean}}"]
    )
    settings = load_settings(merged(command_line), study, command_line)
    assert {one.null for one in settings["configurations"] if one.strategy == "bh"} == {"centred"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            bh_under("default", "centred", other={}),
            r"bh\.null\[1\] is 'centred', which is not in null_distributions; there are default and "
            "other",
        ),
        (
            bh_under("x", x={"center": "median"}),
            r"null_distributions\.x\.center is 'median', .* none or mean",
        ),
        (bh_under("x", x={"kernel": "box"}), r"null_distributions\.x\.kernel is 'box'"),
        (bh_under("x", x={"calibration": {}}), r"null_distributions\.x\.calibration is not a known key"),
        (bh_under("x", x={"table": "null.npz"}), r"null_distributions\.x\.table is 'null\.npz'"),
        (bh_under("default", default={}), r"null_distributions.*default.*other than default"),
        (bh_under("a_b", a_b={}), r"null_distributions.*a_b.*letters and digits"),
        ({"strategies": {"topk": {"k": [8], "weights": ["softmax"]}}}, r"strategies\.topk\.weights\[0\]"),
        (
            {"strategies": {"topk": {"k": [8], "null": ["default"]}}},
            r"strategies\.topk\.null is not a known key",
        ),
    ],
)
def test_a_wrong_null_distribution_is_one_sentence(study, change, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        load_settings(merged(change), study)
    assert "\n" not in str(error.value)


def test_a_null_distribution_that_nothing_uses_needs_no_table(study):
    settings = load_settings(merged({"null_distributions": {"unused": {"table": "nowhere.npz"}}}), study)
    assert "unused" in null_distributions(settings)


def test_trim_of_a_named_null_distribution_is_checked(study):
    settings = load_settings(
        merged(bh_under("x", x={"trim": 8}), {"strategies": {"topk": {"k": [8]}}}), study
    )
    with pytest.raises(InputError, match=r"^null_distributions\.x\.trim is 8"):
        check_against_model(settings, 16)


def test_the_study_of_several_null_distributions(study):
    settings = load_settings(merged(read("configs/null_distributions.yaml")), study)
    bh = [one for one in settings["configurations"] if one.strategy == "bh"]
    assert [one.null for one in bh[:6]] == list(null_distributions(settings))
    assert len(settings["configurations"]) == 4 + 12
    assert settings["baseline"] in {one.name for one in settings["configurations"]}


# The schema and the config files


def nodes(node, path="config"):
    node = resolved(node)
    yield path, node
    for key, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}")


def test_schema_describes_every_key():
    jsonschema.Draft202012Validator.check_schema(schema())
    for path, node in nodes(schema()):
        assert node.get("description", "").strip(), path
        if "properties" in node and path != "config.datasets":  # which may have names of one's own
            assert node["additionalProperties"] is False, path
        if "default" in node:
            jsonschema.validate(node["default"], node | {"$defs": schema()["$defs"]})


def test_config_file_shows_every_key():
    """The schema and config.yaml hold the same keys; wikitext stands for all data sets.

    configs/rivals.yaml shows the keys of all strategies.
    """

    def keys(mapping, prefix=""):
        for key, value in mapping.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    others = ("datasets.lambada", "datasets.hellaswag", "datasets.arc_challenge", "datasets.prompts")
    # A list in config.yaml would stand against routing.weights of a second config file; a comment says so.
    lists = re.compile(r"strategies\.\w+\.(weights|null)")
    shown = {key for key in keys(read("config.yaml")) if not key.startswith(others)}
    shown |= set(keys(read("configs/rivals.yaml")))
    documented = {
        key for key in dotted_keys(schema()) if not (key.startswith(others) or lists.fullmatch(key))
    }
    assert shown == documented


@pytest.mark.parametrize("change", [{}, {"evaluation": {"max_samples": 0}}, {"unknown": 1}, alpha(1.5)])
def test_snakemake_and_editors_read_the_schema_alike(study, change):
    """The file is plain JSON Schema: any validator gives the verdict that load_settings gives."""
    config = merged(change)
    valid = jsonschema.Draft202012Validator(schema()).is_valid(config)
    assert valid is (change == {})
    if valid:
        load_settings(config, study)
    else:
        with pytest.raises(InputError):
            load_settings(config, study)


def test_parsing_the_workflow_stays_light():
    """The modules are imported each time Snakemake parses the workflow, in every job."""
    code = (
        "import sys, adaptive_routing.settings.load\n"
        "heavy = {'torch', 'pandas', 'datasets', 'transformers', 'numpy', 'scipy', 'huggingface_hub'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow_scripts")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


# The schemas of the log files


HEAD = {
    "config": "8experts_bh_a030",
    "strategy": "bh",
    "k_or_max_k": 8,
    "alpha": 0.3,
    **PLAIN,
    "num_experts": 64,
    "dataset": "lambada",
}
SUMMARY = HEAD | {
    "metrics": {"lambada_accuracy": 0.5, "lambada_accuracy_stderr": None, "lambada_perplexity": 9.0},
    "summary": {
        "total_samples": 1,
        "total_tokens": 7,
        "total_sequences": 1,
        "predicted_tokens": 1,
        "requested_samples": 1,
        "truncated_samples": 0,
    },
    "samples": [
        {
            "sample_id": "lambada_0",
            "loss": 0.7,
            "num_tokens": 7,
            "num_predicted_tokens": 1,
            "truncated": False,
            "correct": True,
        }
    ],
    "routing": {"min_k": 1, "max_k": 8, "temperature": 1.0, "weights": "native", "native_top_k": 8},
    "provenance": {
        "model": {"name": "model", "fingerprint": "0" * 64},
        "dtype": "float32",
        "device": "cpu",
        "settings": {},
    },
    "timings": {"forward_seconds": 0.1, "single_sample": {"seconds": [0.1], "tokens": [7]}},
}
INTERNAL_ROUTING = HEAD | {
    "samples": [
        {
            "sample_id": "lambada_0",
            "text_preview": "Once",
            "loss": 0.7,
            "num_tokens": 2,
            "layers": [
                {
                    "layer": 0,
                    "router_logits_shape": [2, 64],
                    "selected_experts": [[3, 1], [7]],
                    "expert_weights": [0.2, 0.1, 0.4],
                    "expert_counts": [2, 1],
                    "router_logits_sample": [[0.1] * 64] * 2,
                    "p_values_sample": [[0.5] * 64] * 2,
                    "layer_stats": {
                        "avg_experts": 1.5,
                        "std_experts": 0.5,
                        "ceiling_hits": 0,
                        "floor_hits": 1,
                    },
                }
            ],
        }
    ],
    "aggregate_stats": {
        "avg_experts": [1.5],
        "std_experts": [0.5],
        "expert_usage": [[0, 1, 0, 1, 0, 0, 0, 1]],
        "expert_count_histogram": [[0, 1, 1]],
    },
}


def faults(log, name):
    """Return the paths that the log's schema finds wrong."""
    log_schema = json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(log_schema)
    return [error.json_path for error in jsonschema.Draft202012Validator(log_schema).iter_errors(log)]


def changed(log, path, value):
    """Copy `log` with the value at `path` replaced."""
    log = copy.deepcopy(log)
    *parents, last = path
    node = log
    for part in parents:
        node = node[part]
    node[last] = value
    return log


LAYER = ("samples", 0, "layers", 0)


@pytest.mark.parametrize(
    ("name", "log", "path", "value", "where"),
    [
        ("summary", SUMMARY, ("alpha",), None, "$.alpha"),
        ("summary", SUMMARY, ("strategy",), "topk", "$.alpha"),
        ("summary", SUMMARY, ("dataset",), "hellaswag", "$.samples[0]"),
        ("summary", SUMMARY, ("metrics", "lambada_accuracy"), "0.5", "$.metrics.lambada_accuracy"),
        ("summary", SUMMARY, ("samples", 0, "num_tokens"), 0, "$.samples[0].num_tokens"),
        (
            "internal_routing",
            INTERNAL_ROUTING,
            ("samples", 0, "text_preview"),
            "x" * 101,
            "$.samples[0].text_preview",
        ),
        (
            "internal_routing",
            INTERNAL_ROUTING,
            (*LAYER, "p_values_sample"),
            [[1.5]],
            "$.samples[0].layers[0].p_values_sample[0][0]",
        ),
        (
            "internal_routing",
            INTERNAL_ROUTING,
            (*LAYER, "selected_experts"),
            [3],
            "$.samples[0].layers[0].selected_experts[0]",
        ),
    ],
)
def test_log_schemas(name, log, path, value, where):
    assert faults(log, name) == []
    assert where in faults(changed(log, path, value), name)
