"""One data set: its samples to score, tokenised; in the job's process or in the model host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from adaptive_routing.data.rows import open_rows
from adaptive_routing.data.samples import check_vocabulary, prepare_samples, prepared_to_json, skipped_rows
from adaptive_routing.data.shared import share_beginnings
from adaptive_routing.model.description import read_model_info
from adaptive_routing.model.tokenizer import load_tokenizer
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable


class PreparationRequest(TypedDict):
    """What to prepare; files by their paths."""

    model: str
    dataset: str
    settings: dict[str, Any]  # of the data set
    output: str


def prepare_dataset(request: PreparationRequest, before_writing: Callable[[], None] = lambda: None) -> None:
    """Read a data set, tokenise the samples to score as lm-evaluation-harness does, and write them.

    Args:
        request: `PreparationRequest`.
        before_writing: what it raises leaves the data set unwritten.

    Raises:
        InputError: the data set cannot be read, or lacks what its task needs.
    """
    dataset, settings = request["dataset"], request["settings"]
    model = read_model_info(request["model"])
    prepared, known = (_of_harness if "harness" in settings else _of_rows)(dataset, settings, model)
    if settings.get("share_contexts"):
        prepared = share_beginnings(prepared)
    check_vocabulary(prepared, model["shapes"]["vocab_size"], f"datasets.{dataset}")
    before_writing()
    write_json(request["output"], prepared_to_json(dataset, prepared, settings | known))


def _of_harness(dataset, settings, model):
    """The samples of a task of the harness, and what is known of the data set beside its settings."""
    from adaptive_routing.data.harness import prepare_harness_task
    from adaptive_routing.system.harness_tasks import installed_version

    tokenizer, readable = load_tokenizer(model), model["max_position_embeddings"]
    version = installed_version(f"datasets.{dataset}.harness")
    return prepare_harness_task(dataset, settings, tokenizer, readable), {"harness_version": version}


def _of_rows(dataset, settings, model):
    """The samples of rows, and what is known of the data set beside its settings."""
    source = {key: settings[key] for key in ("source", "subset", "split", "revision")}
    # What is generated has to fit beside the prompt.
    readable = model["max_position_embeddings"] - settings.get("max_new_tokens", 0)
    if readable < 2:
        raise InputError(
            f"datasets.{dataset}.max_new_tokens is {settings['max_new_tokens']}, but the model reads at most "
            f"{model['max_position_embeddings']} tokens, prompt included"
        )
    commit, rows = open_rows(**source, name=f"datasets.{dataset}")
    prepared = prepare_samples(
        dataset,
        rows,
        load_tokenizer(model),
        settings["max_samples"],
        settings.get("max_length"),
        readable,
        settings.get("protocol"),
        settings.get("task"),
    )
    # The commit is what the revision of a hub data set stood for.
    return prepared, {"skipped_rows": skipped_rows(prepared)} | ({} if commit is None else {"commit": commit})
