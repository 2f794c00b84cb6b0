"""A stand-in for the Hugging Face Hub, and for any other web server, on the loopback interface, with their faults.

    with HubServer() as hub:
        hub.add("owner/repo", "file.safetensors", data)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

Serves HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE as the Hub does (commit, LFS hash and size in
headers, ranges) and, as any web server, of /OWNER/REPO/FILE. The attributes of a file switch its faults on.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class File:
    """One file on the server: what it is said to be, what is sent, and what goes wrong."""

    data: bytes
    etag: str  # what the Hub states: the SHA-256 for LFS files, a git hash (40 digits) for others
    status: int | None = None  # answer every request with this error
    failures: list[int] = field(default_factory=list)  # answer the next requests with these errors, then as it should
    headers: tuple[tuple[str, str], ...] = ()  # added to every answer, as ("Retry-After", "1")
    redirect: str | None = None  # send every GET there
    sent: bytes | None = None  # other bytes than the stated ones
    tag: str | None = None  # the ETag header of a GET, quotes included, if not the quoted etag; empty for none
    ranges: bool = True  # whether Range is heard...
    careless: bool = False  # ...even if If-Range names another version
    chunked: bool = False  # do not tell the length
    delay: float = 0.0  # seconds before a GET is answered
    cut_after: int | None = None  # close the connection after that many bytes of a GET...
    cuts: int = 1  # ...that many times
    fault: str = "close"  # how it is cut: "close", "reset" (like a crash) or "stall" (silence until the server stops)


class HubServer:
    """Context manager; ``url`` is the endpoint, ``requests`` what was asked, as (method, path, range).

    ``headers`` holds the headers of the same requests, by lower-case names.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], File] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repo: str, name: str, data: bytes, *, lfs: bool = True) -> File:
        etag = hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(data).hexdigest()
        self.files[repo, name] = file = File(data, etag)
        return file

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _, _ in self.requests)

    def ranges(self) -> list[str | None]:
        """The Range of each GET."""
        return [span for method, _, span in self.requests if method == "GET"]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _find(self) -> File | None:
        path = self.path.partition("?")[0].lstrip("/")
        match = re.fullmatch(r"([^/]+/[^/]+)/(?:resolve/[^/]+/)?(.+)", path)
        return self.hub.files.get((match[1], match[2])) if match else None

    def _answer(self, *, body: bool) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.hub.headers.append({name.lower(): value for name, value in self.headers.items()})
        file = self._find()
        if file is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self._finish(None, b"", body)
        elif file.failures or file.status:
            self.send_response(file.failures.pop(0) if file.failures else file.status or 500)
            self._finish(file, b"", body)
        elif file.redirect is not None and body:
            self.send_response(302)
            self.send_header("Location", file.redirect)
            self._finish(file, b"", body)
        else:
            self._send(file, body)

    def _send(self, file: File, body: bool) -> None:
        if body and file.delay:
            threading.Event().wait(file.delay)
        data = file.data if file.sent is None else file.sent
        tag = f'"{file.etag}"' if file.tag is None else file.tag
        span = re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) if file.ranges else None
        if not file.careless and self.headers.get("If-Range", tag) != tag:
            span = None
        start = int(span[1]) if span else 0
        if span and start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self._finish(file, b"", body)
            return
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", COMMIT)
        if tag:
            self.send_header("ETag", tag)
        if len(file.etag) == 64:
            self.send_header("X-Linked-Etag", f'"{file.etag}"')
            self.send_header("X-Linked-Size", str(len(file.data)))
        self.send_header("Accept-Ranges", "bytes")
        self._finish(file, data[start:], body)

    def _finish(self, file: File | None, data: bytes, body: bool) -> None:
        for name, value in file.headers if file else ():
            self.send_header(name, value)
        if file and file.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if file and file.cut_after is not None and file.cuts > 0 and len(data) > file.cut_after:
            file.cuts -= 1
            self._write(data[: file.cut_after], file.chunked)
            self._break_off(file.fault)
            return
        self._write(data, bool(file and file.chunked))
        if file and file.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, data: bytes, chunked: bool) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked and data else data)

    def _break_off(self, fault: str) -> None:
        self.close_connection = True
        if fault == "stall":
            self.hub.stopped.wait(60)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
