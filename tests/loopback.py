"""What servers on the loopback interface share: a thread that serves while the context holds."""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Self


class Loopback:
    """Context manager; ``url`` is where it answers, and ``stopped`` is set when it is over."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.stopped = threading.Event()
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{server.server_port}"

    def quiet(self) -> None:
        """Say nothing of clients that break off."""
        self._server.handle_error = lambda *connection: None  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
