"""Repositories of the Hugging Face hub: which commit a revision is, and its files in the hub's cache.

The library's `http_get` transfers: it asks again where a connection breaks, and goes on within a file where
an earlier run ended. The library's `hf_hub_download` would begin that file anew, and names content before it
is compared with what the hub says. The cache's layout and locks are the library's own, so that all other
tools find what was fetched. What goes wrong is worded in `hub_faults`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptive_routing.system import disk
from adaptive_routing.system.errors import InputError
from adaptive_routing.system.hub_faults import HubUnreachable, as_sentence, asking

if TYPE_CHECKING:
    from collections.abc import Collection

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_AT_ONCE = 4  # downloads
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, and the setting that names it, which begins every sentence about it."""

    kind: Literal["model", "dataset"]
    name: str
    key: str  # such as "model.name"

    @property
    def cache(self) -> Path:
        """Its folder in the hub's cache."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE, f"{self.kind}s--{self.name.replace('/', '--')}")

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files."""
        return self.cache / "snapshots" / commit

    def __str__(self) -> str:
        return f"{'model' if self.kind == 'model' else 'data set'} {self.name}"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository as the hub lists it: a path, bytes, and the name of its content."""

    path: str
    size: int
    blob: str  # SHA-256 of a large file, Git's own hash (SHA-1) of a small one


def resolve(repository: Repository, revision: str | None) -> tuple[str, str | None]:
    """The commit that a revision stands for, and why the hub could not be asked: None where it was.

    Where it cannot be asked, it is the commit that the cache last knew the revision by.

    Raises:
        InputError: there is no such repository or revision, nobody may read it, or the hub cannot be reached
            and the cache does not know the revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.file_download import _cache_commit_hash_for_specific_revision

    wanted = revision or "main"
    if _COMMIT.fullmatch(wanted):
        return wanted, None
    try:
        with asking(repository, wanted):
            info = HfApi().repo_info(repository.name, repo_type=repository.kind, revision=wanted)
    except HubUnreachable as error:
        reason = error.reason
        commit = _known_commit(repository, wanted)
        if not _COMMIT.fullmatch(commit):
            if error.is_refusal:
                raise
            raise HubUnreachable(
                f"{repository.key}: {reason}, and the cache ({repository.cache.parent}) does not hold "
                f"revision {wanted} of the {repository}",
                reason,
            ) from error
        return commit, reason
    assert info.sha is not None
    with suppress(OSError):  # a cache that cannot be written to still is one
        _cache_commit_hash_for_specific_revision(str(repository.cache), wanted, info.sha)
    return info.sha, None


def _known_commit(repository, revision):
    """The commit that the cache last knew a revision by; text that is none where it does not know it."""
    known = repository.cache / "refs" / revision
    return known.read_text().strip() if known.is_file() else revision


def list_files(repository: Repository, commit: str) -> list[HubFile]:
    """The files of a commit; InputError where the hub does not tell them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with asking(repository, commit):
        listed = HfApi().list_repo_tree(
            repository.name, recursive=True, revision=commit, repo_type=repository.kind
        )
        files = [one for one in listed if isinstance(one, RepoFile)]  # and no folder
    return [
        HubFile(one.path, one.lfs.size, one.lfs.sha256)
        if one.lfs
        else HubFile(one.path, one.size, one.blob_id)
        for one in files
    ]


def fetch(repository: Repository, commit: str, files: Collection[HubFile]) -> Path:
    """Have files of a commit in the cache; returns the commit's folder. Those that are there stay.

    stderr gets a line about a long download now and then.

    Raises:
        InputError: the hub breaks off or refuses, the disk is too small, or a file's content is not what the
            hub says. What was received is kept, and the next call goes on with the rest.
    """
    folder = repository.snapshot(commit)
    missing = [file for file in files if not (folder / file.path).exists()]
    if missing:
        with asking(repository, commit):
            _Download(repository, commit, missing).run()
    return folder


def fetch_file(repository: Repository, revision: str | None, path: str) -> Path:
    """One file of a revision, as it is in the cache where that knows the revision.

    Raises:
        InputError: the cache does not have it, and neither does the hub, or it cannot be reached.
    """
    known = repository.snapshot(_known_commit(repository, revision or "main")) / path
    if known.exists():
        return known
    commit, why_not_asked = resolve(repository, revision)
    files = [] if why_not_asked else list_files(repository, commit)
    local = fetch(repository, commit, [file for file in files if file.path == path]) / path
    if not local.exists():
        who = f"{why_not_asked}, and the cache" if why_not_asked else "the hub"
        raise InputError(f"{repository.key}: {who} does not hold {path} of the {repository}")
    return local


class _Download:
    """A download under way, by several threads.

    They are daemons: the main thread waits for them in short steps, so that a signal ends it at once, and
    with it the process.
    """

    def __init__(self, repository, commit, files):
        from huggingface_hub import constants

        self.repository, self.commit, self.files = repository, commit, files
        self.received = {}  # bytes by path, among them those that an earlier run had received
        self.before = {}  # the latter alone
        self.is_over = threading.Event()
        self.failures = []
        self.blobs = repository.cache / "blobs"
        self.locks = Path(constants.HF_HUB_CACHE, ".locks", repository.cache.name)

    def run(self):
        for folder in (self.blobs, self.locks):
            folder.mkdir(parents=True, exist_ok=True)
        self._check_room()
        waiting = deque(sorted(self.files, key=lambda file: file.size))  # weights last: they take longest
        threads = [threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(_AT_ONCE)]
        try:
            for thread in threads:
                thread.start()
            self._wait(threads)
        finally:
            self.is_over.set()
        if self.failures:
            raise self.failures[0]

    def _check_room(self):
        blobs = {self.blobs / file.blob: file.size for file in self.files}
        needed = sum(size for blob, size in blobs.items() if not blob.exists())
        partial = map(_partial, blobs)
        disk.check_room(
            self.repository.cache.parent,
            needed - sum(path.stat().st_size for path in partial if path.exists()),
            f"{self.repository.key}: the download of the {self.repository}",
            "free the difference, or set HF_HOME to a folder on a larger disk",
        )

    def _wait(self, threads):
        started = last = time.monotonic()
        total = sum(file.size for file in self.files)
        while not self.failures and any(thread.is_alive() for thread in threads):
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if now - last >= _REPORT_SECONDS and self.received:
                received = sum(self.received.copy().values())  # threads add to it
                speed = max(received - sum(self.before.copy().values()), 0) / (now - started)
                left = f", about {_duration((total - received) / speed)} left" if speed else ""
                print(
                    f"{self.repository}: {disk.in_words(received)} of {disk.in_words(total)} downloaded, "
                    f"{disk.in_words(speed)}/s{left}",
                    file=sys.stderr,
                )
                last = now

    def _work(self, waiting):
        with suppress(IndexError):  # none is left
            while not self.is_over.is_set():
                file = waiting.popleft()
                try:
                    self._get(file)
                except Exception as error:
                    self.failures.append(as_sentence(error, self.repository, self.commit, file.path))
                    return

    def _get(self, file):
        """Have a file's content under its name in the cache, and its path in the commit's folder."""
        from huggingface_hub.file_download import _create_symlink
        from huggingface_hub.utils import WeakFileLock

        blob, path = self.blobs / file.blob, self.repository.snapshot(self.commit) / file.path
        with WeakFileLock(self.locks / f"{file.blob}.lock"):
            if not blob.exists():  # nor has another process fetched it meanwhile
                self._fetch(file, blob)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _create_symlink(str(blob), str(path))

    def _fetch(self, file, blob):
        """Have a file's content under its name; InputError, and nothing kept, where it is another."""
        partial = _partial(blob)
        with open(partial, "a+b") as content:
            self._receive(file, content)
            content.flush()
            os.fsync(content.fileno())
            content.seek(0)
            if _hash(content, file.blob) == file.blob:
                os.replace(partial, blob)
                return
        partial.unlink()
        raise InputError(
            f"{self.repository.key}: {file.path} of the {self.repository} came damaged from the hub (its "
            f"content is not {file.blob[:12]}…, as the hub says); it was not kept, so run again"
        )

    def _receive(self, file, content):
        """Append to a file what it lacks."""
        import httpx2
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        start = content.seek(0, os.SEEK_END)
        if start >= file.size:
            return
        repository = self.repository
        url = hf_hub_url(repository.name, file.path, repo_type=repository.kind, revision=self.commit)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # ranges are of the content as it is
        bar: Any = functools.partial(_Bar, self, file.path)
        try:
            http_get(url, content, resume_size=start, headers=headers, tqdm_class=bar)
        except httpx2.ReadError:  # a reset, the one break after which the library does not go on
            if content.tell() <= start:
                raise
            self._receive(file, content)


class _Bar:
    """Stands where the library would show a file's progress, and counts it."""

    def __init__(self, download, path, initial=0, **_):
        self.download, self.path = download, path
        download.received[path] = initial
        download.before.setdefault(path, initial)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, number):
        """Count bytes; end the transfer where nobody waits for it any longer."""
        if self.download.is_over.is_set():
            raise InterruptedError
        self.download.received[self.path] += number


def _partial(blob):
    return blob.with_name(f"{blob.name}.partial")


def _hash(content, name):
    """The hash of an open file, of the kind of a name in the cache: SHA-256, or Git's for small files."""
    if len(name) == 64:
        return hashlib.file_digest(content, "sha256").hexdigest()
    from huggingface_hub.utils.sha import git_hash

    return git_hash(content.read())


def content_name(path: Path) -> str | None:
    """The name of a file's content in the cache, which is its hash; None for a file that is not of the cache.

    What that name is a link to, in turn, is named by the hash of another kind that the library's store for
    all repositories uses.
    """
    while path.is_symlink():
        path = path.parent / path.readlink()
        if _HASH.fullmatch(path.name):
            return path.name
    return None


def damaged_files(folder: Path, paths: Collection[str]) -> list[Path]:
    """The files of a commit's folder whose content is not what their names in the cache say."""
    found = []
    for path in (folder / path for path in paths):
        if (name := content_name(path)) and path.is_file():
            with open(path, "rb") as content:
                if _hash(content, name) != name:
                    found.append(path)
    return found


def remove(path: Path) -> str:
    """Remove a file from the cache, content and name; returns what is left to do, in half a sentence."""
    try:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be removed ({error.strerror}); have it deleted and run again"
    return "was removed; run again, which fetches it anew"


def _duration(seconds):
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
