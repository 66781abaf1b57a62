"""A server on the loopback whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, dict[str, Any] | None], "dict[str, Any] | tuple[int, dict[str, Any] | bytes, dict[str, str]]"]
"""From path and body to what is answered: a JSON object, or status, content and headers."""


@dataclass
class StandIn:
    """What was asked, and where.

    Attributes:
        url: Base address.
        asked: Path, body and headers of each request, in the order of arrival.
    """

    url: str
    asked: list[tuple[str, dict[str, Any] | None, dict[str, str]]] = field(default_factory=list)


@contextmanager
def stand_in(answer: Answer, port: int = 0) -> Iterator[StandIn]:
    """Serves until the block ends, at a free port where none is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            served.asked.append((self.path, body, dict(self.headers)))
            given = answer(self.path, body)
            status, content, headers = given if isinstance(given, tuple) else (200, given, {})
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            with suppress(OSError):  # who has asked may be gone
                self.end_headers()
                self.wfile.write(raw)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256  # connections that come at once

    server = Server(("127.0.0.1", port), Handler)
    served = StandIn(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
