"""Connections: HTTP/1.1 to the letter, whose clients may be slow only for so long."""

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lightgen.serve.config import ConnectionConfig

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)
# What a connection does, in this order for each request; it never goes back to what came before.
_IDLE, _HEAD, _BODY, _ANSWER = range(4)
# Ends of lines that some readers take for one and some do not, and lines that go on in the next.
_LOOSE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")


class StrictConnection(h11.Connection):
    """One whose heads are small, and mean the same to every reader.

    A proxy that takes a head for another request than the server does lets strangers put theirs between
    (request smuggling).

    Args:
        max_head_bytes: of a request, all lines together.
    """

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self._max_head_bytes = max_head_bytes

    def next_event(self) -> Any:  # noqa: ANN401  (h11's)
        """What comes next.

        Raises:
            h11.RemoteProtocolError: it is no HTTP/1.1, or may be read in two ways.
        """
        before = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._check(event, before[: len(before) - len(self.trailing_data[0])])
        return event

    def _check(self, request: h11.Request, head: bytes) -> None:
        names = {name for name, _ in request.headers}
        is_chunked = b"transfer-encoding" in names
        if len(head) > self._max_head_bytes:  # h11 looks at heads that are not whole yet
            raise h11.RemoteProtocolError("the head is too long", error_status_hint=431)
        if is_chunked and (b"content-length" in names or request.http_version < b"1.1"):
            raise h11.RemoteProtocolError("the length of the body is told in two ways")
        if _LOOSE.search(head):
            raise h11.RemoteProtocolError("a line of the head does not end as lines do")


def protocol_class(config: ConnectionConfig) -> type[H11Protocol]:
    """Uvicorn's protocol of HTTP/1.1 with limits of time and number.

    A connection is closed when the head of a request, its body, or the client's reading of the answer takes
    too long as a whole (a byte now and then buys no time), or when nothing is asked; and at once where there
    are too many.
    """
    limits = {
        _IDLE: config.idle_timeout_s,
        _HEAD: config.header_timeout_s,
        # the app's own limit comes first, and answers 408; this one is for bodies that nobody reads
        _BODY: 1.5 * config.body_timeout_s,
    }

    class LimitedProtocol(H11Protocol):
        """One connection."""

        def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  (uvicorn's)
            super().__init__(*arguments, **named)
            self.conn = StrictConnection(config.max_header_bytes)
            self._phase, self._answered = _HEAD, 0
            self._timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Start the clock for the first request."""
            super().connection_made(transport)
            if len(self.connections) > config.max_connections:
                transport.write(_BUSY)
                transport.close()
                return
            self._arm(_HEAD)

        def data_received(self, data: bytes) -> None:
            """Read, and note how far the request has come."""
            super().data_received(data)
            self._look()

        def send_400_response(self, msg: str) -> None:
            """Say that it is no HTTP, unless an answer is under way or out; end in any case."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.close()

        def on_response_complete(self) -> None:
            """Start the clock for the next request."""
            self._answered += 1
            self._phase = _IDLE
            super().on_response_complete()
            self._unset_keepalive_if_required()  # bytes that are no request would put it off
            self._arm(_IDLE)
            self._look()

        def pause_writing(self) -> None:
            """Give the client some time to read."""
            super().pause_writing()
            self._write_timer = self.loop.call_later(config.write_timeout_s, self._abort)

        def resume_writing(self) -> None:
            """Go on."""
            super().resume_writing()
            self._write_timer = _cancelled(self._write_timer)

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the clocks."""
            self._timer, self._write_timer = _cancelled(self._timer), _cancelled(self._write_timer)
            super().connection_lost(exc)

        def _look(self) -> None:
            state = self.conn.their_state
            if state is h11.IDLE:
                found = _HEAD if self.conn.trailing_data[0] else _IDLE
            else:
                found = _BODY if state is h11.SEND_BODY else _ANSWER
            if found > self._phase:
                self._arm(found)

        def _arm(self, phase: int) -> None:
            self._phase = phase
            self._timer = _cancelled(self._timer)
            if phase in limits:
                self._timer = self.loop.call_later(limits[phase], self._abort)

        def _abort(self) -> None:
            if not self.transport.is_closing():
                self.transport.abort()

    return LimitedProtocol


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
