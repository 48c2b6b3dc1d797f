"""The model host's server: does jobs one at a time, in the order they came, and keeps what they load."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from adaptive_routing.jobs.host import gpus, socket_folder
from adaptive_routing.jobs.script import Tee, exit_on_sigterm
from adaptive_routing.system.errors import HostError, InputError, OutputError, lack_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Cancelled(BaseException):
    """The running job's client is gone. No `except Exception` takes it for a fault of the job."""


class Connection:
    """A client: its message, the way to answer it, and whether it is still there. A stream for `Tee`."""

    def __init__(self, client: socket.socket, waiting: queue.Queue[Connection]) -> None:
        self._socket = client
        self.message: Any = None
        self.has_begun = False
        self.is_gone = threading.Event()
        threading.Thread(target=self._read, args=(waiting,), daemon=True).start()

    def _read(self, waiting):
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            line = lines.readline()
            if line.endswith(b"\n"):
                self.message = json.loads(line)
                waiting.put(self)
                lines.read()  # returns when the client closes
        self.is_gone.set()
        if not self.has_begun:
            self.close()  # the client may be waiting for that

    def send(self, kind: str, value: object = None) -> None:
        """Send one message; a client that is gone misses it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({kind: value}).encode() + b"\n")

    def write(self, text: str) -> None:
        """Relay what the job prints."""
        self.send("stderr", text)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """End the conversation, and with it the thread that reads."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Server:
    """Does the jobs of a queue of connections.

    Attributes:
        jobs: all that may be asked for: functions (request, cache) by name.
        cache: what they load.
    """

    def __init__(
        self,
        jobs: Mapping[str, Callable[..., None]],
        cache_class: Callable[..., Any],
        waiting: queue.Queue[Connection],
    ) -> None:
        self.jobs = jobs
        self.cache = cache_class(check=self.check)
        self._waiting = waiting
        self._running: Any = None

    def check(self) -> None:
        """Raise Cancelled where the running job's client is gone."""
        if self._running.is_gone.is_set():
            raise Cancelled

    def serve(self, idle_seconds: float) -> None:
        """Do jobs until another host takes over, none has come for so long, or one failed unforeseen.

        After such a failure the device may be beyond use: an error of CUDA stays until the process ends.
        """
        outcome = None
        while outcome != "failed":
            try:
                connection = self._waiting.get(timeout=idle_seconds)
            except queue.Empty:
                _log(f"idle for {idle_seconds:g} s")
                return
            if "retire" in connection.message:
                _log("another host takes over")
                return  # the connection closes with the process
            if not connection.is_gone.is_set():
                started = time.perf_counter()
                outcome, value = self._do(connection)
                seconds = time.perf_counter() - started
                _log(f"{connection.message['job']}: {outcome} in {seconds:.2f} s")
                connection.send(outcome, value)
            connection.close()

    def _do(self, connection):
        """Do a client's job and return the answer: its kind and value."""
        connection.has_begun = True
        connection.send("begun", os.getpid())
        self._running = connection
        sys.stderr.streams.append(connection)  # ty: ignore[missing-union-attribute]
        try:
            self.jobs[connection.message["job"]](connection.message["request"], self.cache)
        except Cancelled:
            return "cancelled", None
        except (InputError, OutputError) as error:
            return "input_error", str(error)
        except HostError as error:
            print(f"error: {error}", file=sys.stderr)  # to the client as well
            return "failed", None
        except Exception as error:
            if sentence := lack_of_memory(error):
                print(f"error: {sentence}", file=sys.stderr)
            else:
                traceback.print_exc()  # to the client as well
            return "failed", None
        finally:
            sys.stderr.flush()
            sys.stderr.streams.remove(connection)  # ty: ignore[missing-union-attribute]
        return "done", None


def main(settings: Mapping[str, Any], jobs_module: str) -> None:
    """Serve a module's `JOBS`, with its `Cache`, on the socket that was handed down.

    Libraries are imported before the first job comes, by its `import_libraries`.
    """
    exit_on_sigterm()
    faulthandler.enable()
    sys.stderr = Tee(sys.stderr)
    _log(f"started for process {settings['owner'][0]} ({time.strftime('%Y-%m-%d %H:%M:%S')})")
    waiting = queue.Queue()
    listener = socket.socket(fileno=settings["listener"])
    for work in (_end_with_parent, lambda: _accept(listener, waiting)):
        threading.Thread(target=work, daemon=True).start()
    try:
        _take_over(settings["number"])
        with gpus.claimed_gpus(settings["owner"], settings["gpus"]):
            module = importlib.import_module(jobs_module)
            module.import_libraries()
            Server(module.JOBS, module.Cache, waiting).serve(settings["idle_seconds"])
    finally:
        socket_folder.withdraw(settings["number"])


def _accept(listener, waiting):
    while True:
        client, _ = listener.accept()
        Connection(client, waiting)


def _take_over(number):
    """Wait for the host before this one to finish its jobs and end: a device may not hold two models."""
    for connection in socket_folder.predecessors(number):
        with connection, contextlib.suppress(OSError):
            connection.sendall(json.dumps({"retire": None}).encode() + b"\n")
            while connection.recv(1):
                pass


def _end_with_parent():
    os.read(sys.stdin.fileno(), 1)  # nobody writes: it returns when the parent has died
    os.kill(os.getpid(), signal.SIGTERM)


def _log(text):
    print(f"model host {os.getpid()}: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), "adaptive_routing.jobs.model_jobs")
