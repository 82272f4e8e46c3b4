"""A server on this machine that answers as a test tells it to, and notes what it was asked."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    payload: Any


@dataclass
class Reply:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0  # seconds between bytes
    cut: int = 0  # bytes that are announced and do not come

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> "Reply":
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json", **named})


@dataclass
class FakeServer:
    url: str
    asked: list[Asked]
    most_at_once: int = 0


@contextlib.contextmanager
def serving(answer: Callable[[Asked, int], Reply]) -> Iterator[FakeServer]:
    """Server whose n-th answer (from 0) is `answer(asked, n)`."""
    lock, now, ended = threading.Lock(), [0], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(self.path, dict(self.headers), json.loads(data or b"null"))
            with lock:
                number, _ = len(found.asked), found.asked.append(asked)
                now[0] += 1
                found.most_at_once = max(found.most_at_once, now[0])
            try:
                self.give(answer(asked, number))
            finally:
                with lock:
                    now[0] -= 1

        def give(self, reply: Reply) -> None:
            ended.wait(reply.delay)
            with contextlib.suppress(ConnectionError):
                self.send_response(reply.status)
                length = {"Content-Length": str(len(reply.body) + reply.cut)}
                for name, text in {**length, **reply.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                pieces = [reply.body] if not reply.drip else [bytes([each]) for each in reply.body]
                for piece in pieces:
                    self.wfile.write(piece)
                    ended.wait(reply.drip)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    found = FakeServer(f"http://127.0.0.1:{server.server_address[1]}", [])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
