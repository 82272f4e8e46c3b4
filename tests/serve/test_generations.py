"""What `/v1/images/generations` takes, answers and refuses."""

import asyncio
import base64
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from lightgen.serve.answers import Problem
from lightgen.serve.config import LimitConfig, QueueConfig, ServeConfig
from lightgen.serve.fields import read_json
from lightgen.serve.service import Checks
from tests.serve.served import GENERATIONS, Model, asked, post, queue, refusal

PROMPT = {"prompt": "a red apple"}


def opened(entry):
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def test_a_prompt_becomes_pictures_of_seeds_that_count_up():
    found = post({**PROMPT, "n": 3, "seed": 5, "size": "48x32"})
    assert found.status_code == 200
    answer = found.json()
    assert [each["seed"] for each in answer["data"]] == [5, 6, 7]
    assert answer["size"] == "48x32" and answer["model"] == "fake" and answer["preset"] == "fast"
    assert answer["usage"]["output_tokens"] == answer["usage"]["total_tokens"] == 3 * 2 * 3
    for seed, each in zip((5, 6, 7), answer["data"], strict=True):
        image = opened(each)
        assert image.format == "PNG" and image.size == (48, 32)
        assert (np.asarray(image) == seed).all()


def test_what_is_not_said_is_the_default():
    model = Model()
    answer = post({**PROMPT, "n": None, "size": None, "model": None, "seed": None}, model=model).json()
    (request,) = model.requests
    assert (request.height, request.width) == model.default_size
    assert request.seed == answer["data"][0]["seed"] < 2**32
    assert request.negative_prompt is None and request.image is None
    again = post(PROMPT).json()["data"][0]["seed"]
    assert again != request.seed, "a random seed came twice"


@pytest.mark.parametrize(
    ("values", "preset", "steps"),
    [
        ({}, "fast", 6),
        ({"quality": "high"}, "exact", 12),
        ({"quality": "medium", "preset": "exact"}, "exact", 12),
        ({"quality": "auto", "num_head_steps": 3}, "fast", 3),
        ({"preset": "balanced"}, "balanced", 6),
    ],
)
def test_quality_and_preset_say_how_it_is_decoded(values, preset, steps):
    model = Model()
    answer = post({**PROMPT, **values}, model=model).json()
    assert answer["preset"] == preset
    assert model.requests[0].config.num_head_steps == steps


def test_every_setting_reaches_the_model():
    model = Model()
    values = {"num_inference_steps": 3, "guidance_scale": 2, "temperature": 0.5, "negative_prompt": "a pear"}
    assert post({**PROMPT, **values}, model=model).status_code == 200
    (request,) = model.requests
    config = request.config
    assert (config.num_iterations, config.guidance_scale, config.temperature) == (3, 2.0, 0.5)
    assert request.negative_prompt == "a pear"
    assert len(model.seeds("step")) == 3


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_file_is_of_the_format_that_is_asked_for(kind):
    answer = post({**PROMPT, "output_format": kind, "output_compression": 50}).json()
    assert answer["output_format"] == kind
    assert opened(answer["data"][0]).format == kind.upper()


def test_what_changes_nothing_is_taken():
    values = {"background": "opaque", "moderation": "low", "style": "vivid", "user": "me"}
    assert post({**PROMPT, **values, "response_format": "b64_json", "quality": "hd"}).status_code == 200


REFUSED = [
    ({}, "prompt: got nothing"),
    ({"prompt": ""}, "prompt: got ''"),
    ({"prompt": "  "}, "blank"),
    ({"prompt": ["a"]}, "prompt: got a list"),
    ({**PROMPT, "promt": "x"}, "unknown field 'promt', did you mean 'prompt'?"),
    ({**PROMPT, "image_url": "http://x"}, "no address is opened"),
    ({**PROMPT, "n": 0}, "n: got 0"),
    ({**PROMPT, "n": 9}, "n: got 9"),
    ({**PROMPT, "n": "2"}, "n: got '2'"),
    ({**PROMPT, "n": True}, "n: got True"),
    ({**PROMPT, "size": "big"}, "WIDTHxHEIGHT"),
    ({**PROMPT, "size": "33x32"}, "multiples of 16"),
    ({**PROMPT, "size": "2048x16"}, "at most 1024 px"),
    ({**PROMPT, "size": "128x64"}, "at most 4096"),
    ({**PROMPT, "response_format": "url"}, "nothing is stored"),
    ({**PROMPT, "preset": "slow"}, "'exact', 'balanced' or 'fast'"),
    ({**PROMPT, "num_inference_steps": 257}, "num_inference_steps: got 257"),
    ({**PROMPT, "guidance_scale": 1e9}, "guidance_scale"),
    ({**PROMPT, "seed": -1}, "seed: got -1"),
    ({**PROMPT, "seed": 2**63}, "seed"),
    ({**PROMPT, "partial_images": 65}, "partial_images"),
    ({"prompt": "é" * 2001}, "prompt: got 4002 bytes"),
    ({**PROMPT, "negative_prompt": "é" * 2001}, "negative_prompt: got 4002 bytes"),
]


def test_what_is_not_allowed_is_said_in_one_line():
    model = Model()

    async def work(client):
        for values, told in REFUSED:
            assert told in refusal(await client.post(GENERATIONS, json=values))

    asked(work, model)
    assert model.calls == []


def test_the_names_of_the_field_and_model_are_told():
    assert post({**PROMPT, "n": 0}).json()["error"]["param"] == "n"
    found = post({**PROMPT, "model": "fak"})
    assert "did you mean 'fake'" in refusal(found, 404)
    assert found.json()["error"]["code"] == "model_not_found"


def test_a_server_may_grant_less():
    config = ServeConfig(limits=LimitConfig(max_pictures=2, max_iterations=4, max_head_steps=2))
    for name, value in (("n", 3), ("num_inference_steps", 5), ("num_head_steps", 3)):
        assert f"{name}: got {value}" in refusal(post({**PROMPT, name: value}, config=config))


NO_JSON = [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"[1]", "a list"),
    (b"7", "a number"),
    (b"null", "null"),
    (b'{"prompt": "a", "prompt": "b"}', "more than once"),
    (b'{"prompt": "a", ' + b", ".join(b'"%d": 0' % n for n in range(64)) + b"}", "65 names"),
    (b'{"prompt": "a", "user": {' + b", ".join(b'"%d": 0' % n for n in range(65)) + b"}}", "65 names"),
    (b'{"prompt": "a", "guidance_scale": NaN}', "NaN"),
    (b'{"prompt": "a", "guidance_scale": -Infinity}', "Infinity"),
    (b'{"prompt": "a", "guidance_scale": 1e999}', "finite"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "digits"),
    (b'{"prompt": "a\xff"}', "UTF-8"),
    (b'{"prompt": "\\ud800"}', "half a character"),
    (b'{"prompt": "a\\u0000"}', "null"),
    (b'{"\\u0000": 1}', "null"),
    (b'{"prompt": ' + b"[" * 100_000, "nested"),
    (b'{"prompt": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, "nested"),
]


def test_json_that_is_none_or_not_one_thing_to_every_reader_is_refused():
    async def work(client):
        for body, told in NO_JSON:
            assert told in refusal(await client.post(GENERATIONS, content=body))

    asked(work, headers={"content-type": "application/json"})


def test_json_of_very_many_names_takes_no_time():
    body = b"{" + b", ".join(b'"%d": 0' % n for n in range(20_000)) + b', "0": 0}'
    began = time.process_time()
    with pytest.raises(Problem, match="20001 names"):
        read_json(body)
    assert time.process_time() - began < 1.0  # 9 s, when each name was looked for among all


def test_a_file_names_the_model_as_the_answer_does():
    model = Model(facts={"model": "a-directory", "model_digest": "0" * 64})
    answer = post(PROMPT, model=model).json()
    assert json.loads(opened(answer["data"][0]).info["lightgen"])["model"] == answer["model"] == "fake"


def test_other_bodies_are_refused_by_their_type_and_size():
    found = asked(lambda client: client.post(GENERATIONS, data={"prompt": "a"}))
    assert "application/json" in refusal(found, 415)
    found = post({"prompt": "a", "user": "x" * 300_000})
    assert "too large" in refusal(found, 413)


def test_a_full_queue_is_told_with_a_time_to_come_back():
    config = ServeConfig(
        limits=LimitConfig(max_pictures=1), queue=QueueConfig(max_running=1, max_waiting=1, max_per_key=9)
    )

    async def work(client):
        return await asyncio.gather(*(client.post(GENERATIONS, json=PROMPT) for _ in range(6)))

    found = asked(work, Model(step_s=0.01), config)
    statuses = sorted(each.status_code for each in found)
    assert statuses[0] == 200 and statuses[-1] == 503
    for each in found:
        if each.status_code == 503:
            refusal(each, 503)
            assert int(each.headers["retry-after"]) >= 1


def test_more_than_the_share_of_a_key_is_429():
    config = ServeConfig(limits=LimitConfig(max_pictures=2), queue=QueueConfig(max_per_key=2))
    model = Model(step_s=0.02)

    async def work(client):
        return await asyncio.gather(*(client.post(GENERATIONS, json={**PROMPT, "n": 2}) for _ in range(2)))

    found = asked(work, model, config)
    assert sorted(each.status_code for each in found) == [200, 429]
    late = next(each for each in found if each.status_code == 429)
    assert late.json()["error"]["type"] == "rate_limit_error" and "retry-after" in late.headers


def test_a_deadline_that_passes_is_504():
    found = post({**PROMPT, "deadline_s": 0.2}, model=Model(step_s=0.15))
    refusal(found, 504)


def test_a_model_that_breaks_is_500_and_says_nothing_of_itself():
    found = post(PROMPT, model=Model(fails={"step": 1}))
    assert "secret" not in refusal(found, 500)


def test_a_prompt_that_is_refused_is_not_drawn():
    model = Model()
    checks = Checks(prompt=lambda text: "no apples here" if "apple" in text else None)
    found = post(PROMPT, model=model, checks=checks)
    assert "no apples here" in refusal(found)
    assert found.json()["error"]["code"] == "content_policy_violation"
    assert model.calls == []


def test_a_picture_that_may_not_be_shown_is_not():
    checks = Checks(picture=lambda image: int(image[0, 0, 0]) != 8)
    found = post({**PROMPT, "seed": 8}, checks=checks)
    refusal(found)
    assert found.json()["error"]["code"] == "content_policy_violation"
    assert post({**PROMPT, "seed": 9}, checks=checks).status_code == 200


def test_the_answer_is_json_of_the_documented_shape():
    from lightgen.serve.shapes import PicturesAnswer

    found = post(PROMPT, config=queue(max_running=2))
    assert found.headers["content-type"] == "application/json"
    assert PicturesAnswer.model_validate(json.loads(found.text)).data
