"""Tasks of lm-evaluation-harness by name, scored by its `HFLM` and by us: every metric and standard error."""

import pytest
from adaptive_routing.data.samples import prepared_to_json
from adaptive_routing.data.tasks import get_task
from adaptive_routing.evaluation.batches import make_batches
from adaptive_routing.evaluation.scoring import score_batch
from adaptive_routing.model.packing import packed_attention
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.harness_tasks import find_task
from adaptive_routing.system.json_files import read_json, write_json
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
        pretrained=embedded.loaded.model, tokenizer=embedded.tokenizer, batch_size=64, max_length=LENGTH
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


def prepared_file(path, embedded, folder, name, **others):
    """A task's samples and the file of them."""
    of_task = settings(folder, name, **others)
    prepared = harness.prepare_harness_task("mine", of_task, embedded.tokenizer, LENGTH)
    write_json(path, prepared_to_json("mine", prepared, of_task))
    return prepared


def by_task(prepared, name):
    return [one for one in prepared if one.sample.attributes["task"] == name]


@pytest.fixture(scope="module")
def everything(embedded, folder, tmp_path_factory):
    """The samples of all tasks, the file of them, and their outcomes."""
    path = tmp_path_factory.mktemp("prepared") / "mine.json"
    prepared = prepared_file(path, embedded, folder, "own_everything")
    return prepared, path, outcomes_of(embedded.loaded.model, prepared)


def test_metrics_and_errors_are_those_of_the_harness(embedded, folder, everything):
    """Over all tasks of the folder at once, groups included."""
    prepared, path, outcomes = everything
    ours = harness.harness_scores("mine", path, outcomes)
    theirs = of_harness(embedded, folder, "own_everything")
    assert len(SCORED) >= 12 and set(SCORED) <= set(ours["results"])
    for part in ("results", "groups"):
        assert_alike(ours[part], theirs[part])
    assert ours["n-samples"] == theirs["n-samples"]
    results, weighted = ours["results"], ours["groups"]["own_weighted"]["acc,none"]
    assert results["own_shots"]["acc_stderr,none"] > 0
    sizes = {"own_large": 9, "own_small": 4}
    assert weighted == pytest.approx(sum(n * results[name]["acc,none"] for name, n in sizes.items()) / 13)
    assert results["own_articles"]["word_perplexity,none"] > 1
    assert any(len(one.sequences) > 1 for one in by_task(prepared, "own_articles"))


def test_the_requests_are_those_of_the_task(everything):
    prepared, _, outcomes = everything
    blank, *_ = by_task(prepared, "own_blanks")
    assert len({request.context for request in blank.sample.requests}) == len(blank.sample.requests)
    assert len({request.continuation for request in blank.sample.requests}) == 1
    assert blank.sample.gold is None  # the harness's target is what follows all of them
    shots, *_ = by_task(prepared, "own_shots")
    assert shots.sample.requests[0].context.count("When it got dark") == 3
    assert shots.sample.text.count("When it got dark") == 1
    assert len(by_task(prepared, "own_processed")) < 9
    assert by_task(prepared, "own_questions")[0].sample.gold in (0, 1)
    first, second, third, *_ = by_task(prepared, "own_choices")
    clusters = [one.sample.attributes["cluster"] for one in (first, second, third)]
    assert clusters[0] == clusters[1] != clusters[2]  # the second row is the first again
    for one, outcome in zip(prepared, outcomes, strict=True):
        if one.sample.gold is not None:
            assert outcome["loss"] > 0 and len(outcome["log_likelihoods"]) == len(one.sample.requests)


@pytest.mark.parametrize(
    ("name", "metric", "score"),
    [
        ("own_choices", None, "acc_norm"),
        ("own_choices", "acc", "acc"),
        ("own_questions", None, "acc"),
        ("own_verdicts", "first", "first"),
        ("own_pair", None, "acc_norm"),
        ("own_weighted", None, "acc_norm"),
    ],
)
def test_the_accuracy_is_the_share_of_samples_that_the_harness_calls_right(
    embedded, folder, tmp_path, name, metric, score
):
    prepared = prepared_file(tmp_path / "mine.json", embedded, folder, name, metric=metric, max_samples=6)
    ours = harness.harness_scores(
        "mine", tmp_path / "mine.json", outcomes_of(embedded.loaded.model, prepared)
    )
    tasks = {one.sample.attributes["task"] for one in prepared}
    assert all(len(by_task(prepared, task)) <= 6 for task in tasks)
    correct = sum(ours["results"][task][f"{score},none"] * len(by_task(prepared, task)) for task in tasks)
    assert sum(ours["samples"]["correct"]) == pytest.approx(correct)
    assert ours["scores"]["mine_accuracy"] == pytest.approx(correct / len(prepared))
    assert ("mine_acc" in ours["scores"]) is (score == "acc_norm")


def test_perplexities(embedded, folder, tmp_path):
    for name, ours_name, theirs_name in (
        ("own_articles", "word_perplexity", "word_perplexity"),
        ("own_articles", "bits_per_byte", "bits_per_byte"),
        ("own_endings", "mine_perplexity", "perplexity"),
    ):
        prepared = prepared_file(tmp_path / "mine.json", embedded, folder, name)
        ours = harness.harness_scores(
            "mine", tmp_path / "mine.json", outcomes_of(embedded.loaded.model, prepared)
        )
        assert ours["scores"][ours_name] == pytest.approx(ours["results"][name][f"{theirs_name},none"])
        assert ours["scores"][f"{ours_name}_stderr"] > 0


def test_examples_in_the_context_on_request(embedded, folder):
    few = harness.prepare_harness_task(
        "mine", settings(folder, "own_large", num_fewshot=3, max_samples=2), embedded.tokenizer, LENGTH
    )
    assert len(few) == 2
    assert all(one.sample.requests[0].context.count("When it got dark") == 4 for one in few)


@pytest.mark.parametrize(
    ("name", "others", "message"),
    [
        ("own_choices", {"metric": "f1"}, "metric is 'f1', but must be one of acc, acc_norm"),
        (
            "own_verdicts",
            {"metric": "spread"},
            "metric is 'spread', which gives a sample .* must give 0 or 1",
        ),
        ("own_stories", {}, "cannot evaluate own_stories: own_stories generates text"),
        ("own_missing", {}, "cannot evaluate own_missing: .*nowhere.jsonl"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(embedded, folder, name, others, message):
    with pytest.raises(InputError, match=message) as error:
        harness.prepare_harness_task("mine", settings(folder, name, **others), embedded.tokenizer, LENGTH)
    assert str(error.value).startswith("datasets.mine") and "\n" not in str(error.value)


def test_other_requests_than_those_that_were_answered(embedded, folder, tmp_path):
    prepared = prepared_file(tmp_path / "mine.json", embedded, folder, "own_choices")
    outcomes = outcomes_of(embedded.loaded.model, prepared)
    content = read_json(tmp_path / "mine.json")
    write_json(tmp_path / "mine.json", content | {"settings": settings(folder, "own_questions")})
    with pytest.raises(InputError, match="other requests than when the data set was prepared"):
        harness.harness_scores("mine", tmp_path / "mine.json", outcomes)


# Tasks by name, without the harness


def test_names_are_those_that_the_harness_knows(folder):
    """Each of the folder's tasks, groups and tags, and some of its own."""
    names = [*TASKS, *GROUPS, "own_pair", "mmlu", "arc_easy", "ai2_arc", "winogrande", "wikitext"]
    for name in names:
        found = find_task(name, str(folder), "datasets.mine.harness")
        generating = name if name == "own_stories" else None
        assert found.generating == ("own_stories" if name == "own_mixed" else generating), name
        manager = TaskManager(include_path=list(found.folders), include_defaults=False)
        assert name in manager.all_tasks
    assert find_task("gsm8k", None, "").generating == "gsm8k"
    assert find_task("mmlu", None, "").folders == find_task("mmlu_anatomy", None, "").folders


def test_an_unknown_name(folder):
    with pytest.raises(
        InputError, match=r"datasets.mine.harness is 'own_choice', .* \(did you mean own_choices\?\)"
    ):
        find_task("own_choice", str(folder), "datasets.mine.harness")
