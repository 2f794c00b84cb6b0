"""A stand-in for the Hugging Face Hub, and for any other web server, on the loopback interface, with their faults.

    with HubServer() as hub:
        hub.add("owner/repo", "file.safetensors", data)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

Serves HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE as the Hub does (commit, LFS hash and size in
headers, ranges) and, as any web server, of /OWNER/REPO/FILE. The attributes of a file switch its faults on.
What huggingface_hub's upload_folder asks is answered too, and what it sends becomes files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.loopback import Loopback

if TYPE_CHECKING:
    import pytest

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
    lasts: float = 0.0  # seconds that it takes to send the whole, in 32 pieces
    cut_after: int | None = None  # close the connection after that many bytes of a GET...
    cuts: int = 1  # ...that many times
    commit: str | None = None  # of the revision that it is in; None: the server's
    fault: str = "close"  # how it is cut: "close", "reset" (like a crash) or "stall" (silence until the server stops)


class HubServer(Loopback):
    """Context manager; ``url`` is the endpoint, ``requests`` what was asked, as (method, path, range).

    ``headers`` holds the headers of the same requests, by lower-case names, ``posted`` what came by POST, as JSON, and
    ``commit`` is that of the main branch.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], File] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.headers: list[dict[str, str]] = []
        self.posted: list[tuple[str, Any]] = []
        self.commit = COMMIT
        self.made: set[str] = set()  # repositories and, as REPO@BRANCH, branches that were asked for by POST
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        super().__init__(server)

    def add(self, repo: str, name: str, data: bytes, *, lfs: bool = True, revision: str = "main") -> File:
        """A file of a branch, which is there by the branch's commit too, or of a commit (40 digits)."""
        etag = hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(data).hexdigest()
        file = File(data, etag)
        if revision == "main":
            self.files[repo, name] = file
        else:
            file.commit = commit_of(revision)
            for place in (revision, file.commit):
                self.files[f"{repo}@{place}", name] = file
        return file

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> HubServer:
        """Be the Hub of this process; huggingface_hub read its environment when it was imported."""
        # not before: tests/pages.py sets the environment that it reads
        from huggingface_hub import constants, file_download

        monkeypatch.setenv("HF_ENDPOINT", self.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, self.url)
        for module in (constants, file_download):  # before 1.0 the latter has its own
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        return self

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _, _ in self.requests)

    def ranges(self) -> list[str | None]:
        """The Range of each GET."""
        return [span for method, _, span in self.requests if method == "GET"]


def commit_of(branch: str) -> str:
    """The commit that a branch other than the main one points to; a commit's is itself."""
    return branch if re.fullmatch("[0-9a-f]{40}", branch) else hashlib.sha1(branch.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        lines = [json.loads(line) for line in body.splitlines()]
        self.hub.posted += [(self.path, line) for line in lines]
        answer: dict[str, Any] = {"errors": [], "warnings": []}  # of a card's front matter
        if self.path == "/api/repos/create":
            repo = f"{lines[0].get('organization', 'me')}/{lines[0]['name']}"
            self.hub.made.add(repo)
            answer = {"url": f"{self.hub.url}/{repo}"}
        elif "/branch/" in self.path:
            self.hub.made.add(self.path.removeprefix("/api/models/").replace("/branch/", "@"))
        elif "/preupload/" in self.path:
            files = [file["path"] for file in lines[0]["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]}
        elif "/commit/" in self.path:
            repo, _, revision = self.path.removeprefix("/api/models/").partition("/commit/")
            sent = [line["value"] for line in lines if line["key"] == "file"]
            for file in sent:
                self.hub.add(repo, file["path"], base64.b64decode(file["content"]), lfs=False, revision=revision)
            commit = self.hub.commit if revision == "main" else commit_of(revision)
            answer = {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit}
        self._json(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _find(self) -> File | str:
        """The file that is asked for, or the Hub's word for what is missing."""
        path = self.path.partition("?")[0].lstrip("/")
        match = re.fullmatch(r"([^/]+/[^/]+)/(?:resolve/([^/]+)/)?(.+)", path)
        repo, revision, name = match.groups() if match else ("", None, "")
        place = repo if revision in (None, "main", self.hub.commit) else f"{repo}@{revision}"
        known = {known for known, _ in self.hub.files}
        if revision and repo not in {one.partition("@")[0] for one in known}:
            return "RepoNotFound"
        if revision and place not in known:
            return "RevisionNotFound"
        return self.hub.files.get((place, name), "EntryNotFound")

    def _note(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.hub.headers.append({name.lower(): value for name, value in self.headers.items()})

    def _json(self, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, *, body: bool) -> None:
        self._note()
        if asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?(?:[?].*)?", self.path):
            # transformers 5 asks once for the commit of a revision
            repo, revision = asked.groups()
            main = revision in (None, "main", self.hub.commit)
            place = repo if main else f"{repo}@{revision}"
            if place in self.hub.made or any(known == place for known, _ in self.hub.files):
                self._json({"id": repo, "sha": self.hub.commit if main else commit_of(revision), "siblings": []})
                return
        file = self._find()
        if isinstance(file, str):
            self.send_response(404)
            self.send_header("X-Error-Code", file)
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
        self.send_header("X-Repo-Commit", file.commit or self.hub.commit)
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
        step = max(1, len(file.data) // 32) if file and file.lasts else len(data) or 1
        for start in range(0, len(data), step):
            threading.Event().wait(file.lasts / 32 if file else 0)
            self._write(data[start : start + step], bool(file and file.chunked))
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
