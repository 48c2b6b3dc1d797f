"""The rows of a data set, read with the `datasets` library.

A hub data set is read at one commit, which is known before anything is read: `datasets` itself takes any
commit that its cache holds where the hub cannot be reached.
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

from adaptive_routing.system import disk, hub
from adaptive_routing.system.errors import InputError, lack_of_memory
from adaptive_routing.system.hub_faults import HubUnreachable, asking, is_unanswered

LOCAL_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COPY = "adaptive_routing_rows_"  # the beginning of the name of the folder that a local file is read in
_DESCRIPTIONS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
_BUILDERS = {"json": "Json", "parquet": "Parquet"}


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
    yield from open_rows(source, subset, split, revision, name)[1]


def open_rows(
    source: str,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    name: str = "dataset",
) -> tuple[str | None, Iterator[dict[str, Any]]]:
    """The commit of a hub data set (None for a local file), and what `load_rows` yields.

    Args:
        source: owner/name on the hub, or a file with one of the suffixes of `LOCAL_FORMATS`.
        subset, split, revision: of a hub data set.
        name: of the setting, with which sentences about faults begin.

    Raises:
        InputError: the source cannot be read, or a hub data set not at this revision.
    """
    import datasets

    datasets.disable_progress_bars()
    if Path(source).suffix in LOCAL_FORMATS:
        return None, _local_rows(source, name)
    if source.count("/") != 1:
        raise InputError(
            f"{name}: {source!r} is neither owner/name, as a data set is called on the hub, nor a file that "
            f"ends with {', '.join(LOCAL_FORMATS)}"
        )
    repository = hub.Repository("dataset", source, name)
    commit, why_not_asked = hub.resolve(repository, revision)
    builder = _cached(source, subset, commit)
    if builder is None and not why_not_asked:
        try:
            builder = _fetched(repository, subset, commit)
        except HubUnreachable as error:
            why_not_asked = error.reason
    if builder is None:
        raise InputError(
            f"{name}: {why_not_asked}, and the cache does not hold {source}"
            f"{f' ({subset})' if subset else ''} at commit {commit}"
        )
    if why_not_asked:
        print(
            f"{name}: {why_not_asked}; {source} is read from the cache, at commit {commit}", file=sys.stderr
        )
    return commit, _prepared_rows(builder, split, repository)


def _local_rows(source, name):
    """The rows of a file. It is read each time: a cache would only be a second copy of it."""
    kind = LOCAL_FORMATS[Path(source).suffix]
    # Under a plain name and past the library's own search: it takes [, ?, * and :: in a name for patterns.
    with tempfile.TemporaryDirectory(prefix=COPY) as cache:
        link = Path(cache, f"rows{Path(source).suffix}")
        try:
            if not Path(source).is_file():
                raise FileNotFoundError("there is no such file")
            disk.check_room(
                Path(cache),
                Path(source).stat().st_size,
                f"{name}: the copy of {source!r} that is read",
                "free the difference, or set TMPDIR to a folder on a larger disk",
            )
            link.symlink_to(Path(source).absolute())
            builder = _builder(kind, link, cache)
            builder.download_and_prepare()
            yield from builder.as_dataset("train")
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(source, name, error, link) from error


def _builder(kind, path, cache):
    from datasets.data_files import DataFilesDict, DataFilesList

    module = importlib.import_module(f"datasets.packaged_modules.{kind}.{kind}")
    files = DataFilesDict({"train": DataFilesList([str(path)], [()])})
    return getattr(module, _BUILDERS[kind])(
        cache_dir=cache, dataset_name=kind, hash="local", data_files=files
    )


def _unreadable(source, name, error, link=None):
    # `datasets` wraps the actual error in "An error occurred while generating the dataset".
    error = error.__cause__ or error
    if lack_of_memory(error):
        return error
    if reason := disk.no_room(error):
        return InputError(f"{name}: the copy of {source!r} that is read cannot be written: {reason}")
    reason = " ".join(str(error).split()) or "it holds no rows"
    if link is not None:
        reason = reason.replace(str(link), source)
    return InputError(f"{name}: cannot read {source!r} ({reason})")


def _cached(source, subset, commit):
    """The builder of a data set that `datasets` has prepared before at this commit; None if it has not."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, own = source.partition("/")
    root = Path(config.HF_DATASETS_CACHE).expanduser() / f"{owner}___{camelcase_to_snakecase(own)}"
    found = sorted(root.glob(f"{escape(subset) if subset else '*'}/*/{commit}/dataset_info.json"))
    if len(found) != 1:
        return None  # of several subsets, the hub tells the default one
    version = found[0].parts[-3]
    return Cache(
        dataset_name=own, repo_id=source, config_name=found[0].parts[-4], version=version, hash=commit
    )


def _fetched(repository, subset, commit):
    """The builder of a data set whose files were fetched from the hub, and which `datasets` has prepared."""
    import datasets

    source, name = repository.name, repository.key
    listed = {file.path: file for file in hub.list_files(repository, commit)}
    # The library would read them first of all; here, a refusal and a wrong bit get their own sentences.
    hub.fetch(repository, commit, [listed[path] for path in _DESCRIPTIONS if path in listed])
    with asking(repository, commit):
        try:
            builder = datasets.load_dataset_builder(source, subset, revision=commit)
        except Exception as error:
            for one in (error, error.__cause__):
                if one is not None and is_unanswered(one):
                    raise one from error
            raise _unreadable(source, name, error) from error  # such as a subset that there is not
    if builder.hash != commit:  # another one, of the cache
        reason = "the hub stopped answering meanwhile"
        raise HubUnreachable(f"{name}: {reason}", reason)
    prefix = f"@{commit}/"
    paths = {
        url.partition(prefix)[2]
        for urls in (builder.config.data_files or {}).values()
        for url in urls
        if prefix in url
    }
    files = [listed[path] for path in sorted(paths) if path in listed]
    folder = hub.fetch(repository, commit, files)
    disk.check_room(
        Path(builder.cache_dir),
        builder.info.dataset_size or sum(file.size for file in files),  # the least, of compressed files
        f"{name}: the copy of {source} that is read",
        "free the difference, or set HF_DATASETS_CACHE to a folder on a larger disk",
    )
    try:
        builder.download_and_prepare()
    except Exception as error:
        damaged = hub.damaged_files(folder, paths)
        remedies = list(map(hub.remove, damaged))
        if damaged:
            raise InputError(
                f"{name}: {damaged[0]} in the hub's cache is damaged and {remedies[0]}"
            ) from error
        raise _unreadable(source, name, error) from error
    return builder


def _prepared_rows(builder, split, repository):
    """The rows of what `datasets` has prepared; InputError where there is no such split, or it is damaged."""
    source, name = repository.name, repository.key
    try:
        if builder.info.splits and split not in builder.info.splits:
            known = ", ".join(builder.info.splits)
            raise InputError(f"{name}.split is {split!r}, but {source} has {known}")
        yield from builder.as_dataset(split)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"{name}: the prepared copy of {source} in {os.fspath(builder.cache_dir)} cannot be read "
            f"({reason}); delete that folder and run again"
        ) from error
