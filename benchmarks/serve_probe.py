"""A server in a process of its own, and clients that speak to it byte by byte, for benchmarks of serving."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
_PROGRAM = "import sys; from lightgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
_PAGE = os.sysconf("SC_PAGE_SIZE")
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
TROUBLE = re.compile(r"Traceback|Error:|Exception|CRITICAL")


@dataclass
class Server:
    """A running server.

    Attributes:
        port: where it listens on this machine.
        pid: of its process.
        log: file of what it says.
        key: that it knows, if it knows any.
    """

    port: int
    pid: int
    log: Path
    key: str | None = None

    def memory_mb(self) -> float:
        """MiB of the process that are in RAM."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE / 2**20

    def num_files(self) -> int:
        """Open descriptors of the process."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def metrics(self) -> dict[str, float]:
        """Values by `name{labels}`, without the namespace."""
        told = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=told)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return read_metrics(answer.read().decode())

    def troubles(self) -> list[str]:
        """Lines of the log that tell of an exception."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if TROUBLE.search(line)]


class MemoryWatch:
    """Context that notes every second how much memory a server has.

    Attributes:
        rows: (seconds since the start, MiB).
    """

    def __init__(self, server: Server) -> None:
        self.rows: list[tuple[float, float]] = []
        self._server = server

    async def __aenter__(self) -> Self:
        """Begin."""
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *error: object) -> None:
        """End."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        start = time.perf_counter()
        while True:
            self.rows.append((round(time.perf_counter() - start, 1), round(self._server.memory_mb(), 1)))
            await asyncio.sleep(1.0)


def read_metrics(text: str) -> dict[str, float]:
    """Values by `name{labels}` of Prometheus' text, without the namespace."""
    rows = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name.removeprefix("lightgen_"): float(value) for name, _, value in rows}


@contextlib.contextmanager
def serving(*options: str, model: str = "nano", keys: Sequence[str] = ()) -> Iterator[Server]:
    """A server that is ready; it is told to end afterwards, and has to within a minute."""
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log", free_port()
        if keys:
            path = Path(folder) / "keys"
            path.write_text("\n".join(keys))
            options = (*options, "--api-key-file", str(path))
        command = [sys.executable, "-c", _PROGRAM, "serve", "--model", model, "--port", str(port), *options]
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            _await_ready(port, process, log)
            yield Server(port, process.pid, log, keys[0] if keys else None)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()
                told = log.read_text(errors="replace")
                if TROUBLE.search(told):
                    sys.stderr.write(f"the server's log ends with\n{told[-6000:]}\n")


def _await_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
            return
        time.sleep(0.2)
    raise SystemExit(f"the server did not come up:\n{log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Answer:
    """What came back; status 0 = the connection was closed without an answer."""

    status: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def is_refusal(self) -> bool:
        """Whether the server has no room for it."""
        return self.status in (429, 503)


def raw_request(
    path: str,
    body: bytes,
    content_type: str = "application/json",
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Bytes of a POST after which the connection ends."""
    told = {"Host": "127.0.0.1", "Connection": "close", "Content-Type": content_type}
    told |= {"Content-Length": str(len(body)), **(headers or {})}
    if key:
        told["Authorization"] = f"Bearer {key}"
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogatepass") + body


async def send(port: int, data: bytes, timeout_s: float = 120.0) -> Answer:
    """Answer to bytes on a connection of their own."""
    start, received = time.perf_counter(), b""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        try:
            async with asyncio.timeout(timeout_s):
                writer.write(data)
                with contextlib.suppress(ConnectionError):  # an early answer is an answer
                    await writer.drain()
                while chunk := await reader.read(2**18):
                    received += chunk
        finally:
            writer.transport.abort()
    return read_answer(received, time.perf_counter() - start)


def read_answer(received: bytes, seconds: float) -> Answer:
    """Answer of all bytes that came."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        return Answer(0, seconds, body=received)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), seconds, headers, body)


def json_request(path: str, key: str | None = None, **values: Any) -> bytes:  # noqa: ANN401
    """Bytes of a POST of JSON."""
    return raw_request(path, json.dumps(values).encode(), key=key)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Smallest value that a share of them is not above; None of none."""
    ranked = sorted(values)
    return round(ranked[max(0, -(-int(share * 1000) * len(ranked) // 1000) - 1)], 4) if ranked else None
