"""A server with a model that draws nothing: inside this process, or behind a port of this machine."""

import asyncio
import contextlib
import io
import json
import threading
from dataclasses import dataclass, field, replace

import httpx
import numpy as np
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.serve.app import create_app
from lightgen.serve.config import QueueConfig, ServeConfig
from lightgen.serve.metrics import Metrics
from lightgen.serve.run import PictureServer, bound
from lightgen.serve.service import Checks
from lightgen.serve.worker import Worker
from lightgen.stages.decoding import check_sides, resolve
from lightgen.stages.prompt_text import check_pair
from tests.serve.fake_live import FakeLive, FakePicture

KEY, OTHER_KEY = "a-key-of-the-tests", "another-key-of-the-tests"
GENERATIONS, EDITS, JOBS = "/v1/images/generations", "/v1/images/edits", "/v1/images/jobs"


class _Picture(FakePicture):
    @property
    def num_iterations(self):
        return self.request.config.num_iterations


@dataclass(eq=False)
class Model(FakeLive):
    """A fake that takes real requests; its picture is one colour, which the seed says."""

    unit: int = 16
    default_size: tuple[int, int] = (32, 32)
    requests: list = field(default_factory=list)

    def resolve(self, preset, overrides):
        return resolve("flow", preset, overrides)

    def check(self, request):
        check_pair(request.prompt, request.negative_prompt)
        if request.image is None:
            check_sides(request.height, request.width, self.unit)

    def join(self, requests):
        self._note("join", requests)
        self.requests += requests
        joined = [_Picture(each) for each in requests]
        self.pictures += joined
        return joined

    def preview(self, pictures):
        self._note("preview", [each.request for each in pictures])
        return [colour(each.request, 7) for each in pictures]

    def finish(self, pictures):
        self._note("finish", [each.request for each in pictures])
        return [colour(each.request, each.request.seed) for each in pictures]


def colour(request, value):
    return np.full((request.height, request.width, 3), value % 251, np.uint8)


def made(model=None, config=None, checks=None):
    """(Application, worker) of a model, both not started."""
    config, models = config or ServeConfig(), {"fake": model or Model()}
    worker = Worker(models, config.queue, Metrics())
    return create_app(config, worker, models, checks or Checks()), worker


@contextlib.asynccontextmanager
async def client(model=None, config=None, checks=None, **more):
    """Client of a server in this process."""
    app, _ = made(model, config, checks)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **more) as found:
            yield found


def asked(work, *arguments, **named):
    """What `work(client)` returns, of a server in this process."""

    async def run():
        async with client(*arguments, **named) as found:
            return await asyncio.wait_for(work(found), 20)

    return asyncio.run(run())


def post(values, path=GENERATIONS, **named):
    """Response to values as JSON."""
    return asked(lambda found: found.post(path, json=values), **named)


def refusal(response, status=400):
    """The message of a refused request, whose body is in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and "/" not in error["message"].replace("multipart/", "").replace(
        "application/", ""
    )
    return error["message"]


@dataclass
class Served:
    """A server behind a port."""

    url: str
    port: int
    model: Model
    worker: Worker
    server: PictureServer


@contextlib.contextmanager
def served(model=None, config=None, checks=None):
    """A server behind a port of this machine, in a thread; it is ended in order."""
    model = model or Model()
    config = replace(config or ServeConfig(drain_s=5), port=0)
    models = {"fake": model}
    worker = Worker(models, config.queue, Metrics())
    with contextlib.closing(bound(config.host, 0)) as listener:
        server = PictureServer(config, worker, models, checks or Checks(), listener)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
        port = listener.getsockname()[1]
        thread.start()
        waited = threading.Event()
        for _ in range(500):
            if server.started:
                break
            waited.wait(0.02)
        assert server.started
        try:
            yield Served(f"http://127.0.0.1:{port}", port, model, worker, server)
        finally:
            if model.gate is not None:
                model.gate.release(10_000)
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server did not end"


def queue(**settings):
    return ServeConfig(queue=QueueConfig(**settings), drain_s=5)


def picture(height=32, width=32, mode="RGB"):
    """Picture of noise; of RGBA, the left half is transparent."""
    values = numpy_draws(0, "test-served").integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = Image.fromarray(values)
    if mode == "RGBA":
        alpha = np.full((height, width), 255, np.uint8)
        alpha[:, : width // 2] = 0
        found.putalpha(Image.fromarray(alpha))
    return found


def saved(found, kind="PNG", **options):
    buffer = io.BytesIO()
    found.save(buffer, kind, **options)
    return buffer.getvalue()


def events(text):
    """(Name, data) of each event of a stream."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            name, data = (line.partition(": ")[2] for line in lines)
            found.append((name, json.loads(data)))
    return found
