"""A stand-in for the Hugging Face hub on loopback: repositories, their commits and files, and their faults.

It answers what `huggingface_hub` asks: `/api/{models,datasets}/{name}/revision/{revision}`,
`/tree/{revision}`, and `/{name}/resolve/{revision}/{path}` with ranges. Files with a suffix in `LARGE` are
said to be stored as large ones, named by their SHA-256.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".jsonl")


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def is_large(path):
    return path.endswith(LARGE)


def blob_name(path, content):
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_sha1(content)


@dataclass
class Faults:
    """What goes wrong from now on; nothing at first."""

    status: dict = field(default_factory=dict)  # (status, error code) by repository's name
    wrong_bit: set = field(default_factory=set)  # paths that are served with a bit that is not theirs
    cut_after: int | None = None  # bytes of a large file after which the connection ends, each time
    stall_after: int | None = None  # bytes of a large file after which nothing more comes
    reset_after: int | None = None  # bytes of a large file after which the connection is reset; 0 resets all
    ignores_ranges: bool = False  # a part of a file is answered with all of it
    gated: bool = False  # files are listed, and refused
    is_silent: bool = False  # accepts, and never answers
    bytes_per_second: float | None = None


class HubServer:
    """A hub with repositories; a context manager. `url` is for HF_ENDPOINT."""

    def __init__(self):
        self.commits = {}  # {(kind, name): {commit: {path: content}}}, the last one is main
        self.refs = {}  # {(kind, name): {branch or tag: commit}}
        self.faults = Faults()
        self.requests = []  # (method, path, range)
        self.is_closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.close()

    def be_asked(self, monkeypatch, folder, timeout=1):
        """Have this process ask this hub, with empty caches in a folder."""
        url = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        constants = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url,
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_DOWNLOAD_TIMEOUT": timeout,
            "HF_HUB_OFFLINE": False,
        }
        for key, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", self.url)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")

    def close(self):
        """Be gone: connections are refused from now on."""
        if not self.is_closing.is_set():
            self.is_closing.set()
            self.server.shutdown()
            self.server.server_close()

    def commit(self, kind, name, files, *tags):
        """Add a commit of these files, {path: bytes}, which becomes main; returns its hash."""
        text = repr((kind, name, sorted(files.items()), len(self.commits.get((kind, name), ()))))
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits.setdefault((kind, name), {})[commit] = files
        self.refs.setdefault((kind, name), {}).update(dict.fromkeys(("main", *tags), commit))
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self):
        if self.hub.is_closing.is_set():
            self.close_connection = True
            return
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.hub.faults.is_silent:
            self.hub.is_closing.wait(60)
            self.close_connection = True
            return
        if self.hub.faults.reset_after == 0:
            self.reset()
            return
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(.*))?", path):
            self.answer_api(match[1], match[2], match[3] or "")
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.answer_file("dataset" if match[1] else "model", *match.groups()[1:])
        else:
            self.say(404, {"error": "no such page"})

    def reset(self):
        """End the connection as a machine does that knows nothing of it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        for stream in (self.wfile, self.rfile, self.connection):
            stream.close()

    def find(self, kind, name, revision):
        """The commit and its files; None where an error has been answered."""
        status, code = self.hub.faults.status.get(name, (404, "RepoNotFound"))
        if (kind, name) not in self.hub.commits or name in self.hub.faults.status:
            self.say(status, {"error": code}, {"X-Error-Code": code} if code else {})
            return None
        commits = self.hub.commits[kind, name]
        commit = self.hub.refs[kind, name].get(revision, revision)
        if commit not in commits:
            self.say(404, {"error": f"no {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, commits[commit]

    def answer_api(self, kind, name, rest):
        action, _, rest = rest.partition("/")
        revision, _, folder = rest.partition("/")
        found = self.find(kind, name, revision or "main")
        if found is None:
            return
        commit, files = found
        if action in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            self.say(200, {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        elif action == "tree":
            self.say(200, self.tree(files, folder, "recursive=true" in self.path.lower()))
        elif action == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths") or json.loads(self.body).get("paths", [])
            self.say(200, [one for one in self.tree(files, "", True) if one["path"] in wanted])
        else:
            self.say(404, {"error": "no such page"})

    def tree(self, files, folder, recursive):
        prefix = f"{folder}/" if folder else ""
        listed, folders = [], set()
        for path, content in files.items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            folders |= {prefix + "/".join(parts[:i]) for i in range(1, len(parts) if recursive else 2)}
            if len(parts) > 1 and not recursive:
                continue
            folders.discard(path)
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if is_large(path):
                entry["lfs"] = {"oid": blob_name(path, content), "size": len(content), "pointerSize": 130}
            listed.append(entry)
        return listed + [{"type": "directory", "path": one, "size": 0, "oid": "0" * 40} for one in folders]

    def answer_file(self, kind, name, revision, path):
        found = self.find(kind, name, revision)
        if found is None:
            return
        commit, files = found
        if self.hub.faults.gated and self.command != "HEAD":
            self.say(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return
        if path not in files:
            self.say(404, {"error": f"no {path}"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_name(path, content)}"', "Accept-Ranges": "bytes"}
        if is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        if path in self.hub.faults.wrong_bit:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted and not self.hub.faults.ignores_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1 if last else len(content)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content, status = content[start:stop], 206
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.send_content(content, start, is_large(path))

    def send_content(self, content, start, large):
        faults, step = self.hub.faults, 1 << 14
        for at in range(0, len(content), step):
            sent = start + at
            if large and faults.cut_after is not None and sent >= faults.cut_after:
                self.close_connection = True
                return
            if large and faults.stall_after is not None and sent >= faults.stall_after:
                self.hub.is_closing.wait(60)
                self.close_connection = True
                return
            if large and faults.reset_after is not None and at >= faults.reset_after:
                time.sleep(0.05)  # what was sent arrives
                self.reset()
                return
            try:
                self.wfile.write(content[at : at + step])
            except OSError:  # who asked is gone
                self.close_connection = True
                return
            if large and faults.bytes_per_second:
                time.sleep(step / faults.bytes_per_second)

    def say(self, status, value, headers=()):
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, one in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(key, one)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
