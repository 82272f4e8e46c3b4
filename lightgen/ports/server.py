"""What configs of teachers and captioners say of a server, and whether it can be asked."""

from typing import Protocol

from lightgen.core.errors import UserError
from lightgen.ports.requests import check_url


class Server(Protocol):
    """What a config says of a server that is asked again and again."""

    @property
    def base_url(self) -> str:
        """What comes before the path of a question."""
        ...

    @property
    def model(self) -> str:
        """Its name there."""
        ...

    @property
    def concurrency(self) -> int:
        """Questions at a time."""
        ...

    @property
    def timeout_s(self) -> float:
        """Longest wait for one answer, seconds."""
        ...

    @property
    def retries(self) -> int:
        """How often a question is asked again."""
        ...

    @property
    def plain_http(self) -> bool:
        """Whether http is fine for other machines."""
        ...


def check_server(what: str, server: Server) -> None:
    """Check what a config says of a server.

    Raises:
        UserError: an address that may not be asked, no model, or a number out of range.
    """
    check_url(server.base_url, plain_http=server.plain_http)
    if not server.model:
        raise UserError(f"--{what}.model: got nothing, allowed: the model's name on the server")
    if server.concurrency < 1 or server.retries < 0 or not 0 < server.timeout_s < float("inf"):
        raise UserError(
            f"{what}: got concurrency {server.concurrency}, retries {server.retries}, timeout "
            f"{server.timeout_s:g} s, allowed: from 1, from 0, above 0"
        )
