"""Tasks of lm-evaluation-harness by name, scored by its `HFLM` and by us: every metric and standard error."""

import copy

import pytest
import torch
from adaptive_routing.data.tasks import get_task
from adaptive_routing.evaluation.batches import make_batches
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.model.load import LoadedModel
from adaptive_routing.model.packing import packed_attention
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.harness_tasks import find_task
from conftest import ROOT
from harness_folder import GROUPS, TASKS, make_folder

HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
simple_evaluate = pytest.importorskip("lm_eval").simple_evaluate
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager

from adaptive_routing.data import harness  # noqa: E402, only with the harness

SCORED = [name for name in TASKS if name != "own_stories"]
LENGTH = 128  # of the model, so that articles have several windows
BOOTSTRAP = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("harness") / "tasks")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what takes seconds and decides nothing: what the machine is, processes for the bootstrap."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def settings(folder, name, **others):
    """A data set's settings as they stand in its prepared file."""
    plain = {"include_path": str(folder), "num_fewshot": None, "metric": None, "max_samples": 100}
    return {"harness": name, "bootstrap_iters": BOOTSTRAP} | plain | others


def outcomes_of(model, prepared):
    """Our side: every sample's outcome, as a summary has it."""
    task, outcomes = get_task("harness"), [None] * len(prepared)
    with packed_attention(model):
        for batch in make_batches(prepared, 2048):
            found = iter(score_batch(model, [one for i in batch for one in prepared[i].sequences]).scores)
            for i in batch:
                own = [next(found) for _ in prepared[i].sequences]
                predicted = sum(score.num_predicted_tokens for score in own)
                attributes = prepared[i].sample.attributes | {"num_predicted_tokens": predicted}
                outcomes[i] = attributes | task.outcome(prepared[i].sample, own)
    return outcomes


def of_harness(embedded, folder, name, **options):
    """Their side: the results of `simple_evaluate` with `HFLM`."""
    lm = HFLM(
        pretrained=embedded.loaded.model, tokenizer=embedded.tokenizer, batch_size=8, max_length=LENGTH
    )
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=BOOTSTRAP, **options)


def assert_alike(ours, theirs):
    """Every metric and standard error of every task and group, by name and filter."""
    assert ours.keys() == theirs.keys()
    for task, metrics in theirs.items():
        assert ours[task].keys() == metrics.keys()
        for name, value in metrics.items():
            if isinstance(value, float):
                assert ours[task][name] == pytest.approx(value, rel=1e-5, abs=1e-7), (task, name)
            else:
                assert ours[task][name] == (None if value == "N/A" else value), (task, name)


@pytest.fixture(scope="module")
def everything(embedded, folder):
    return harness.prepare_harness_task("all", settings(folder, "own_everything"), embedded.tokenizer, LENGTH)


def test_metrics_and_errors_are_those_of_the_harness(embedded, folder, everything):
    """Over all tasks of the folder at once, groups included."""
    outcomes = outcomes_of(embedded.loaded.model, everything)
    ours = harness.harness_scores("all", settings(folder, "own_everything"), everything, outcomes)
    theirs = of_harness(embedded, folder, "own_everything")
    assert len(SCORED) >= 12 and set(SCORED) <= set(ours["results"])
    for part in ("results", "groups"):
        assert_alike(ours[part], theirs[part])
    assert ours["n-samples"] == theirs["n-samples"]
    assert ours["results"]["own_shots"]["acc_stderr,none"] > 0
    assert ours["groups"]["own_weighted"]["acc,none"] == pytest.approx(
        (9 * ours["results"]["own_large"]["acc,none"] + 4 * ours["results"]["own_small"]["acc,none"]) / 13
    )
    assert ours["results"]["own_articles"]["word_perplexity,none"] > 1
    assert any(len(one.sequences) > 1 for one in everything if one.sample.attributes["task"] == "own_articles")
