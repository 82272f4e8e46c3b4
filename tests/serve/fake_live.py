"""A model that draws nothing, in as many seconds as a test wants, and notes what it was asked."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from lightgen.core.errors import UserError
from lightgen.serve.config import QueueConfig
from lightgen.serve.metrics import Metrics
from lightgen.serve.ticket import Cancelled, DeadlinePassed, WorkFailed
from lightgen.serve.worker import Worker
from lightgen.stages.decoding import DecodeOverrides, resolve
from lightgen.stages.edit import EditConfig

GRID = (2, 3)
REFUSED_SEED, BREAKING_SEED = -1, -2  # refused, and breaking the join that it is in
USUAL = resolve("flow", "fast", DecodeOverrides())


@dataclass(frozen=True, kw_only=True)
class FakeRequest:
    seed: int = 0
    prompt: str = "a dog"
    num_iterations: int = 4  # that the fake does
    width: int = 8  # px, of a token each
    height: int = 8
    config: object = USUAL
    mask: np.ndarray | None = None
    edit: EditConfig = EditConfig()


@dataclass(eq=False)
class FakePicture:
    request: FakeRequest
    iteration: int = 0
    grid: tuple[int, int] = GRID

    @property
    def num_iterations(self):
        return self.request.num_iterations

    def known(self):
        size = GRID[0] * GRID[1]
        return (np.arange(size) < size * self.iteration // self.num_iterations).reshape(GRID)


def drawn(seed: int) -> np.ndarray:
    """The picture of a seed, uint8 [8, 8, 3]."""
    return np.full((8, 8, 3), seed % 251, np.uint8)


@dataclass(eq=False)
class FakeLive:
    """A `Live`; `gate`, where there is one, lets one iteration pass for each release."""

    step_s: float = 0.0
    gate: threading.Semaphore | None = None
    fails: dict[str, int] = field(default_factory=dict)  # name of a method: how often it raises from now on
    facts: dict[str, str] = field(default_factory=lambda: {"model": "fake", "model_digest": "0" * 64})
    unit: int = 1
    default_size: tuple[int, int] = (8, 8)
    pictures: list[FakePicture] = field(default_factory=list)
    calls: list[tuple[str, list[int]]] = field(default_factory=list)  # (method, seeds)
    threads: set[int] = field(default_factory=set)

    @property
    def running(self):
        return len(self.pictures)

    def seeds(self, method):
        return [seeds for name, seeds in self.calls if name == method]

    def _note(self, method, requests):
        self.threads.add(threading.get_ident())
        self.calls.append((method, [each.seed for each in requests]))
        if self.fails.get(method, 0):
            self.fails[method] -= 1
            raise RuntimeError(f"{method} broke on /secret/place")

    def resolve(self, preset, overrides):
        return resolve("flow", preset, overrides)

    def check(self, request):
        pass

    def join(self, requests):
        self._note("join", requests)
        if any(each.seed == BREAKING_SEED for each in requests):
            raise RuntimeError("join broke on /secret/place")
        joined = [
            UserError("seed: refused") if each.seed == REFUSED_SEED else FakePicture(each)
            for each in requests
        ]
        self.pictures += [each for each in joined if isinstance(each, FakePicture)]
        return joined

    def leave(self, picture):
        self._note("leave", [picture.request])
        if picture in self.pictures:
            self.pictures.remove(picture)

    def step(self):
        if self.gate is not None:
            assert self.gate.acquire(timeout=20), "no test opened the gate"
        if self.step_s:
            time.sleep(self.step_s)
        self._note("step", [picture.request for picture in self.pictures])
        for picture in self.pictures:
            picture.iteration += 1
        done = [picture for picture in self.pictures if picture.iteration == picture.num_iterations]
        self.pictures = [picture for picture in self.pictures if picture not in done]
        return done

    def preview(self, pictures):
        self._note("preview", [picture.request for picture in pictures])
        return [np.full((8, 8, 3), picture.iteration % 256, np.uint8) for picture in pictures]

    def finish(self, pictures):
        self._note("finish", [picture.request for picture in pictures])
        return [drawn(picture.request.seed) for picture in pictures]

    def reset(self):
        self._note("reset", [])
        self.pictures = []


@asynccontextmanager
async def started(*models, **config):
    """A worker of the models, named fake, fake1, and so on, that is drained at the end."""
    named = {f"fake{number or ''}": model for number, model in enumerate(models)}
    worker = Worker(named, QueueConfig(**config), Metrics())
    worker.start()
    try:
        yield worker
    finally:
        for model in models:
            if isinstance(model, FakeLive) and model.gate is not None:
                model.gate.release(10_000)
        await worker.drain(10)


def gated():
    """A model that waits for its gate before each iteration."""
    return FakeLive(gate=threading.Semaphore(0))


def asked(*seeds, **values):
    """A request for each seed."""
    return [FakeRequest(seed=seed, **values) for seed in seeds]


async def until(condition, timeout_s=10.0):
    """Wait for a condition that another thread brings about."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.001)


async def outcome(ticket):
    """The picture of a ticket, or the class of its error."""
    try:
        return await ticket.result()
    except (Cancelled, DeadlinePassed, WorkFailed) as error:
        return type(error)


def fates(metrics):
    """How many pictures were counted by what became of them."""
    text = metrics.text().decode().splitlines()
    lines = [line for line in text if line.startswith("lightgen_pictures_total{")]
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}
