"""Repositories of the Hugging Face hub: which commit a revision is, and its files in the hub's cache.

Files are fetched here rather than by `huggingface_hub.snapshot_download`: a download can be interrupted at
any moment, goes on where it ended, and gets its name only after its content was found to be what the hub
says. The cache's layout is the hub's own, so that all other tools find what was fetched.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

COMMIT = re.compile(r"[0-9a-f]{40}")
_AT_ONCE = 4  # downloads
_ATTEMPTS = 5  # without a byte in between
_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 10.0
_PAUSE_SECONDS = 1.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = (408, 429, 500, 502, 503, 504)  # status codes of a hub that may do better in a moment


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
    is_large: bool


class HubUnreachable(InputError):
    """The hub does not answer, or may not be asked, or refuses; `reason` says why in half a sentence.

    What the cache holds can still be read.
    """

    def __init__(self, sentence: str, reason: str, is_refusal: bool = False) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.is_refusal = is_refusal


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    from huggingface_hub import constants

    told = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return bool(constants.HF_HUB_OFFLINE) or told


def resolve(repository: Repository, revision: str | None) -> tuple[str, str | None]:
    """The commit that a revision stands for, and why the hub was not asked: None where it was.

    Where it cannot be asked, it is the commit that the cache last knew the revision by.

    Raises:
        InputError: there is no such repository or revision, nobody may read it, or the hub cannot be reached
            and the cache does not know the revision.
    """
    from huggingface_hub import HfApi

    wanted = revision or "main"
    if COMMIT.fullmatch(wanted):
        return wanted, "HF_HUB_OFFLINE is set" if is_offline() else None
    try:
        with asking(repository, wanted):
            info = HfApi().repo_info(
                repository.name, repo_type=repository.kind, revision=wanted, timeout=_timeout()
            )
    except HubUnreachable as error:
        reason = error.reason
        commit = _known_commit(repository, wanted)
        if not COMMIT.fullmatch(commit):
            if error.is_refusal:
                raise
            raise HubUnreachable(
                f"{repository.key}: {reason}, and the cache ({repository.cache.parent}) does not hold "
                f"revision {wanted} of the {repository}",
                reason,
            ) from error
        return commit, reason
    assert info.sha is not None
    _remember(repository, wanted, info.sha)
    return info.sha, None


def _known_commit(repository, revision):
    """The commit that the cache last knew a revision by; text that is none where it does not know it."""
    known = repository.cache / "refs" / revision
    return known.read_text().strip() if known.is_file() else revision


def _remember(repository, revision, commit):
    """Keep which commit a revision is, as the hub's own client does."""
    known = repository.cache / "refs" / revision
    with suppress(OSError):  # a cache that cannot be written to still is one
        if not known.is_file() or known.read_text() != commit:
            known.parent.mkdir(parents=True, exist_ok=True)
            temporary = known.with_name(f".tmp_{known.name}_{os.getpid()}")
            temporary.write_text(commit)
            os.replace(temporary, known)


def list_files(repository: Repository, commit: str) -> list[HubFile]:
    """The files of a commit; InputError where the hub does not tell them."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with asking(repository, commit):
        listed = list(
            HfApi().list_repo_tree(
                repository.name, recursive=True, revision=commit, repo_type=repository.kind
            )
        )
    files = []
    for one in listed:
        if isinstance(one, RepoFile):  # and no folder
            large = one.lfs
            size, blob = (large.size, large.sha256) if large else (one.size, one.blob_id)
            files.append(HubFile(one.path, size, blob, is_large=bool(large)))
    return files


def matching(files: Collection[HubFile], patterns: Collection[str]) -> list[HubFile]:
    """The files whose paths match one of the patterns."""
    return [file for file in files if any(fnmatch(file.path, pattern) for pattern in patterns)]


def fetch(repository: Repository, commit: str, files: Collection[HubFile]) -> Path:
    """Have files of a commit in the cache; returns the commit's folder. Those that are there stay.

    stderr gets a line about a long download now and then.

    Raises:
        InputError: the hub breaks off or refuses, the disk is too small, or a file's content is not what the
            hub says. What was received whole is kept, and the next call goes on with the rest.
    """
    folder = repository.snapshot(commit)
    missing = [file for file in files if not (folder / file.path).exists()]
    if missing:
        _Download(repository, commit, missing).run()
    return folder


def fetch_file(repository: Repository, revision: str | None, path: str) -> Path:
    """One file of a revision, as it is in the cache where that knows the revision.

    Raises:
        InputError: the cache does not have it, and neither does the hub, or it cannot be reached.
    """
    if (known := repository.snapshot(_known_commit(repository, revision or "main")) / path).exists():
        return known
    commit, why_not_asked = resolve(repository, revision)
    local = repository.snapshot(commit) / path
    if not local.exists():
        if why_not_asked:
            raise HubUnreachable(
                f"{repository.key}: {why_not_asked}, and the cache does not hold {path} of the {repository}",
                why_not_asked,
            )
        files = [file for file in list_files(repository, commit) if file.path == path]
        if not files:
            raise InputError(f"{repository.key}: the {repository} has no {path}")
        fetch(repository, commit, files)
    return local


@dataclass
class _Download:
    """A download under way, by several threads.

    They are daemons: the main thread waits for them in short steps, so that a signal ends it at once, and
    with it the process.
    """

    repository: Repository
    commit: str
    files: list[HubFile]
    received: int = 0  # bytes, among them those that an earlier download had received
    resumed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _failures: list[BaseException] = field(default_factory=list)
    _etags: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        waiting = sorted(self.files, key=lambda file: file.size)  # weights last, as they take longest
        self.total = sum(file.size for file in waiting)
        blobs = self.repository.cache / "blobs"
        try:
            blobs.mkdir(parents=True, exist_ok=True)
            self._check_room(blobs, waiting)
        except OSError as error:
            raise InputError(
                f"{self.repository.key}: the cache {blobs} cannot be written to ({error.strerror}); "
                "set HF_HOME to another folder"
            ) from error
        _session()
        threads = [
            threading.Thread(target=self._work, args=(waiting,), daemon=True)
            for _ in range(min(_AT_ONCE, len(waiting)))
        ]
        try:
            for thread in threads:
                thread.start()
            self._wait(threads)
        finally:
            self._stop.set()
        if self._failures:
            raise self._failures[0]

    def _check_room(self, blobs, files):
        needed = sum(file.size for file in files if not (blobs / file.blob).exists())
        partial = [blobs / f"{file.blob}.partial" for file in files]
        needed -= sum(path.stat().st_size for path in partial if path.exists())
        free = shutil.disk_usage(blobs).free
        if needed > free:
            raise InputError(
                f"{self.repository.key}: the download of the {self.repository} needs {_amount(needed)}, but "
                f"{blobs.parents[1]} has {_amount(free)} free; free the difference, or set HF_HOME to a "
                "folder on a larger disk"
            )

    def _wait(self, threads):
        started = last = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL_SECONDS)
            now = time.monotonic()
            if now - last >= _REPORT_SECONDS and self.received:
                speed = max(self.received - self.resumed, 0) / (now - started)
                left = f", about {_duration((self.total - self.received) / speed)} left" if speed else ""
                print(
                    f"{self.repository}: {_amount(self.received)} of {_amount(self.total)} downloaded, "
                    f"{_amount(speed)}/s{left}",
                    file=sys.stderr,
                )
                last = now

    def _work(self, waiting):
        while not self._stop.is_set():
            with self._lock:
                if not waiting:
                    return
                file = waiting.pop(0)
            try:
                self._get(file)
            except _Stopped:
                return
            except BaseException as error:
                self._failures.append(_as_sentence(error, self.repository, self.commit, file.path))
                self._stop.set()

    def _get(self, file):
        """Have a file's content under its name in the cache, and its path in the commit's folder."""
        blob = self.repository.cache / "blobs" / file.blob
        partial = blob.with_name(f"{blob.name}.partial")
        while not blob.exists():
            with open(partial, "a+b") as content:
                if not self._locked(content, partial) or blob.exists():
                    continue
                self._receive(file, content)
                content.flush()
                os.fsync(content.fileno())
                self._check(file, content, partial)
                os.replace(partial, blob)
        path = self.repository.snapshot(self.commit) / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and not path.exists():  # to content that was removed
            path.unlink(missing_ok=True)
        with suppress(FileExistsError):
            try:
                path.symlink_to(os.path.relpath(blob, path.parent))
            except PermissionError:  # a file system without symbolic links
                shutil.copyfile(blob, path)

    def _locked(self, content, partial):
        """Wait until no other process writes to a file; whether it still has its name then."""
        while True:
            try:
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._stop.wait(_POLL_SECONDS):
                    raise _Stopped from None
            else:
                break
        return partial.exists() and os.path.samestat(os.fstat(content.fileno()), partial.stat())

    def _receive(self, file, content):
        """Append to a file what it lacks, asking again where the connection breaks."""
        from huggingface_hub.errors import HfHubHTTPError

        content.seek(0, os.SEEK_END)
        self._count(content.tell())
        with self._lock:
            self.resumed += content.tell()
        attempts = 0
        while content.tell() < file.size:
            before = content.tell()
            try:
                self._receive_once(file, content)
                if content.tell() < file.size:
                    raise ConnectionError("the hub ended the transfer early")
            except Exception as error:
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
                if not (status in _AGAIN or (status is None and _is_transport(error))):
                    raise
                attempts = 1 if content.tell() > before else attempts + 1
                if attempts == _ATTEMPTS:
                    raise
                if self._stop.wait(_PAUSE_SECONDS * attempts):
                    raise _Stopped from None

    def _receive_once(self, file, content):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        repository, start = self.repository, content.tell()
        url = hf_hub_url(repository.name, file.path, repo_type=repository.kind, revision=self.commit)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with _session().stream("GET", url, headers=headers, timeout=_timeout()) as response:
            hf_raise_for_status(response)
            self._etags[file.path] = response.headers.get("ETag", "").removeprefix("W/").strip('"')
            if start and response.status_code != 206:  # the whole file once more
                content.truncate(0)
                self._count(-start)
            for chunk in response.iter_bytes():
                if self._stop.is_set():
                    raise _Stopped
                content.write(chunk)
                self._count(len(chunk))

    def _count(self, number):
        with self._lock:
            self.received += number

    def _check(self, file, content, partial):
        """InputError, and the file removed, unless its content is what the hub says."""
        content.seek(0)
        if holds(content, file.size, file.blob):
            return
        etag = self._etags.get(file.path)
        if (
            not file.is_large
            and etag
            and etag != file.blob
            and os.fstat(content.fileno()).st_size == file.size
        ):
            return  # a mirror that hashes small files in its own ways says nothing about their content
        partial.unlink()
        raise InputError(
            f"{self.repository.key}: {file.path} of the {self.repository} came damaged from the hub (its "
            f"content is not {file.blob[:12]}…, as the hub says); it was not kept, so run again"
        )


class _Stopped(Exception):
    """Another thread's download has failed, or nobody waits any longer."""


def holds(content: Any, size: int, blob: str) -> bool:
    """Whether a file, open for reading, has so many bytes of the content that a name in the cache stands for.

    A name is a SHA-256 of the content (64 digits) or the SHA-1 that Git makes of it (40 digits).
    """
    if len(blob) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    found = 0
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
        found += len(chunk)
    return found == size and digest.hexdigest() == blob


def damaged_files(folder: Path, paths: Collection[str]) -> list[Path]:
    """The files of a commit's folder whose content is not what their names in the cache say."""
    found = []
    for path in paths:
        blob = (folder / path).resolve()
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) and blob.is_file():
            with open(blob, "rb") as content:
                if not holds(content, blob.stat().st_size, blob.name):
                    found.append(folder / path)
    return found


def remove(path: Path) -> str:
    """Remove a file from the cache, content and name; returns what is left to do, in half a sentence."""
    try:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"cannot be removed ({error.strerror}); have it deleted and run again"
    return "was removed; run again, which fetches it anew"


# What goes wrong


@contextmanager
def asking(repository: Repository, revision: str) -> Iterator[None]:
    """Ask the hub about a repository; whatever goes wrong is an InputError of one sentence."""
    from huggingface_hub.utils import logging

    _session()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # its client tells each attempt
    try:
        yield
    except Exception as error:
        raise _as_sentence(error, repository, revision) from error
    finally:
        logging.set_verbosity(level)


def _as_sentence(error, repository, revision, path=None):
    """An exception as what a user needs to know of it; one that is no fault of hub or machine as it is."""
    from huggingface_hub import errors, get_token

    if isinstance(error, InputError) or not isinstance(error, Exception):
        return error
    key, what = repository.key, f"{path} of the {repository}" if path else f"the {repository}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnreachable(
            f"{key}: HF_HUB_OFFLINE is set, and {what} is not in the cache", "HF_HUB_OFFLINE is set"
        )
    if isinstance(error, errors.GatedRepoError):
        page = f"{_endpoint()}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}"
        reason = f"the {repository} is gated; ask for access at {page}, and {login}"
        return HubUnreachable(f"{key}: {reason}", reason, is_refusal=True)
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{key}: the {repository} has no revision {revision!r} on the hub")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        reason = f"the hub ({_endpoint()}) has no {repository}, or it is private; check the name, or {login}"
        return HubUnreachable(f"{key}: {reason}", reason, is_refusal=True)
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(f"{key}: the hub has no {what} at revision {revision}")
    if status == 403:
        reason = f"the hub does not let you read {what} (status {status}); {login}"
        return HubUnreachable(f"{key}: {reason}", reason, is_refusal=True)
    if isinstance(error, UnicodeError) and not (get_token() or "").isascii():
        return InputError(f"{key}: the token for the hub (HF_TOKEN) holds characters that no token has")
    if isinstance(error, errors.HFValidationError | UnicodeError):
        return InputError(
            f"{key}: {repository.name!r} at revision {revision!r} is neither a local path that exists nor a "
            "name that the hub takes"
        )
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        return InputError(
            f"{key}: the disk is full, with {what} not whole; free some space in {repository.cache.parent}, "
            "or set HF_HOME to a folder on a larger disk, and run again, which goes on from there"
        )
    if status or _is_transport(error):
        reason = f"the hub ({_endpoint()}) {_fault(error, status)}"
        return HubUnreachable(f"{key}: {reason}, so that {what} cannot be had; run again later", reason)
    if isinstance(error, OSError):
        return InputError(f"{key}: {what} cannot be written to the cache ({error.strerror or error})")
    if isinstance(error, ValueError | KeyError | TypeError):  # an answer that is none of the hub's
        reason = f"the hub ({_endpoint()}) gives an answer that cannot be read ({_one_line(error)})"
        return HubUnreachable(f"{key}: {reason}, so that {what} cannot be had", reason)
    return error


def is_unanswered(error: BaseException) -> bool:
    """Whether an exception is about a hub that refuses or does not answer."""
    return getattr(error, "response", None) is not None or _is_transport(error)


def _is_transport(error):
    import httpx2

    return isinstance(error, httpx2.TransportError | httpx2.StreamError | ConnectionError | TimeoutError)


def _fault(error, status):
    import httpx2

    if status:
        return f"answers with status {status}"
    if isinstance(error, httpx2.ConnectError | ConnectionRefusedError):
        return f"cannot be reached ({_one_line(error)})"
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return f"did not answer within {_timeout():g} s"
    return f"broke off the connection ({_one_line(error)})"


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def _endpoint():
    from huggingface_hub import constants

    return constants.ENDPOINT


def _timeout():
    """Seconds without a byte after which the hub is taken not to answer: HF_HUB_DOWNLOAD_TIMEOUT."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


_is_set = threading.Event()


def _session():
    """The hub's HTTP client.

    Its own one waits for ever where a call sets no time-out, and half a minute for a hub that is not there.
    """
    from huggingface_hub import get_session, set_client_factory

    if not _is_set.is_set():
        set_client_factory(_make_client)
        _is_set.set()
    return get_session()


def _make_client():
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    class Client(httpx2.Client):
        """Asks twice for an answer. What it raises then is none of what the hub's library tries again."""

        def send(self, request, **options):
            try:
                return super().send(request, **options)
            except httpx2.TimeoutException as error:
                raise TimeoutError(_one_line(error)) from error
            except httpx2.TransportError:
                time.sleep(_PAUSE_SECONDS / 2)
            try:
                return super().send(request, **options)
            except httpx2.ConnectError as error:
                raise ConnectionRefusedError(_one_line(error)) from error
            except httpx2.TransportError as error:
                raise ConnectionError(_one_line(error)) from error

    return Client(event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=_timeout())


def _amount(number):
    """Bytes in words."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number / 1e3:.0f} kB"


def _duration(seconds):
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
