"""A data set's preparation, by the process that has imported for the model what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptive_routing.jobs.preparation import PreparationRequest, prepare_dataset

if TYPE_CHECKING:
    from adaptive_routing.jobs.model_jobs.cache import Cache


def run(request: PreparationRequest, cache: Cache) -> None:
    """Do the job: `request` and `cache` as in `model_jobs`."""
    prepare_dataset(request, cache.check)
