"""The rows of a data set, read with the `datasets` library."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptive_routing.system.errors import InputError

LOCAL_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_rows(
    source: str,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    name: str = "dataset",
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a hub data set or a local JSONL/parquet file, in order, as dicts.

    Raises:
        InputError: the source cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    suffix = Path(source).suffix
    try:
        if suffix in LOCAL_FORMATS:
            # A local file is read each time: a cache would only be a second copy of it.
            with tempfile.TemporaryDirectory() as cache:
                rows = datasets.load_dataset(
                    LOCAL_FORMATS[suffix], data_files=str(source), split="train", cache_dir=cache
                )
                yield from rows
        else:
            yield from datasets.load_dataset(source, subset, split=split, revision=revision)  # ty: ignore[invalid-yield]
    except Exception as error:
        # `datasets` wraps the actual error in "An error occurred while generating the dataset".
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or "it holds no rows"
        raise InputError(f"{name}: cannot read {source!r} ({reason})") from error
