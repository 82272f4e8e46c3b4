"""The server as a process: a socket, the models, and an end in which nothing accepted is lost."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import uvicorn

from lightgen.core.errors import UserError
from lightgen.core.interrupts import interruption
from lightgen.core.progress import say
from lightgen.serve.app import create_app
from lightgen.serve.batches import Live
from lightgen.serve.config import ServeConfig
from lightgen.serve.connections import protocol_class
from lightgen.serve.guards import check_access
from lightgen.serve.keys import Keys, load_keys
from lightgen.serve.metrics import Metrics
from lightgen.serve.service import Checks
from lightgen.serve.worker import Worker
from lightgen.stages.live import open_live
from lightgen.stages.picture_safety import open_picture_check

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# They write a line for each damaged request of a stranger, and for each who left.
_TALKATIVE = ("asyncio", "python_multipart", "uvicorn.error")
_LAST_ANSWERS_S = 10  # for answers that are being sent when the last picture is done


def serve(config: ServeConfig, models: Mapping[str, str], safety: str | None = None) -> None:
    """Answer requests until the process is told to end (SIGTERM or SIGINT).

    Then pictures that were accepted are finished, new ones are refused with 503, and it returns; a second
    signal ends at once, and so does one that comes while the models are read.

    Args:
        config: how it listens, whom it lets in, and what it grants.
        models: checkpoint directories, or `nano`, by the names that requests call them by.
        safety: folder of a classifier that says which pictures are not shown, or None.

    Raises:
        UserError: an address, name, origin, key, model or file that cannot be used.
        KeyboardInterrupt: a signal ended it at once.
    """
    keys = load_keys(config.api_key_file)
    check_access(config, keys)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.closing(bound(config.host, config.port)) as listener:
        checks = Checks(picture=None if safety is None else open_picture_check(safety))
        opened: dict[str, Live] = {name: open_live(place) for name, place in models.items()}
        worker = Worker(opened, config.queue, Metrics())
        server = PictureServer(config, worker, opened, checks, listener, keys)
        asyncio.run(server.serve(sockets=[listener]))
        if server.second_signal is not None:
            raise interruption(server.second_signal)


class PictureServer(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and drains the worker before it ends.

    Args:
        config: of the server.
        worker: that draws, not started yet.
        models: by name, as the worker has them.
        checks: what is not drawn or not shown.
        listener: socket that is bound.
        keys: that may ask; None = as the config says.

    Attributes:
        second_signal: number of the signal that ended it at once, if one did.
    """

    def __init__(
        self,
        config: ServeConfig,
        worker: Worker,
        models: Mapping[str, Live],
        checks: Checks,
        listener: socket.socket,
        keys: Keys | None = None,
    ) -> None:
        connections = config.connections
        super().__init__(
            uvicorn.Config(
                create_app(config, worker, models, checks, keys),
                http=protocol_class(connections),
                ws="none",
                lifespan="on",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=3600,  # the protocol's own clock is stricter
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
            )
        )
        self._serve_config, self._worker, self._listener = config, worker, listener
        self._names = ", ".join(models)
        self._drain: asyncio.Task[None] | None = None
        self.second_signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        host, port = self._serve_config.host, self._listener.getsockname()[1]
        place = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"lightgen serve: http://{place}:{port} ({self._names})\n")
        sys.stdout.flush()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Context in which the signals end the server in order; only the main thread gets any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._end, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _end(self, number: int) -> None:
        """Drain and end; at once, if that was begun before."""
        if self._drain is None:
            say("lightgen serve: ending; accepted pictures are finished, a second signal ends at once")
            self._drain = asyncio.ensure_future(self._drained())
        else:
            self._drain.cancel()
            self.second_signal = number
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it shows what it leaves undone
            self.should_exit = self.force_exit = True

    async def _drained(self) -> None:
        await self._worker.drain(self._serve_config.drain_s)
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """Socket that is bound to an address, so that nobody else takes it while models are read.

    Raises:
        UserError: there is no such address here, or it is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise UserError(
            f"--host: got {host!r} ({error.strerror}), allowed: an address of this machine"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port: got {port} of {host} ({error.strerror}), allowed: a free one; 0 picks one"
        ) from None
    return listener
