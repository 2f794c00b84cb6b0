"""A stand-in for the Hugging Face Hub on the loopback interface, with its faults.

    with HubServer() as hub:
        hub.add("owner/repo", "file.safetensors", data)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

Serves HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE as the Hub does (commit, LFS hash and size in
headers, ranges) and, for mirrors, /OWNER/REPO/FILE. The attributes of a file switch its faults on.
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class File:
    """One file on the server: what it is said to be, what is sent, and what goes wrong."""

    data: bytes
    etag: str  # what the Hub states: the SHA-256 for LFS files, a git hash (40 digits) for others
    status: int | None = None  # answer every request with this error
    headers: tuple[tuple[str, str], ...] = ()  # added to every answer, as ("Retry-After", "1")
    cut_after: int | None = None  # close the connection after that many bytes of a GET...
    cuts: int = 1  # ...that many times
    sent: bytes | None = None  # other bytes than the stated ones
    delay: float = 0.0  # seconds before a GET is answered


class HubServer:
    """Context manager; ``url`` is the endpoint, ``requests`` what was asked, as (method, path, range)."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], File] = {}
        self.requests: list[tuple[str, str, str | None]] = []
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

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        asked = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, asked))
        file = self._find()
        status = 404 if file is None else file.status
        if file is None or status is not None:
            self.send_response(status or 404)
            if file is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self._finish(file, b"", body)
            return
        if body and file.delay:
            threading.Event().wait(file.delay)
        data = file.data if file.sent is None else file.sent
        start = int(match[1]) if asked and (match := re.match(r"bytes=(\d+)-", asked)) else 0
        if start >= len(data) > 0:
            self.send_response(416)
            self._finish(file, b"", body)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{file.etag}"')
        if len(file.etag) == 64:
            self.send_header("X-Linked-Etag", f'"{file.etag}"')
            self.send_header("X-Linked-Size", str(len(file.data)))
        self.send_header("Accept-Ranges", "bytes")
        self._finish(file, data[start:], body)

    def _finish(self, file: File | None, data: bytes, body: bool) -> None:
        for name, value in file.headers if file else ():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if file and file.cut_after is not None and file.cuts > 0 and len(data) > file.cut_after:
            file.cuts -= 1
            self.wfile.write(data[: file.cut_after])
            self.close_connection = True
            return
        self.wfile.write(data)
