"""The ranks of a run started by torchrun: how many there are, which one this is, and what they agree on."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lightgen.core.config import environment, environment_variables
from lightgen.core.errors import UserError

_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "OMP_")
_LOST = re.compile(r"gloo|nccl|timed? ?out|connection|socket|store|peer", re.IGNORECASE)


class RankLost(RuntimeError):
    """Another rank died, or did not answer in time."""


def rank() -> int:
    """Number of this process in the run; 0 outside torchrun."""
    return _number("RANK", 0)


def num_ranks() -> int:
    """Processes in the run; 1 outside torchrun.

    Raises:
        UserError: WORLD_SIZE is no number.
    """
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Number of this process on its machine."""
    return _number("LOCAL_RANK", 0)


def join_ranks(timeout_s: float = 600.0) -> None:
    """Meet the other processes of the run; nothing to do outside torchrun or when already met.

    Args:
        timeout_s: how long any later exchange waits for a rank that does not answer.
    """
    if num_ranks() == 1 or distributed.is_initialized():
        return
    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    with answers_expected(lambda: "the start", timeout_s):
        distributed.init_process_group(
            "nccl" if device else "gloo",
            timeout=timedelta(seconds=timeout_s),
            store=_store(timeout_s),
            rank=rank(),
            world_size=num_ranks(),
            device_id=device,
        )


def _store(timeout_s: float) -> Store:
    """Where the ranks of this start find each other.

    Torchrun keeps its store when it starts the ranks again: without a name of their own they would find the
    addresses of those that died. On several machines, which count their starts apart, its environment must
    ask for a new store (docs/cluster.md).
    """
    host, port = environment("MASTER_ADDR"), environment("MASTER_PORT")
    if host is None or port is None:
        raise UserError(
            "environment: got RANK without MASTER_ADDR and MASTER_PORT, allowed: all, as torchrun sets"
        )
    is_server = rank() == 0 and environment("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(host, int(port), num_ranks(), is_server, timeout=timedelta(seconds=timeout_s))
    is_alone = environment("GROUP_WORLD_SIZE") in (None, "1")
    return (
        PrefixStore(f"start-{environment('TORCHELASTIC_RESTART_COUNT') or 0}", store) if is_alone else store
    )


def leave_ranks() -> None:
    """Part from the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def agree(values: torch.Tensor) -> torch.Tensor:
    """Sum of the values over the ranks, float64, in place; on the device of the exchange."""
    if num_ranks() > 1:
        distributed.all_reduce(values)
    return values


def from_first(value: int) -> int:
    """The value that the first rank has, on every rank."""
    if num_ranks() == 1:
        return value
    device = torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    told = torch.tensor([value], dtype=torch.int64, device=device)
    distributed.broadcast(told, 0)
    return int(told.item())


def meet() -> None:
    """Wait until every rank is here."""
    if num_ranks() > 1:
        device = torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
        distributed.all_reduce(torch.zeros(1, device=device))


Exchange = Callable[[bytes], Sequence[bytes]]


def alone(told: bytes) -> Sequence[bytes]:
    """What each of one rank told."""
    return [told]


def side_channel(timeout_s: float) -> Exchange:
    """Function that gives each rank what all told, by rank, in equal lengths; apart from other exchanges."""
    if num_ranks() == 1:
        return alone
    group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def exchange(told: bytes) -> Sequence[bytes]:
        own = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        heard = [torch.empty_like(own) for _ in range(num_ranks())]
        distributed.all_gather(heard, own, group=group)
        return [each.numpy().tobytes() for each in heard]

    return exchange


@contextlib.contextmanager
def answers_expected(when: Callable[[], str], timeout_s: float) -> Iterator[None]:
    """Context in which the failure of an exchange between ranks becomes one clear RankLost.

    Args:
        when: says what was going on, for the message.
        timeout_s: how long an exchange waits, for the message.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        lost = isinstance(error, distributed.DistError | ConnectionError) or _LOST.search(str(error))
        if num_ranks() == 1 or isinstance(error, torch.OutOfMemoryError | RankLost) or not lost:
            raise
        raise RankLost(
            f"rank {rank()} of {num_ranks()}: another rank died or gave no answer within {timeout_s:g} s, at "
            f"{when()}; see its own message, then run the same command again: it goes on from the saved state"
        ) from error


def outside_ranks() -> dict[str, str]:
    """Environment for a process of no rank."""
    return {n: v for n, v in environment_variables().items() if not n.startswith(_LAUNCHERS)}


def _number(name: str, default: int) -> int:
    text = environment(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"environment: got {name}={text!r}, allowed: a whole number, as torchrun sets it")
    return int(text)
