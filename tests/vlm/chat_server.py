"""A stand-in for a server with OpenAI's interface, on the loopback interface, with the faults of real ones.

    with ChatServer() as server:
        server.replies = lambda i, body: Reply(status=500) if i == 0 else Reply(said("a harbour"))

Without ``replies`` the answer is the prompt.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.loopback import Loopback


@dataclass
class Reply:
    """What is sent, and what goes wrong."""

    body: Any = b""  # as it is, or a value for JSON
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # seconds before it is sent
    cut_after: int | None = None  # bytes of the body after which the connection is reset


def said(text: str | None, reason: str = "stop") -> dict[str, Any]:
    """An answer in one piece."""
    message = {"role": "assistant", "content": text}
    return {"model": "tiny", "choices": [{"index": 0, "message": message, "finish_reason": reason}]}


def streamed(*texts: str, reason: str = "stop") -> Reply:
    """The same piece by piece."""
    deltas = [({"role": "assistant"}, None), *(({"content": text}, None) for text in texts), ({}, reason)]
    events = [
        {"model": "tiny", "choices": [{"index": 0, "delta": delta, "finish_reason": ended}]} for delta, ended in deltas
    ]
    lines = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return Reply("".join([*lines, "data: [DONE]\n\n"]).encode(), kind="text/event-stream; charset=utf-8")


class ChatServer(Loopback):
    """Context manager; ``bodies`` and ``headers`` (lower-case names) are of the requests, in their order.

    ``most`` is how many there were at once.
    """

    def __init__(self, replies: Callable[[int, dict[str, Any]], Reply] | None = None) -> None:
        self.replies = replies or (lambda i, body: Reply(said(prompt_of(body))))
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        super().__init__(_Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"chat": self})))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def prompt_of(body: dict[str, Any]) -> str:
    """The words of a question."""
    return body["messages"][0]["content"][-1]["text"]


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.chat.lock:
            number = len(self.chat.bodies)
            self.chat.paths.append(self.path)
            self.chat.bodies.append(body)
            self.chat.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.chat.now += 1
            self.chat.most = max(self.chat.most, self.chat.now)
        try:
            self._send(self.chat.replies(number, body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # whoever asked has gone
        finally:
            with self.chat.lock:
                self.chat.now -= 1

    def _send(self, reply: Reply) -> None:
        self.chat.stopped.wait(reply.delay)
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.kind, "Content-Length": str(len(data)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: reply.cut_after])
        if reply.cut_after is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
