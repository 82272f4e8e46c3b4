"""Connections that are slow, idle, too many, or no HTTP: they end, and others do not notice."""

import contextlib
import logging
import socket
import time

import httpx
import pytest

from lightgen.serve.config import ConnectionConfig, LimitConfig, ServeConfig
from tests.serve.served import EDITS, GENERATIONS, served

QUICK = ConnectionConfig(
    header_timeout_s=0.4, body_timeout_s=0.6, idle_timeout_s=0.5, max_header_bytes=2048, max_connections=20
)
ASKED = {"prompt": "a red apple"}


@pytest.fixture(scope="module")
def site():
    config = ServeConfig(connections=QUICK, limits=LimitConfig(max_body_bytes=100_000), drain_s=5)
    with served(config=config) as found:
        yield found


def connected(site):
    return socket.create_connection(("127.0.0.1", site.port), timeout=5)


def seconds_until_closed(connection, trickle=b""):
    """Seconds, and what came; a byte of the trickle is sent ten times a second."""
    began, got = time.monotonic(), b""
    connection.settimeout(0.1)
    while time.monotonic() - began < 5:
        try:
            data = connection.recv(4096)
        except TimeoutError:
            if trickle:
                with contextlib.suppress(OSError):
                    connection.send(trickle)
            continue
        except OSError:
            data = b""
        if not data:
            return time.monotonic() - began, got
        got += data
    raise AssertionError("it is still open")


@pytest.mark.parametrize("trickle", [b"", b"x", b"\r\n"])
def test_a_head_that_takes_too_long_ends(site, trickle):
    for start in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
        with connected(site) as slow:
            slow.sendall(start)
            seconds, _ = seconds_until_closed(slow, b"X" if start and trickle == b"\r\n" else trickle)
            assert seconds < 1.5


def head(path=EDITS, length=1000, kind=b"multipart/form-data; boundary=b"):
    return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (
        path.encode(),
        kind,
        length,
    )


@pytest.mark.parametrize("trickle", [b"", b"y"])
def test_a_body_that_takes_too_long_is_408(site, trickle):
    with connected(site) as slow:
        slow.sendall(head() + b"--b\r\nX: ")
        seconds, got = seconds_until_closed(slow, trickle)
        assert seconds < 1.5
        assert got.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_reads_ends_too(site):
    with connected(site) as slow:
        slow.sendall(head(path="/health"))
        seconds, got = seconds_until_closed(slow, b"-")
        assert seconds < 2
        assert got.startswith(b"HTTP/1.1 405 ")


def test_an_idle_connection_ends(site):
    with connected(site) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        seconds, got = seconds_until_closed(idle)
        assert 0.3 < seconds < 1.5
        assert got.startswith(b"HTTP/1.1 200 ")


def test_a_connection_serves_many_requests_while_they_come(site):
    with httpx.Client(base_url=site.url) as client:
        for _ in range(5):
            assert client.get("/health").status_code == 200
            time.sleep(0.2)
        streams = [each for each in client._transport._pool.connections]
        assert len(streams) == 1


def test_what_is_no_http_is_refused(site):
    for text in (b"\x16\x03\x01\x00\x00\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with connected(site) as connection:
            connection.sendall(text)
            _, got = seconds_until_closed(connection)
            assert got.startswith(b"HTTP/1.1 400 ")
    with connected(site) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 4000)
        _, got = seconds_until_closed(connection)
        assert got.split()[1] in (b"400", b"431")


def answer_to(site, *parts):
    with connected(site) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        return seconds_until_closed(connection)[1]


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("cut", [10, 4000])
def test_a_head_that_is_too_long_is_refused_however_it_comes(site, cut):
    for size, status in ((1500, b"200"), (2100, b"400"), (20_000, b"400")):
        text = HEAD + b"X: " + b"y" * (size - len(HEAD) - 7) + b"\r\n\r\n"
        assert len(text) == size
        got = answer_to(site, text[:cut], text[cut:])
        assert got.split()[1] == status and got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEAD + b"\r\n",
        HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD.replace(b"\r", b"") + b"\n",
        HEAD + b"X: a\nContent-Length: 4\r\n\r\n",
        HEAD + b"X: a\r\n\n" + HEAD + b"\r\n",
        HEAD + b"X: a\r\n b\r\n\r\n",
        HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_what_two_readers_may_take_for_two_things_is_refused(site, text):
    got = answer_to(site, text)
    assert got.startswith(b"HTTP/1.1 400 ") and got.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in got.lower()


def test_what_is_damaged_once_it_is_answered_ends_the_connection(site, caplog):
    start = HEAD.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n"
    with caplog.at_level(logging.ERROR):
        got = answer_to(site, start, b"no chunk\r\n")
    assert got.startswith(b"HTTP/1.1 405 ") and got.count(b"HTTP/1.1 ") == 1
    assert caplog.text == ""


def test_too_many_connections_are_told_so_and_cost_nothing(site):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(site))
        late = stack.enter_context(connected(site))
        _, got = seconds_until_closed(late)
        assert got.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in got
    time.sleep(0.1)
    assert httpx.get(f"{site.url}/health").status_code == 200


def test_slow_clients_do_not_hurt_others(site):
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connected(site)).sendall(b"POST / HTTP/1.1\r\n")
        began = time.monotonic()
        assert httpx.post(site.url + GENERATIONS, json=ASKED).status_code == 200
        assert time.monotonic() - began < 2


def test_nothing_says_what_the_server_is(site):
    found = httpx.get(f"{site.url}/nothing")
    assert "server" not in found.headers
    assert str(site.port) not in found.text + str(found.headers)
