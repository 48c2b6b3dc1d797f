"""Where jobs and their model host meet: a Unix socket in a folder that only its user can enter.

The folder is locked while a host is started or withdraws, so that two jobs start one host. The kernel
releases the lock of a process that dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from adaptive_routing.system.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PATH_BYTES = 103  # of a Unix socket: 104 with the final zero on macOS, 108 on Linux


@contextlib.contextmanager
def locked_folder() -> Iterator[Path]:
    """Make the private folder where it is missing, lock it, and yield its path; remove it if empty.

    Raises:
        HostError: it cannot be made, or somebody else can enter what stands there.
    """
    path = _folder()
    handle = _lock(path)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
        os.close(handle)


def socket_name(place: str, content: str) -> str:
    """The file name of a host's socket, from hashes of where it runs and for whom, and of what it runs."""
    return f"{place}-{content}.sock"


def _folder():
    name = f"adaptive_routing_{os.getuid()}"
    path = Path(tempfile.gettempdir(), name)
    longest = path / socket_name("0" * 10, "0" * 10)
    return path if len(os.fsencode(longest)) <= MAX_PATH_BYTES else Path("/tmp", name)


def _lock(path):
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        except OSError as error:
            raise HostError(
                f"{path} cannot be made ({error.strerror}); set TMPDIR to a folder that can be written to"
            ) from error
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed by the one before
            continue
        except OSError as error:
            raise HostError(f"{path} is no folder of yours ({error.strerror}); remove it") from error
        try:
            _check_private(path, os.fstat(handle))
            fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.lstat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _check_private(path, status):
    mode = stat.S_IMODE(status.st_mode)
    others = stat.S_IRWXG | stat.S_IRWXO
    if status.st_uid != os.getuid():
        raise HostError(
            f"{path} belongs to user {status.st_uid}, not to you; set TMPDIR to a folder of yours"
        )
    if mode & others:
        raise HostError(
            f"{path} has mode {mode:o}; it must be 700, for you alone: make it so with chmod, or remove it"
        )


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`; only under the lock."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def dial(path: Path) -> socket.socket | None:
    """A connection to the host at `path`, or None; only under the lock. Removes a dead host's socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
        return connection
    except OSError as error:
        connection.close()
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise
        path.unlink(missing_ok=True)
        return None


def adopt(waiting: Path, path: Path) -> None:
    """Give a host that was started early the name that its first job asks for; only under the lock."""
    if connection := dial(waiting):
        connection.close()
        waiting.rename(path)


def predecessors(own: int) -> list[socket.socket]:
    """Connections to the hosts that stand in the same place and were there before.

    own: the number (inode) of the host's socket, whose name may change.
    """
    with locked_folder() as folder:
        path = _path(folder, own)
        if path is None:
            return []
        others = [one for one in folder.glob(f"{path.name.split('-')[0]}-*.sock") if one != path]
        earlier = [one for one in others if one.stat().st_mtime_ns < path.stat().st_mtime_ns]
        return list(filter(None, map(dial, earlier)))


def withdraw(own: int) -> None:
    """Remove the host's socket, given by its number: no job finds it any more."""
    with locked_folder() as folder:
        if path := _path(folder, own):
            path.unlink()


def _path(folder, number):
    return next((path for path in folder.glob("*.sock") if path.stat().st_ino == number), None)


def sweep(folder: Path) -> None:
    """Remove the sockets of hosts that died; only under the lock."""
    for path in folder.glob("*.sock"):
        if connection := dial(path):
            connection.close()
