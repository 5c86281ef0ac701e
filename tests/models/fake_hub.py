"""A hub on 127.0.0.1 that speaks what the client asks: a model's commit and files, and the files' bytes.

It can be told to break connections, to answer with errors, and to be as poor as some mirrors are.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

MODEL = "school/encoder"
SHA = "a1b2c3d4e5" * 4
WEIGHTS = bytes(range(256)) * 4000
"""1,024,000 bytes: many pieces of a connection."""
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "modules.json": b"[]",
    "1_Pooling/config.json": b"{}",
    "model.safetensors": WEIGHTS,
    # What nobody needs:
    "README.md": b"# Encoder",
    "pytorch_model.bin": b"\x80\x04pickle",
    "onnx/model.onnx": b"onnx",
    "model.fp16.safetensors": b"half",
    "openvino/model.safetensors": b"other",
}


@dataclass(frozen=True)
class Asked:
    path: str
    query: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """`reply` may answer a request itself; `cuts` are the bytes after which a file's next connections break."""

    def __init__(self) -> None:
        self.sha = SHA
        self.files = dict(FILES)
        self.revisions = {"main", SHA, "v1", "refs/pr/2"}
        self.asked: list[Asked] = []
        self.reply: Callable[[str], Reply | None] = lambda path: None
        self.cuts: dict[str, list[int]] = {}
        self.tampered: set[str] = set()
        self.tells_blobs = True
        self.tells_sizes = True
        self.serves_ranges = True
        self.large_files_at: str | None = None
        self.endpoint = ""

    def paths(self) -> list[str]:
        """The files that were asked for, in order."""
        return [
            asked.path.partition("/resolve/")[2].partition("/")[2] for asked in self.asked if "/resolve/" in asked.path
        ]

    def answer(self, asked: Asked) -> Reply:
        special = self.reply(asked.path)
        if special is not None:
            return special
        about = f"/api/models/{MODEL}"
        if asked.path == about or asked.path.startswith(f"{about}/revision/"):
            revision = asked.path.removeprefix(about).removeprefix("/revision/") or "main"
            return self._about() if revision in self.revisions else _error(404, "RevisionNotFound")
        path = asked.path.removeprefix(f"/{MODEL}/resolve/{self.sha}/")
        if path == asked.path:
            return _error(401, "RepoNotFound")
        return self._file(path, asked) if path in self.files else _error(404, "EntryNotFound")

    def _about(self) -> Reply:
        siblings: list[dict[str, Any]] = []
        for path, content in self.files.items():
            sibling: dict[str, Any] = {"rfilename": path}
            if self.tells_blobs:
                sibling |= {"size": len(content) if self.tells_sizes else None, "blobId": git_digest(content)}
                if is_large(path):
                    digest = hashlib.sha256(content).hexdigest()
                    sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        body = json.dumps({"id": MODEL, "sha": self.sha, "siblings": siblings, "tags": []})
        return Reply(200, body.encode(), {"Content-Type": "application/json"})

    def _file(self, path: str, asked: Asked) -> Reply:
        content = self.files[path]
        digest = hashlib.sha256(content).hexdigest() if is_large(path) else git_digest(content)
        headers = {"X-Repo-Commit": self.sha, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if self.large_files_at and is_large(path):
            moved = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": '"of-the-redirect"'}
            return Reply(302, b"", headers | moved | {"Location": f"{self.large_files_at}{asked.path}"})
        if path in self.tampered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        wanted = asked.headers.get("range", "")
        if not wanted or not self.serves_ranges:
            return Reply(200, content, headers)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return Reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        return Reply(
            206, content[start:], headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        )


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".onnx"))


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _error(status: int, code: str) -> Reply:
    return Reply(status, b'{"error": "no"}', {"X-Error-Code": code, "X-HF-Warning": "topic; advice nobody asked for"})


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """`hub` at an address of this machine, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = Asked(unquote(parts.path), parts.query, {k.lower(): v for k, v in self.headers.items()})
            hub.asked.append(asked)
            reply = hub.answer(asked)
            cuts = hub.cuts.get(asked.path.rpartition("/")[2], []) if reply.status in (200, 206) else []
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: cuts.pop(0)] if cuts else reply.body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hung up is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join(timeout=10)


@contextmanager
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails the test if anything is contacted but 127.0.0.1, and leaves no connection of the client behind."""
    from huggingface_hub import close_session

    others: list[object] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_INET and address[0] == "127.0.0.1":
            connect(self, address)
            return
        others.append(address)
        raise ConnectionRefusedError(f"a test may not contact {address}")

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1"):
            others.append(host)
            raise socket.gaierror(f"a test may not look up {host}")
        return look_up(host, *arguments, **options)

    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    close_session()
    yield
    close_session()
    assert others == []
