"""OpenAI's own Python client, unchanged, against the server."""

import asyncio
import base64
import io

import openai
import pytest
from PIL import Image

from lightgen.serve.config import LimitConfig, QueueConfig, ServeConfig
from tests.serve.served import KEY, Model, picture, saved, served


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY)
    config = ServeConfig(
        api_key_file=file,
        drain_s=5,
        limits=LimitConfig(max_pictures=4),
        queue=QueueConfig(max_per_key=4),
    )
    with served(Model(step_s=0.01), config) as found:
        yield found


@pytest.fixture
def client(site):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_generate(client):
    found = client.images.generate(prompt="a red apple", n=2, size="48x32", extra_body={"seed": 7})
    assert [opened(each.b64_json).size for each in found.data] == [(48, 32)] * 2
    assert found.usage.output_tokens == 12 and found.quality == "low" and found.background == "opaque"
    assert [each.seed for each in found.data] == [7, 8]
    assert found._request_id


def test_generate_as_people_write_it(client):
    found = client.images.generate(
        model="fake",
        prompt="a red apple",
        n=1,
        size="auto",
        quality="high",
        response_format="b64_json",
        output_format="webp",
        output_compression=80,
        background="auto",
        moderation="auto",
        style="vivid",
        user="me",
    )
    assert opened(found.data[0].b64_json).format == "WEBP" and found.quality == "high"


def test_edit(client):
    mask = saved(picture(mode="RGBA"))
    for image in (saved(picture()), io.BytesIO(saved(picture())), [saved(picture())]):
        found = client.images.edit(image=image, mask=mask, prompt="a blue car", n=2, size="auto")
        assert [opened(each.b64_json).size for each in found.data] == [(32, 32)] * 2


@pytest.mark.parametrize("is_edit", [False, True])
def test_stream(client, is_edit):
    asked = {"prompt": "a red apple", "stream": True, "partial_images": 2}
    if is_edit:
        stream = client.images.edit(image=saved(picture()), **asked)
    else:
        stream = client.images.generate(**asked)
    name = "image_edit" if is_edit else "image_generation"
    *partial, last = list(stream)
    assert [each.type for each in partial] == [f"{name}.partial_image"] * len(partial) and partial
    assert [each.partial_image_index for each in partial] == list(range(len(partial)))
    assert last.type == f"{name}.completed" and last.usage.total_tokens == 4
    assert opened(last.b64_json).size == (32, 32) == opened(partial[0].b64_json).size


def test_models(client):
    (model,) = client.models.list()
    assert (model.id, model.owned_by, model.object) == ("fake", "lightgen", "model")
    assert client.models.retrieve("fake").id == "fake"
    assert model.lightgen["unit"] == 16 and model.lightgen["default_size"] == "32x32"


def test_errors_are_the_clients_own(client, site):
    with pytest.raises(openai.BadRequestError, match="n: got 9") as caught:
        client.images.generate(prompt="a", n=9)
    assert caught.value.param == "n" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.images.generate(prompt="a", response_format="url")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="gpt-image-1")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="nobody's key at all").images.generate(prompt="a")
    with pytest.raises(openai.BadRequestError, match="no picture"):
        client.images.edit(image=b"x", prompt="a")


def test_a_full_share_is_a_rate_limit_and_retried(client):
    with client.images.generate(
        prompt="a", n=4, stream=True, extra_body={"num_inference_steps": 100}
    ) as stream:
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        del stream
    found = client.with_options(max_retries=5).images.generate(prompt="a")
    assert len(found.data) == 1


def test_a_stream_that_fails_raises(client, site):
    site.model.fails["step"] = 1
    with pytest.raises(openai.APIError, match="server"):
        list(client.images.generate(prompt="a", stream=True))


def test_the_asynchronous_client(site):
    async def work():
        async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=KEY, max_retries=0) as client:
            one, other = await asyncio.gather(
                client.images.generate(prompt="a red apple", extra_body={"seed": 1}),
                client.images.edit(image=saved(picture()), prompt="a blue car"),
            )
            stream = await client.images.generate(prompt="a", stream=True, partial_images=1)
            return one, other, [event async for event in stream]

    one, other, events = asyncio.run(work())
    assert one.data[0].seed == 1 and other.data
    assert events[-1].type == "image_generation.completed"
