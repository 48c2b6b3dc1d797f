"""Where jobs and their model host meet: a Unix socket in a folder that only its user can enter.

The folder is locked while something in it is looked for or made, so that two jobs start one host. It holds
the hosts' sockets and the GPUs' leases. The kernel releases what a process has when it dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
from pathlib import Path

from adaptive_routing.system.errors import HostError

MAX_PATH_BYTES = 103  # of a Unix socket: 104 with the final zero on macOS, 108 on Linux


@contextlib.contextmanager
def locked_folder():
    """Make the private folder where it is missing, lock it, and yield its path; remove it if empty.

    Raises:
        HostError: somebody else can enter what stands there.
    """
    path = _folder()
    handle = _lock(path)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
        os.close(handle)


def file_name(*values):
    """The name, without its suffix, of a file for certain GPUs, a workflow and a place, in this order."""
    return "-".join(map(short_hash, values))


def short_hash(value):
    """A hash of a JSON value, in 10 characters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def _folder():
    path = Path(tempfile.gettempdir(), f"adaptive_routing_{os.getuid()}")
    longest = path / f"{file_name(1, 2, 3)}.sock"
    return path if len(os.fsencode(longest)) <= MAX_PATH_BYTES else Path("/tmp", path.name)


def _lock(path):
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
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


def listen(path):
    """A listening socket at `path`; only under the lock."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def dial(path):
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


def hold(path):
    """Lock a file, made where it is missing; only under the folder's lock.

    Returns:
        Its descriptor, which keeps it locked until it is closed; None where another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(path):
    """Whether a living process has a socket or a lease; only under the lock. Removes what a dead one left."""
    if path.suffix == ".sock":
        connection = dial(path)
        if connection:
            connection.close()
        return connection is not None
    descriptor = hold(path)
    if descriptor is not None:
        path.unlink()
        os.close(descriptor)
    return descriptor is None


def sweep(folder):
    """Remove the sockets and leases of processes that died; only under the lock."""
    for path in list(folder.iterdir()):
        is_held(path)
