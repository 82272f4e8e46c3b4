import base64
import io
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image

from lightgen.core.config import config_from_dict, config_to_dict
from lightgen.core.draws import numpy_draws
from lightgen.core.errors import UserError
from lightgen.ports import requests
from lightgen.ports.endpoint import EndpointTeacher, EndpointTeacherConfig, decode_picture
from lightgen.ports.refusal import RefusedPrompt
from lightgen.ports.requests import RequestError
from tests.ports.fake_server import Reply, serving

HEIGHT, WIDTH = 24, 40


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(requests, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(requests, "MAX_WAIT_S", 0.01)


def drawing(prompt, seed, height=HEIGHT, width=WIDTH):
    random = numpy_draws(seed, prompt)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, kind="png", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def answer_of(data: bytes) -> Reply:
    return Reply.of({"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}]})


def draw(asked, number=0) -> Reply:
    """What a server does that draws noise of prompt, seed and size."""
    width, height = map(int, asked.payload["size"].split("x"))
    return answer_of(encoded(drawing(asked.payload["prompt"], asked.payload["seed"], height, width)))


def teacher(server, **changes) -> EndpointTeacher:
    return EndpointTeacher(EndpointTeacherConfig(base_url=f"{server.url}/v1/", model="toy-draw", **changes))


def test_images_come_back_in_order_whoever_is_first():
    def answer(asked, number):
        reply = draw(asked)
        reply.delay = 0.05 if number % 3 == 0 else 0.0
        return reply

    prompts, seeds = [f"prompt {i}" for i in range(17)], list(range(17))
    with serving(answer) as server:
        images = teacher(server, concurrency=4).generate(prompts, seeds, HEIGHT, WIDTH)
    assert images.shape == (17, HEIGHT, WIDTH, 3)
    assert images.dtype == np.uint8
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        assert (image == drawing(prompt, seed)).all()
    assert len(server.asked) == 17
    assert 2 <= server.most_at_once <= 4


def test_what_is_asked(monkeypatch):
    monkeypatch.setenv("TOY_KEY", "sk-toy-secret")
    with serving(draw) as server:
        made = teacher(server, key_variable="TOY_KEY", extra={"quality": "high", "steps": 4})
        made.generate(["a red dog"], [7], HEIGHT, WIDTH)
        assert made.name == f"toy-draw@{server.url.removeprefix('http://')}"
    assert server.asked[0].path == "/v1/images/generations"
    assert server.asked[0].headers["Authorization"] == "Bearer sk-toy-secret"
    assert server.asked[0].payload == {
        "model": "toy-draw",
        "prompt": "a red dog",
        "n": 1,
        "size": "40x24",
        "response_format": "b64_json",
        "seed": 7,
        "quality": "high",
        "steps": 4,
    }
    assert "sk-toy-secret" not in repr(vars(made.config)) + made.name


def test_what_a_server_does_not_take_is_left_out():
    with serving(lambda asked, n: answer_of(encoded(drawing("x", 0)))) as server:
        made = teacher(server, omit=("seed", "response_format", "size"), extra={"size": "auto"})
        made.generate(["a"], [1], HEIGHT, WIDTH)
    assert server.asked[0].payload == {"model": "toy-draw", "prompt": "a", "n": 1, "size": "auto"}


def test_no_prompts_no_questions():
    with serving(draw) as server:
        assert teacher(server).generate([], [], HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH, 3)
    assert server.asked == []


def test_a_server_that_is_busy_is_asked_again():
    def answer(asked, number):
        return Reply.of({}, 429, Retry_After="1") if number % 2 == 0 else draw(asked)

    with serving(answer) as server:
        images = teacher(server, concurrency=1).generate(["a", "b"], [1, 2], HEIGHT, WIDTH)
    assert (images[1] == drawing("b", 2)).all()
    assert len(server.asked) == 4


def test_a_server_that_stays_broken_ends_the_work_in_one_line():
    with serving(lambda asked, n: Reply(b"<html>Bad gateway</html>", 502)) as server:
        with pytest.raises(RequestError, match="got 502") as told:
            teacher(server, retries=2, concurrency=1).generate(["a"], [1], HEIGHT, WIDTH)
        assert len(server.asked) == 3
    assert len(str(told.value).splitlines()) == 1


REFUSALS = [
    (400, {"error": {"code": "content_policy_violation", "message": "Your request was rejected"}}),
    (400, {"error": {"code": "moderation_blocked", "message": "no"}}),
    (400, {"error": {"code": "contentFilter", "message": "no"}}),
    (403, {"error": {"message": "Blocked by our safety system"}}),
    (422, {"detail": "content policy"}),
]


@pytest.mark.parametrize(("status", "error"), REFUSALS)
def test_a_refused_prompt_leaves_the_others_alone(status, error):
    def answer(asked, number):
        return Reply.of(error, status) if asked.payload["prompt"] == "bad" else draw(asked)

    with serving(answer) as server:
        drawn = list(teacher(server).draw(["a", "bad", "c"], [1, 2, 3], HEIGHT, WIDTH))
        with pytest.raises(RefusedPrompt, match="refused a prompt"):
            teacher(server).generate(["bad"], [2], HEIGHT, WIDTH)
    assert isinstance(drawn[1], RefusedPrompt)
    assert (drawn[0] == drawing("a", 1)).all()
    assert (drawn[2] == drawing("c", 3)).all()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"error": {"code": "unknown_parameter", "message": "Unknown parameter: seed"}}),
        (401, {"error": {"message": "moderation of keys"}}),
        (404, {"error": {"code": "content_policy_violation"}}),
    ],
)
def test_other_mistakes_are_no_refusals(status, error):
    with serving(lambda asked, n: Reply.of(error, status)) as server, pytest.raises(RequestError):
        list(teacher(server).draw(["a"], [1], HEIGHT, WIDTH))
    assert len(server.asked) == 1


WHOLE = encoded(drawing("x", 0))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(b"<html>Hello</html>", headers={"Content-Type": "text/html"}), "text/html.*a JSON object"),
        (Reply.of({"created": 1}), "got none, allowed: one under data"),
        (Reply.of({"data": []}), "got 0 pictures"),
        (Reply.of({"data": ["x"]}), "allowed: one under data"),
        (Reply.of({"data": [{"url": "http://169.254.169.254/x.png"}]}), "got an address, allowed: b64_json"),
        (Reply.of({"data": [{"b64_json": None}]}), "got no picture"),
        (Reply.of({"data": [{"b64_json": base64.b64encode(WHOLE).decode()[:-3]}]}), "damaged base64"),
        (Reply.of({"data": [{"b64_json": "*&%$"}]}), "damaged base64"),
        (answer_of(WHOLE[: len(WHOLE) // 2]), "not a whole PNG"),
        (answer_of(b"GIF89a" + bytes(50)), "not a whole PNG"),
        (answer_of(b""), "not a whole PNG"),
        (answer_of(encoded(drawing("x", 0, 24, 24))), "got 24x24 px, allowed: the 40x24"),
        (answer_of(encoded(np.zeros((24, 40), np.uint16))), "colours I;16"),
    ],
)
def test_answers_that_hold_no_such_image(reply, told):
    with serving(lambda asked, n: reply) as server, pytest.raises(UserError, match=told) as error:
        teacher(server, retries=0).generate(["a"], [1], HEIGHT, WIDTH)
    assert len(str(error.value).splitlines()) == 1
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"lossless": True, "exact": True}])
def test_pictures_of_three_formats(kind, options):
    image = np.full((HEIGHT, WIDTH, 3), (200, 30, 60), np.uint8)
    found = decode_picture(encoded(image, kind, **(options if kind == "webp" else {})), HEIGHT, WIDTH)
    assert np.abs(found.astype(int) - image).max() <= 4


def test_transparent_parts_become_white():
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (10, 20, 30, 0))
    picture.paste((10, 20, 30, 255), (0, 0, 20, HEIGHT))
    for kind in ("png", "webp"):
        found = decode_picture(
            encoded(picture, kind, **({"lossless": True} if kind == "webp" else {})), HEIGHT, WIDTH
        )
        assert found[0, 0].tolist() == [10, 20, 30]
        assert found[0, -1].tolist() == [255, 255, 255]
    assert (decode_picture(encoded(picture.convert("P")), HEIGHT, WIDTH)[0, 0] == [10, 20, 30]).all()


def test_a_bomb_is_seen_before_it_is_decoded():
    png = bytearray(encoded(drawing("x", 0)))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16382).to_bytes(3, "little") * 2
    webp = b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended
    began = time.monotonic()
    for data in (bytes(png), webp):
        with pytest.raises(UserError, match="allowed: the 40x24|not a whole"):
            decode_picture(data, HEIGHT, WIDTH)
    assert time.monotonic() - began < 0.5


def test_leaving_early_asks_no_more_and_waits_for_nobody():
    gate = threading.Event()

    def answer(asked, number):
        reply = draw(asked)
        reply.delay = 0.0 if number == 0 else 4.0
        return reply

    with serving(answer) as server:
        drawn = teacher(server, concurrency=2).draw(["a"] * 50, list(range(50)), HEIGHT, WIDTH)
        next(drawn)
        began = time.monotonic()
        drawn.close()
        assert time.monotonic() - began < 2
        gate.wait(0.1)
        assert len(server.asked) <= 4


def test_only_what_is_soon_wanted_is_asked_ahead():
    with serving(draw) as server:
        drawn = teacher(server, concurrency=2).draw(["a"] * 50, list(range(50)), HEIGHT, WIDTH)
        next(drawn)
        threading.Event().wait(0.2)
        assert len(server.asked) <= 5
        assert len(list(drawn)) == 49


def test_editing_is_refused():
    made = EndpointTeacher(EndpointTeacherConfig(base_url="https://example.org/v1", model="m"))
    image = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="source or mask"):
        made.generate(["a"], [1], 8, 8, source=image, mask=np.zeros((1, 8, 8), bool))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_url": "http://example.org/v1"}, "allowed: https"),
        ({"base_url": "https://me:word@example.org/v1"}, "password"),
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"retries": -1}, "retries -1"),
        ({"timeout_s": 0.0}, "timeout 0"),
        ({"omit": ("prompt",)}, "omit: got 'prompt'"),
        ({"omit": ("colour",)}, "omit: got 'colour'"),
        ({"extra": {"n": 4}}, "extra: got 'n'"),
        ({"extra": {"model": "other"}, "omit": ()}, "extra: got 'model'"),
        ({"key_variable": "NO_SUCH_VARIABLE_HERE"}, "NO_SUCH_VARIABLE_HERE"),
    ],
)
def test_configs_that_cannot_work(changes, told):
    config = {"base_url": "https://example.org/v1", "model": "m"} | changes
    with pytest.raises(UserError, match=told):
        EndpointTeacher(EndpointTeacherConfig(**config))


def test_the_config_comes_back_from_the_manifest():
    config = EndpointTeacherConfig(
        base_url="https://example.org/v1",
        model="m",
        omit=("seed",),
        extra={"a": 1, "b": True, "c": "x", "d": 0.5},
    )
    back = config_from_dict(EndpointTeacherConfig, config_to_dict(config))
    assert back == config
    assert {name: type(value) for name, value in back.extra.items()} == {
        "a": int,
        "b": bool,
        "c": str,
        "d": float,
    }
