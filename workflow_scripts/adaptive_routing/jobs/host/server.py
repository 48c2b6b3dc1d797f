"""The model host's server: does jobs one at a time, in the order they came, and keeps what they load."""

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
from pathlib import Path

from adaptive_routing.jobs.host import socket_folder
from adaptive_routing.jobs.script import Tee, exit_on_sigterm
from adaptive_routing.system.errors import HostError, InputError, OutputError


class Cancelled(BaseException):
    """The running job's client is gone. No `except Exception` takes it for a fault of the job."""


class Connection:
    """A client: its message, the way to answer it, and whether it is still there. A stream for `Tee`.

    The message is None where the client left without one: it asked only whether the host lives.
    """

    def __init__(self, client):
        self._socket = client
        self.message = None
        self.has_begun = False
        self.is_gone = threading.Event()
        lines = client.makefile("rb")
        with contextlib.suppress(OSError, ValueError):
            line = lines.readline()
            self.message = json.loads(line) if line.endswith(b"\n") else None
        threading.Thread(target=self._watch, args=(lines,), daemon=True).start()

    def _watch(self, lines):
        with contextlib.suppress(OSError), lines:
            lines.read()  # returns when the client closes
        self.is_gone.set()
        if not self.has_begun:
            self.close()  # the client may be waiting for that

    def send(self, kind, value=None):
        """Send one message; a client that is gone misses it."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({kind: value}).encode() + b"\n")

    def write(self, text):
        """Relay what the job prints."""
        self.send("stderr", text)

    def flush(self):
        """Nothing is held back."""

    def close(self):
        """End the conversation, and with it the thread that reads."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Server:
    """Does the jobs of a queue of connections.

    Attributes:
        jobs: all that may be asked for: functions (request, cache) by name.
        cache: what they load.
        content: hash of the model and the code that they are done with.
    """

    def __init__(self, jobs, cache_class, content, waiting):
        self.jobs = jobs
        self.cache = cache_class(before_batch=self.check)
        self.content = content
        self._waiting = waiting
        self._running = None

    def check(self):
        """Raise Cancelled where the running job's client is gone."""
        if self._running.is_gone.is_set():
            raise Cancelled

    def serve(self, idle_seconds):
        """Do jobs until one needs another host, none has come for so long, or one failed unforeseen.

        After such a failure the device may be beyond use: an error of CUDA stays until the process ends.
        """
        outcome = None
        while outcome != "failed":
            try:
                connection = self._waiting.get(timeout=idle_seconds)
            except queue.Empty:
                _log(f"idle for {idle_seconds:g} s")
                return
            if not connection.is_gone.is_set():
                if connection.message["content"] != self.content:
                    _log("a job needs another model, or other code")
                    return  # the connection closes with the process
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
        sys.stderr.streams.append(connection)
        try:
            self.jobs[connection.message["job"]](connection.message["request"], self.cache)
        except Cancelled:
            return "cancelled", None
        except (InputError, OutputError) as error:
            return "input_error", str(error)
        except HostError as error:
            print(f"error: {error}", file=sys.stderr)  # to the client as well
            return "failed", None
        except Exception:
            traceback.print_exc()  # to the client as well
            return "failed", None
        finally:
            sys.stderr.streams.remove(connection)
        return "done", None


def main(settings, jobs_module):
    """Serve the jobs of a module's `JOBS`, with its `Cache`, on the socket that was handed down."""
    exit_on_sigterm()
    faulthandler.enable()
    sys.stderr = Tee(sys.stderr)
    _log(f"started for process {settings['owner'][0]} ({time.strftime('%Y-%m-%d %H:%M:%S')})")
    waiting = queue.Queue()
    listener = socket.socket(fileno=settings["listener"])
    for work in (_end_with_parent, lambda: _accept(listener, waiting)):
        threading.Thread(target=work, daemon=True).start()
    try:
        module = importlib.import_module(jobs_module)
        Server(module.JOBS, module.Cache, settings["content"], waiting).serve(settings["idle_seconds"])
    except SystemExit:
        # With the workflow or with its parent, which removes the socket if it lives.
        with socket_folder.locked_folder():
            Path(listener.getsockname()).unlink(missing_ok=True)
        raise


def _accept(listener, waiting):
    while True:
        client, _ = listener.accept()
        connection = Connection(client)  # in turn: the client that started this host comes first
        if connection.message:
            waiting.put(connection)


def _end_with_parent():
    os.read(sys.stdin.fileno(), 1)  # nobody writes: it returns when the parent has died
    os.kill(os.getpid(), signal.SIGTERM)


def _log(text):
    print(f"model host {os.getpid()}: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), "adaptive_routing.jobs.model_jobs")
