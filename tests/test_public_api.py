"""The names of `adaptive_routing`: instant to import, and enough for the examples of the README."""

import json
import re
import subprocess
import sys

import adaptive_routing
import numpy as np
import pytest
import torch
from adaptive_routing import BH, NullDistribution, RouterPatcher, RoutingLog, SampleLogger, TopK
from adaptive_routing.data.rows import load_rows
from adaptive_routing.data.samples import prepare_samples, prepared_to_json
from adaptive_routing.evaluation.experiment import ExperimentFiles, run_experiment
from adaptive_routing.settings.configurations import Configuration
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import read_json, write_json
from conftest import ROOT, tiny_olmoe

CONFIGURATION = Configuration("16experts_bh_a030", "bh", 16, {"max_k": 16, "alpha": 0.3})
ROUTING = {"min_k": 1, "temperature": 1.0, "weights": "native"}


@pytest.fixture(scope="module")
def results(tmp_path_factory, embedded):
    """A folder in which the README's examples find the embedded model and the results that they read."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "resources").symlink_to(ROOT / "resources")
    embedded.null_distribution.save(folder / "results/calibration/null_distribution.safetensors")
    rows = load_rows(str(ROOT / "resources/datasets/lambada.jsonl"))
    samples = prepare_samples("lambada", rows, embedded.tokenizer, 5, None, 512)
    write_json(folder / "results/datasets/lambada.json", prepared_to_json("lambada", samples, {}))
    stem = f"{folder}/results/logs/16experts_bh_a030_lambada"
    suffixes = (".json", "_internal_routing.json", "_internal_routing.safetensors")
    strategy = BH(alpha=0.3, max_k=16, null_distribution=embedded.null_distribution)
    run_experiment(
        embedded.loaded, CONFIGURATION, strategy, "lambada", samples, 1024, 2,
        {
            "routing": ROUTING, "dataset": {"max_samples": 5},
            "null_distribution": embedded.null_distribution.metadata,
        },
        ExperimentFiles(*(stem + suffix for suffix in suffixes)),
    )  # fmt: skip
    return folder


def python(code, folder):
    """What a fresh Python prints that runs some code in a folder."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT / 'workflow_scripts')!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing(tmp_path):
    code = "import adaptive_routing\nprint(*sys.modules)\nprint(*dir(adaptive_routing))"
    modules, names = python(code, tmp_path).splitlines()
    loaded = {name.partition(".")[0] for name in modules.split()}
    assert not {"torch", "numpy", "transformers", "safetensors", "orjson"} & loaded
    assert [name for name in modules.split() if name.startswith("adaptive_routing.")] == []
    assert set(adaptive_routing.__all__) <= set(names.split())


def test_every_name_can_be_imported_and_no_other():
    for name in adaptive_routing.__all__:
        assert getattr(adaptive_routing, name) is getattr(adaptive_routing, name)
    with pytest.raises(AttributeError, match="no attribute 'HigherCritics'"):
        adaptive_routing.HigherCritics  # noqa: B018


def test_the_examples_of_the_readme_run(results):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    shown = "print(logger.get_internal_logs()[0]['layers'][0]['expert_counts'])"
    *lines, counts = python("\n".join([*blocks, shown]), results).splitlines()
    samples = read_json(results / "results/logs/16experts_bh_a030_lambada_internal_routing.json")["samples"]
    assert len(lines) == len(samples) == 5
    for line, sample in zip(lines, samples, strict=True):
        assert line.startswith(f"{sample['text_preview']} {sample['loss']} ")
    assert len(json.loads(counts)) > 20 and set(json.loads(counts)) <= set(range(1, 17))


def test_strategies_need_no_more_than_their_own_parameters(embedded):
    model = embedded.loaded.model
    inputs = embedded.tokenizer("The key was in the", return_tensors="pt")
    unpatched = model(**inputs).logits
    with RouterPatcher(model, TopK(k=8)):
        assert torch.equal(model(**inputs).logits, unpatched)
    strategy = BH(alpha=0.3, max_k=16, null_distribution=embedded.null_distribution)
    assert strategy.min_experts == 1 and strategy.weighting.temperature == 1.0
    with RouterPatcher(model, strategy) as patcher, SampleLogger(patcher) as logger:
        logger.start_sample_logging("one", "The key was in the")
        assert not torch.equal(model(**inputs).logits, unpatched)
        logger.end_sample_logging()
    assert logger.get_aggregate_stats()["num_tokens"] == inputs["input_ids"].shape[1]


def test_a_null_distribution_fitted_to_a_model_is_the_workflows_own(embedded):
    """That of the fixture is made as the workflow makes it: whole batches without padding."""
    texts = [row["text"] for row in load_rows(str(ROOT / "resources/datasets/calibration.jsonl"))]
    null = NullDistribution.fit(
        embedded.loaded.model, embedded.tokenizer, iter(texts), max_tokens=400, max_length=128
    )
    own = embedded.null_distribution
    assert null.metadata["num_values"] == own.metadata["num_values"]
    assert null.metadata["calibration"]["tokens"] == 400
    logits = torch.linspace(-3, 3, 1001)
    for layer in range(own.num_layers):
        np.testing.assert_allclose(null.p_values(logits, layer), own.p_values(logits, layer), atol=1e-4)


def test_a_null_distribution_needs_text_and_a_mixture_of_experts(embedded):
    with pytest.raises(InputError, match="texts holds no text"):
        NullDistribution.fit(tiny_olmoe(), embedded.tokenizer, [])


def test_a_log_opens_by_either_file_and_gives_its_samples(results, embedded):
    stem = results / "results/logs/16experts_bh_a030_lambada_internal_routing"
    entries = read_json(f"{stem}.json")["samples"]
    rows = load_rows(str(ROOT / "resources/datasets/lambada.jsonl"))
    texts = [row["text"] for row, _ in zip(rows, entries, strict=False)]
    for suffix in (".json", ".safetensors"):
        with RoutingLog(f"{stem}{suffix}") as log:
            assert len(list(log)) == len(log) == len(entries)
            for sample, entry in zip(log, entries, strict=True):
                assert sample.sample_id == entry["sample_id"] and sample.loss == entry["loss"]
                assert sample.text_preview == entry["text_preview"]
                assert sample.text == texts[sample.index]
                assert embedded.tokenizer.decode(sample.token_ids) in sample.text
                assert sample.sequence_lengths == [entry["num_tokens"]]
                assert len(sample.token_ids) == entry["num_tokens"]
                for layer, logged in enumerate(entry["layers"]):
                    selected = [row.tolist() for row in sample.selected_experts(layer)]
                    assert selected == logged["selected_experts"]
                    weights = sample.expert_weights(layer)
                    applied = [weights[t][row] for t, row in enumerate(selected)]
                    assert np.array_equal(np.concatenate(applied), np.float32(logged["expert_weights"]))
                    p_values = sample.p_values(layer)
                    assert np.allclose(p_values[:5], logged["p_values_sample"], rtol=0, atol=1e-12)
                    logits = sample.router_logits(layer)
                    assert np.array_equal(logits[:5], np.float32(logged["router_logits_sample"]))
            assert log.num_layers == len(entries[0]["layers"])
