"""What jobs keep from one to the next: the model, and the files that they read."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from adaptive_routing.model.devices import use_cores_for_passes
from adaptive_routing.model.load import load_model
from adaptive_routing.routing_log.workers import LogWorkers

if TYPE_CHECKING:
    from collections.abc import Callable

    from adaptive_routing.model.description import ModelDescription
    from adaptive_routing.model.load import LoadedModel


T = TypeVar("T")


class Cache:
    """What jobs load: the model, and files that several of them use, each read once while unchanged.

    Args:
        check: called before every forward pass; what it raises ends the job.

    Attributes:
        check: as given.
        done: what jobs do once.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self.check = check
        self.done: set[str] = set()
        self._model = functools.lru_cache(maxsize=1)(self._load_model)
        self._read = functools.lru_cache(maxsize=8)(lambda reader, path, *_: reader(path))

    @functools.cached_property
    def log_workers(self) -> LogWorkers:
        """`LogWorkers`, started when first asked for."""
        return LogWorkers()

    def close(self) -> None:
        """End what runs beside this process."""
        if "log_workers" in self.__dict__:
            self.log_workers.close()

    def model(self, info: ModelDescription, dtype: str, device: str, gpus: int = 1) -> LoadedModel:
        """The `LoadedModel` that `inspect_model`'s result describes."""
        return self._model(json.dumps(info), dtype, device, gpus)

    def read(self, reader: Callable[[str], T], path: str) -> T:
        """`reader(path)`."""
        status = os.stat(path)
        return self._read(reader, path, status.st_mtime_ns, status.st_size)

    def _load_model(self, info, dtype, device, gpus):
        info, started = json.loads(info), time.perf_counter()
        loaded = load_model(info, dtype, device, gpus)
        if loaded.model.device.type == "cpu":
            use_cores_for_passes()
        loaded.model.base_model.register_forward_pre_hook(lambda *_: self.check())
        seconds = time.perf_counter() - started
        print(f"loaded {info['name']}, {dtype}, on {loaded.device_name} in {seconds:.1f} s", file=sys.stderr)
        return loaded
