"""Router logits of calibration text under the model's own routing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from adaptive_routing.data.rows import open_rows
from adaptive_routing.data.samples import check_vocabulary
from adaptive_routing.evaluation.calibration import (
    collect_router_logits,
    encode_calibration_text,
    save_router_logits,
)
from adaptive_routing.model.description import read_model_info
from adaptive_routing.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from adaptive_routing.jobs.model_jobs.cache import Cache
    from adaptive_routing.settings.load import CalibrationSettings


class CalibrationRequest(TypedDict):
    """The request of this job."""

    model: str  # path of model.json
    dtype: str
    device: str
    gpus: NotRequired[int]  # that the model is spread over; 1 unless set
    calibration: CalibrationSettings
    batch_tokens: int
    output: str


def run(request: CalibrationRequest, cache: Cache) -> None:
    """Do the job: `request` and `cache` as in `model_jobs`."""
    text, info = request["calibration"], read_model_info(request["model"])
    source = {key: text[key] for key in ("source", "subset", "split", "revision")}
    commit, rows = open_rows(**source, name="null_distribution.calibration")  # ty: ignore[invalid-argument-type]
    samples = encode_calibration_text(
        rows,
        text["column"],
        load_tokenizer(info),
        text["max_tokens"],
        text["max_length"],
    )
    check_vocabulary(samples, info["shapes"]["vocab_size"], "null_distribution.calibration")
    loaded = cache.model(info, request["dtype"], request["device"], request.get("gpus", 1))
    router_logits = collect_router_logits(loaded, samples, request["batch_tokens"])
    lengths = [sample.sequences[0].num_inputs for sample in samples]
    made_from = text if commit is None else text | {"commit": commit}  # that the revision stood for
    metadata = {"calibration": made_from, "dtype": request["dtype"]}
    save_router_logits(request["output"], router_logits, lengths, metadata)
