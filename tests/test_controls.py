"""Controls: as many experts as their configuration, without what makes it adaptive."""

import json

import numpy as np
import pytest
import torch
from adaptive_routing.evaluation.scoring import score_samples
from adaptive_routing.model.patching import RouterPatcher
from adaptive_routing.routing import control_counts, make_control
from adaptive_routing.routing.base import order_by_logit
from adaptive_routing.routing_log.reader import RoutingLog
from adaptive_routing.settings.configurations import CONTROLS, Configuration
from conftest import tiny_olmoe
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from study_folder import StudyFolder
from test_bad_inputs import LENGTHS, make_samples

COUNTS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(1, 64))


@given(COUNTS, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_sums_are_the_configurations_own(counts, seed):
    totals = counts.sum(axis=0, dtype=np.int64)
    fixed, layerwise, shuffled = (control_counts(counts, kind, seed) for kind in CONTROLS)
    for control in (fixed, layerwise, shuffled):
        assert control.sum() == totals.sum()
        assert counts.min() <= control.min() and control.max() <= counts.max()
    assert (layerwise.sum(axis=0) == totals).all()
    assert (np.sort(shuffled, axis=0) == np.sort(counts, axis=0)).all()
    # A mean is met by its floor and its ceiling alone.
    assert (np.ptp(layerwise, axis=0) <= 1).all()
    assert (np.ptp(fixed, axis=0) <= 1).all() and np.ptp(fixed.sum(axis=0)) <= 1


def test_draws_depend_on_the_seed_and_on_the_layer():
    counts = np.tile(np.arange(1, 41)[:, None], (1, 3))
    for kind in CONTROLS:
        again, other = (control_counts(counts, kind, seed) for seed in (0, 1))
        assert (control_counts(counts, kind, 0) == again).all()
        assert (other != again).any()
        assert (again[:, 0] != again[:, 1]).any()
    assert (control_counts(counts, "shuffled", 0) != counts).mean() > 0.8
    with pytest.raises(ValueError, match="allowed are fixed, layerwise and shuffled"):
        control_counts(counts, "none", 0)


@pytest.mark.parametrize(("batch_tokens", "workers"), [(64, 1), (40, 2), (13, 3)])
def test_every_token_gets_its_count_however_it_is_batched(batch_tokens, workers):
    model, samples = tiny_olmoe(), make_samples(LENGTHS)
    num_layers, num_experts = model.config.num_hidden_layers, model.config.num_experts
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, (sum(LENGTHS), num_layers))
    strategy = make_control(
        Configuration("c_fixed", "control", 4, {"max_k": 4, "control": "fixed"}, "c"),
        {"min_k": 1, "temperature": 1.0, "weights": "native"},
        counts,
    )
    starts = np.cumsum([0, *(one.num_inputs for one in samples)])
    seen = 0
    with RouterPatcher(model, strategy) as patcher:
        for batch in score_samples(model, patcher, samples, batch_tokens, 0, workers):
            rows = np.concatenate([np.arange(starts[s.index], starts[s.index + 1]) for s in batch.samples])
            assert (batch.routing.counts.numpy() == counts[rows]).all()
            seen += len(rows)
            for layer in range(num_layers):
                order = order_by_logit(batch.routing.router_logits[:, layer])[1]
                slots = torch.arange(4)
                expected = torch.where(
                    slots < torch.from_numpy(counts[rows, layer])[:, None], order[:, :4], num_experts
                )
                assert torch.equal(batch.routing.experts[:, layer].long(), expected)
    assert seen == sum(LENGTHS)


def test_tokens_that_were_not_numbered_are_refused():
    model = tiny_olmoe()
    configuration = Configuration("c_fixed", "control", 4, {"max_k": 4, "control": "fixed"}, "c")
    routing = {"min_k": 1, "temperature": 1.0, "weights": "native"}
    counts = np.ones((5, model.config.num_hidden_layers), np.int64)
    patcher = RouterPatcher(model, make_control(configuration, routing, counts))
    with patcher, pytest.raises(RuntimeError, match=r"numbered tokens without padding; see RouterPatcher\.e"):
        model(input_ids=torch.ones(1, 5, dtype=torch.long))


BH, CENTRED = "16experts_bh_a030", "16experts_bh_a030_ncentred"
CASES = [(BH, "wikitext"), (BH, "lambada"), (CENTRED, "lambada")]


def metrics_of(*cases, kinds=("", *(f"_{kind}" for kind in CONTROLS))):
    """The files of the metrics of configurations on data sets, with those of their controls."""
    return [f"results/metrics/{config}{kind}_{dataset}.json" for config, dataset in cases for kind in kinds]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of BH with two null distributions, with all controls, as far as the cases go."""
    study = StudyFolder(
        tmp_path_factory.mktemp("controls") / "study",
        strategies={
            "topk": {"k": [8]},
            "bh": {"max_k": [16], "alpha": [0.3], "null": ["default", "centred"]},
        },
        null_distributions={"centred": {"center": "mean"}},
        controls={"of": ["bh"]},
        datasets={"hellaswag": None},
    )
    study.snakemake(*metrics_of(*CASES))
    return study


def counts_of(study, config, dataset):
    log = RoutingLog(study.results("logs", f"{config}_{dataset}_internal_routing.json"))
    return log.tensors.read("expert_counts").astype(int), log.head


@pytest.mark.parametrize(("config", "dataset"), CASES)
def test_a_study_runs_controls_of_the_same_compute(study, config, dataset):
    counts, head = counts_of(study, config, dataset)
    assert head["control"] is None and head["null"] == ("centred" if config == CENTRED else "default")
    for kind in CONTROLS:
        own, head = counts_of(study, f"{config}_{kind}", dataset)
        assert (own == control_counts(counts, kind, 0)).all()
        assert (head["strategy"], head["control"], head["control_of"]) == ("control", kind, config)
        assert head["k_or_max_k"] == 16 and head["alpha"] is head["null"] is None
        metrics = json.loads(study.results("metrics", f"{config}_{kind}_{dataset}.json").read_text())[
            "metrics"
        ]
        assert metrics["avg_experts"] == pytest.approx(counts.mean(), rel=1e-12)


def test_controls_follow_their_configuration_and_their_seed(study):
    files, controls = metrics_of(*CASES), len(CONTROLS)
    plan = study.plan(*files, "--forcerun", f"results/logs/{BH}_lambada.json")
    assert (plan["run_experiment"], plan["compute_metrics"]) == (1 + controls, 1 + controls)
    study.configure(controls={"of": ["bh"], "seed": 1})
    assert study.plan(*files)["run_experiment"] == len(CASES) * controls
    study.configure(controls={"of": [BH], "seed": 0, "kinds": ["fixed"]})
    assert study.plan(*metrics_of(*CASES[:2], kinds=("", "_fixed"))) == {}
    # A setting of one null distribution concerns what uses it, and the controls of that.
    study.configure(
        controls={"of": ["bh"], "kinds": list(CONTROLS)}, null_distributions={"centred": {"trim": 2}}
    )
    assert study.plan(*files) == {
        "fit_null_distribution": 1, "run_experiment": 1 + controls, "compute_metrics": 1 + controls,
    }  # fmt: skip
    study.configure(null_distributions={"centred": {"center": "mean"}})
    assert study.plan(*files) == {}


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (
            "8experts_topk_baseline",
            "controls.of[0] is '8experts_topk_baseline', which gives every token the same number",
        ),
        ("topk", "controls.of[0] is 'topk', which gives every token the same number of experts"),
        (
            "16experts_bh_a03",
            "which is not in the grid (did you mean 16experts_bh_a030?); it must be all, an adaptive",
        ),
    ],
)
def test_only_adaptive_configurations_have_controls(tmp_path, of, sentence):
    study = StudyFolder(tmp_path / "study", controls={"of": [of]})
    done = study.ask("--dry-run")
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
