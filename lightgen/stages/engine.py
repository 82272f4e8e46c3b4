"""Work in shards, the unit that a killed run does not repeat: in this process, by ranks, or by Ray."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from lightgen.core.artifact import Workspace
from lightgen.core.directory import TMP
from lightgen.core.errors import UserError
from lightgen.core.progress import Progress, say
from lightgen.core.ranks import meet, num_ranks, rank

Writer = Callable[[Path, int, Callable[[int], None]], None]

_MOST_TRIES = 10  # of a shard: Ray would begin one for ever that kills each worker


class Work(Protocol):
    """What the shards of one stage are made of: configs, paths and plain data, so that it can travel.

    The bytes of a shard must follow from these and its number alone, never from who writes it or when.
    """

    def open(self) -> Writer:
        """Function `write(path, number, advance)`, which writes a shard whole or not at all.

        Called once per process: here models are loaded. The function calls `advance(n)` as n more units of
        the shard are done.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Who writes the shards; what is in them does not depend on it.

    Attributes:
        name: local: this process, one shard after the other; ray: a pipeline of Ray Data.
        workers: processes that Ray keeps, each with its own copy of the models.
        gpus: of each worker; a part, such as 0.5, lets several share one.
        cpus: of each worker; also its threads.
        address: of a running cluster (`auto` finds that of this machine); None starts Ray here, on this
            machine alone and without its dashboard. All machines must see the files under the same paths.
    """

    name: Literal["local", "ray"] = "local"
    workers: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    address: str | None = None

    def check(self) -> None:
        """Raises UserError: a number out of range, or options that the engine does not have."""
        if self.workers < 1 or self.gpus < 0 or self.cpus < 0:
            raise UserError(
                f"engine: got {self.workers} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs, "
                "allowed: workers from 1, the others from 0"
            )
        if self.name == "local" and self != EngineConfig():
            raise UserError("engine: got workers or their shares for the local engine, allowed: --engine ray")


LOCAL = EngineConfig()


def cut(total: int, shard_size: int) -> list[range]:
    """Numbers from 0 to `total` in shards of `shard_size`, the last one perhaps shorter."""
    return [range(start, min(start + shard_size, total)) for start in range(0, total, shard_size)]


def write_shards(
    engine: EngineConfig,
    workspace: Workspace,
    task: str,
    names: Sequence[str],
    sizes: Sequence[int],
    work: Work,
    unit: str = "images",
) -> None:
    """Write the shards that are not there yet; ranks of torchrun, which all call it, share them.

    Args:
        engine: who writes.
        workspace: where they are.
        task: word before the progress.
        names: file of each shard.
        sizes: units in each.
        work: how they are written.
        unit: plural noun of what is in them.

    Raises:
        UserError: what the work refuses, or an engine that cannot be had.
    """
    if engine.name == "ray" and num_ranks() > 1:
        raise UserError(f"engine ray: got {num_ranks()} ranks of torchrun, allowed: either of them")
    is_there = [workspace.has(name) for name in names]
    meet()  # all ranks have looked before one of them writes
    left = [number for number, there in enumerate(is_there) if not there]
    own = left[rank() :: num_ranks()]
    paths = {number: workspace.path / names[number] for number in own}
    ours = sum(sizes[number] for number in own)
    done = 0 if num_ranks() > 1 else sum(sizes) - ours  # of ranks each shows its own share
    shown = task if num_ranks() == 1 else f"{task}, the first of {num_ranks()} ranks"
    for folder in {path.parent for path in paths.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    # what the work refuses is said before anything is shown as begun
    write = work.open() if paths and engine.name == "local" else None
    with Progress(shown, done + ours, unit, done) as progress:
        if write is not None:
            for number, path in paths.items():
                write(path, number, progress.advance)
        elif paths:
            for number in _by_ray(engine, paths, work):
                progress.advance(sizes[number])
    meet()
    # a worker that was killed leaves what it was writing; nobody writes any more
    for path in workspace.path.rglob(f"*{TMP}") if rank() == 0 else ():
        path.unlink()
    meet()


class _Worker:
    """One of Ray's processes. It opens the work at its first shard, so that what that refuses is reported."""

    def __init__(self, work: Work, most_tries: int) -> None:
        self._work, self._most_tries = work, most_tries
        self._write: Writer | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of a row, unless an earlier attempt has; its number, and why it is refused."""
        path, refused = Path(row["path"]), ""
        if not path.is_file():
            tries = path.with_name(f"{path.name}.tries{TMP}")  # a byte each; it outlives a worker that dies
            with tries.open("ab") as file:
                file.write(b".")
            try:
                if tries.stat().st_size > self._most_tries:
                    raise UserError(
                        f"engine ray: got {self._most_tries} workers that died at {path.name}, allowed: "
                        "workers that live; memory may be short (fewer workers, smaller batches)"
                    )
                self._write = self._write or self._work.open()
                self._write(path, row["number"], lambda n: None)
            except UserError as error:  # as data: the causes of an exception do not survive the way back
                refused = str(error)
            finally:
                tries.unlink(missing_ok=True)
        return {"number": row["number"], "refused": refused}


def _by_ray(engine: EngineConfig, paths: dict[int, Path], work: Work) -> Iterator[int]:
    """Numbers of the shards as they are done; a worker that dies is replaced, and its shard begun again.

    Ray Data hands out a shard when a worker is free, and gives the same one again where a worker is lost.
    """
    with _ray(engine) as ray:
        rows = [{"number": number, "path": str(path)} for number, path in paths.items()]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(work, _MOST_TRIES),
            compute=ray.data.ActorPoolStrategy(size=min(engine.workers, len(rows))),
            num_cpus=engine.cpus,
            num_gpus=engine.gpus or None,
        )
        for row in done.iter_rows():
            if row["refused"]:
                raise UserError(row["refused"])
            yield int(row["number"])


@contextlib.contextmanager
def _ray(engine: EngineConfig) -> Iterator[Any]:
    """The library, connected; what it started here ends with the block."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("engine ray: not installed, allowed: pip install 'lightgen[ray]'") from error
    begun = not ray.is_initialized()  # else the cluster that this process is connected to is taken
    if begun:
        # a row of a few bytes is all that passes through Ray: the least store that it accepts is plenty
        here: dict[str, Any] = {
            "include_dashboard": False,
            "num_cpus": max(1, math.ceil(engine.workers * engine.cpus)),
            "object_store_memory": 100 * 2**20,
        }
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address=engine.address, **quiet, **({} if engine.address else here))
        if engine.address:
            say(f"engine ray: the cluster at {ray.get_runtime_context().gcs_address}")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
