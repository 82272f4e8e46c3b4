"""Saving while training goes on: the loop waits for a copy in memory, a thread does the rest."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch

from lightgen.core.ranks import num_ranks, rank, side_channel
from lightgen.training.state import Piece, State, prune_states, save_state

OnSaved = Callable[[State, Sequence[int]], None]


class Saver:
    """Saves states into a folder, one at a time; as a context it waits for the last.

    Args:
        folder: of the states, seen by all ranks.
        keep_last, keep_every: see `RunConfig`.
        timeout_s: how long ranks wait for each other.
        on_saved: called on the first rank, in the thread, with each new state and the steps whose states
            stay.
    """

    def __init__(
        self, folder: Path, keep_last: int, keep_every: int | None, timeout_s: float, on_saved: OnSaved | None
    ) -> None:
        self._folder, self._keep, self._on_saved = folder, (keep_last, keep_every), on_saved
        self._pool, self._pending = ThreadPoolExecutor(1, "save"), None
        self._host: dict[str, torch.Tensor] = {}
        # exchanges of the thread must not mix with those of the loop
        self._exchange = side_channel(timeout_s)
        if rank() == 0:
            for torn in folder.glob(".step-*.tmp"):
                shutil.rmtree(torn, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the saver itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for the last save; after an error, for its end, whatever comes of it."""
        if kind is None:
            self.wait()
        # with a rank lost, its end comes only when the exchange has timed out
        self._pool.shutdown(wait=kind is None or num_ranks() == 1)

    def save(self, step: int, pieces: Mapping[str, Piece], notes: Mapping[str, Any]) -> None:
        """Begin to save; returns when the pieces are copied and may change again.

        Raises:
            OSError: the save before could not be written.
        """
        self.wait()
        self._pending = self._pool.submit(self._save, step, self._copy(pieces), dict(notes))

    def wait(self) -> None:
        """Wait for the save under way; an error while saving comes through."""
        pending: Future[None] | None = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def _copy(self, pieces: Mapping[str, Piece]) -> dict[str, Piece]:
        copied = {}
        for name, piece in pieces.items():
            host = self._host.get(name)
            if host is None:
                host = torch.empty_like(piece.tensor, device="cpu", pin_memory=piece.tensor.is_cuda)
                self._host[name] = host
            host.copy_(piece.tensor, non_blocking=piece.tensor.is_cuda)
            copied[name] = Piece(host, piece.start, piece.total)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _save(self, step: int, pieces: dict[str, Piece], notes: dict[str, Any]) -> None:
        path = save_state(self._folder, step, pieces, notes, rank=rank(), exchange=self._exchange)
        if path is not None:
            kept = prune_states(self._folder, *self._keep)
            if self._on_saved is not None:
                self._on_saved(State(path, verify=False), kept)
