"""What `/v1/images/edits` takes, answers and refuses: above all, files of strangers."""

import asyncio
import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from lightgen.core.draws import numpy_draws
from lightgen.serve.config import LimitConfig, QueueConfig, ServeConfig
from tests.serve.fake_live import until
from tests.serve.served import EDITS, GENERATIONS, Model, asked, picture, refusal, saved

FIELDS = {"prompt": "a blue car", "seed": "4"}


def edited(files, fields=None, model=None, **named):
    parts = {name: (f"{name}.bin", data) for name, data in files.items()}
    return asked(
        lambda client: client.post(EDITS, data={**FIELDS, **(fields or {})}, files=parts), model, **named
    )


def request_of(files, fields=None):
    """What the model was asked."""
    model = Model()
    found = edited(files, fields, model)
    assert found.status_code == 200, found.text
    return model.requests[0]


def half_white(height=32, width=32):
    values = np.zeros((height, width, 3), np.uint8)
    values[:, : width // 4] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_each_format_is_edited_at_its_own_size(kind):
    request = request_of({"image": saved(picture(40, 56), kind)})
    assert (request.height, request.width) == (40, 56)
    assert request.image.shape == (40, 56, 3) and request.image.dtype == np.uint8
    assert request.mask is None


def test_a_white_part_of_the_mask_is_painted():
    request = request_of({"image": saved(picture()), "mask": saved(half_white())})
    assert (request.image == np.asarray(picture())).all()
    assert request.mask[:, :8].all() and not request.mask[:, 8:].any()


def test_a_transparent_part_of_the_mask_is_painted_whatever_its_colours():
    request = request_of({"image": saved(picture()), "mask": saved(picture(mode="RGBA"))})
    assert request.mask[:, :16].all() and not request.mask[:, 16:].any()


def test_without_a_mask_a_transparent_part_of_the_picture_is():
    request = request_of({"image": saved(picture(mode="RGBA"))})
    assert request.mask[:, :16].all() and not request.mask[:, 16:].any()
    assert (request.image[:, 16:] == np.asarray(picture())[:, 16:]).all()


def test_the_settings_of_edits_reach_the_model():
    files = {"image[]": saved(picture()), "mask": saved(half_white())}
    fields = {"strength": "0.5", "padding_mask_crop": "4", "feather": "2", "n": "2", "size": "32x32"}
    request = request_of(files, fields)
    assert (request.edit.strength, request.edit.crop, request.edit.feather) == (0.5, 4, 2)


def test_what_cannot_be_edited_is_refused_in_one_line():
    image, mask = saved(picture()), saved(half_white())
    frames = [picture(), half_white()]
    cases = [
        ({}, {}, "image: got nothing"),
        ({"image": b""}, {}, "image: got no picture"),
        ({"image": b"GIF89a" + bytes(40)}, {}, "image: got no picture"),
        ({"image": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, {}, "image: got no picture"),
        ({"image": saved(picture(), "TIFF")}, {}, "image: got no picture"),
        ({"image": image[: len(image) // 2]}, {}, "image: not a whole"),
        ({"image": saved(frames[0], save_all=True, append_images=frames[1:])}, {}, "animated"),
        ({"image": image, "mask": saved(half_white(32, 48))}, {}, "mask: got 48x32 px"),
        ({"image": image, "mask": saved(Image.new("L", (32, 32)))}, {}, "nothing to paint"),
        ({"image": image, "mask": b"x"}, {}, "mask: got no picture"),
        ({"image": image, "more": image}, {}, "unknown file 'more'"),
        ({"image": image}, {"size": "48x32"}, "picture's 32x32"),
        ({"image": image}, {"strength": "2"}, "strength: got '2'"),
        ({"image": image}, {"strength": "nan"}, "strength: got 'nan'"),
        ({"image": image}, {"n": "two"}, "n: got 'two'"),
        ({"image": image}, {"padding_mask_crop": "3"}, "padding_mask_crop"),
        ({"image": image}, {"image_url": "http://x"}, "no address is opened"),
        ({"image": image}, {"promt": "x"}, "did you mean 'prompt'?"),
        ({"image": image}, {"prompt": "a\0b"}, "null"),
        ({"image": image, "mask": mask}, {"mask": "x"}, "mask: got it more than once"),
        ({"image": saved(picture(80, 80))}, {}, "at most 4096"),
        ({"image": saved(Image.new("RGB", (1025, 16)))}, {}, "up to 1024 px"),
    ]

    async def work(client):
        for files, fields, told in cases:
            parts = {name: (f"{name}.bin", data) for name, data in files.items()}
            if not parts:
                parts = {"": (None, b"")}
            found = await client.post(EDITS, data={**FIELDS, **fields}, files=parts)
            assert told in refusal(found) or not files, (told, found.text)

    model = Model()
    asked(work, model)
    assert model.calls == []


def test_an_image_that_is_text_is_refused():
    found = asked(lambda client: client.post(EDITS, data=FIELDS, files={"image": (None, b"x")}))
    assert "image: got text" in refusal(found)


def test_a_large_picture_may_be_edited_in_a_small_part():
    files = {"image": saved(picture(160, 160)), "mask": saved(half_white(160, 160))}
    config = ServeConfig(limits=LimitConfig(max_area=4))
    assert "padding_mask_crop" in refusal(edited(files, config=config))
    dot = np.zeros((160, 160), np.uint8)
    dot[80:84, 80:84] = 255
    files["mask"] = saved(Image.fromarray(dot))
    assert edited(files, {"padding_mask_crop": "8"}, config=config).status_code == 200


def test_a_bomb_is_refused_by_its_header():
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert "60000x60000 px" in refusal(edited({"image": data}))


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded():
    data = bytearray(saved(picture(160, 160)))
    at = data.index(b"IDAT") + 4
    data[at : at + 8] = bytes(8)  # its pixels are damaged, which nobody looks at
    assert "at most 4096" in refusal(edited({"image": bytes(data)}))
    small, mask = saved(picture()), bytes(data)
    assert "the picture's 32x32" in refusal(edited({"image": small, "mask": mask}))


def test_without_room_a_picture_is_not_looked_at():
    model = Model(gate=threading.Semaphore(0))

    async def work(client):
        first = asyncio.ensure_future(client.post(GENERATIONS, json={"prompt": "a dog"}))
        await until(lambda: model.pictures)
        found = await client.post(EDITS, data=FIELDS, files={"image": ("x", b"no picture")})
        model.gate.release(100)
        await first
        return found

    limits = LimitConfig(max_pictures=1)
    config = ServeConfig(limits=limits, queue=QueueConfig(max_per_key=1))
    refusal(asked(work, model, config), 429)


def test_files_do_not_count_any_more_once_they_are_read():
    image = saved(picture(64, 64))
    limits = LimitConfig(max_body_bytes=len(image) + 1000)
    model = Model(gate=threading.Semaphore(0))

    async def work(client):
        calls = []
        for number in range(1, 6):
            post = client.post(EDITS, data=FIELDS, files={"image": ("x", image)})
            calls.append(asyncio.ensure_future(post))
            while accepted(await client.get("/metrics")) < number:
                if calls[-1].done():
                    model.gate.release(1000)
                    raise AssertionError(calls[-1].result().text)
                await asyncio.sleep(0.01)
        model.gate.release(1000)
        return [each.status_code for each in await asyncio.gather(*calls)]

    assert asked(work, model, ServeConfig(limits=limits)) == [200] * 5


def accepted(response):
    """Pictures that wait and run."""
    lines = response.text.splitlines()
    found = [
        line.split()[-1] for line in lines if line.startswith(("lightgen_queue_length ", "lightgen_running "))
    ]
    assert len(found) == 2
    return sum(map(float, found))


def test_mutated_pictures_are_refused_or_drawn_and_nothing_else():
    random = numpy_draws(0, "test-mutations")
    whole = [saved(picture(), kind) for kind in ("PNG", "JPEG", "WEBP")]

    async def work(client):
        statuses = set()
        for number in range(150):
            data = bytearray(whole[number % 3])
            for _ in range(random.integers(1, 8)):
                data[random.integers(len(data))] = random.integers(256)
            files = {"image": ("x", bytes(data[: random.integers(1, len(data) + 1)]))}
            statuses.add((await client.post(EDITS, data=FIELDS, files=files)).status_code)
        return statuses

    assert asked(work) <= {200, 400}


def multipart(*parts, boundary=b"b"):
    made = [b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts]
    return b"".join(made) + b"--" + boundary + b"--\r\n"


def part(name, body=b"x", more=b""):
    return b'Content-Disposition: form-data; name="' + name + b'"' + more, body


def test_damaged_multipart_is_refused():
    kind = "multipart/form-data; boundary=b"
    whole = multipart(part(b"prompt"))
    cases = [
        (kind, b"", "cut short"),
        (kind, whole[:-8], "cut short"),
        (kind, b"nothing of the kind", "damaged"),
        ("multipart/form-data", whole, "without a boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, whole, "boundary"),
        (kind, multipart((b"Content-Type: text/plain", b"x")), "without a name"),
        (kind, multipart(*[part(b"f%d" % n) for n in range(70)]), "more than 64 fields"),
        (kind, multipart(part(b"prompt"), part(b"prompt")), "more than once"),
        (kind, multipart(part(b"prompt", b"x" * 20_000)), "longer text"),
        (kind, multipart(part(b"prompt", b"\xff")), "UTF-8"),
        (kind, multipart(part(b"\xff")), "UTF-8"),
        (kind, multipart((b"X: " + b"y" * 5000, b"x")), "damaged"),
        (kind, multipart((b"\r\n".join(b"X%d: y" % n for n in range(20)), b"x")), "damaged"),
    ]

    async def work(client):
        for header, body, told in cases:
            found = await client.post(EDITS, content=body, headers={"content-type": header})
            assert told in refusal(found)
        found = await client.post(EDITS, json={"prompt": "a", "image_url": "http://x"})
        assert "multipart/form-data" in refusal(found, 415)

    asked(work)


def test_files_of_the_answer_say_what_was_edited():
    import base64
    import json

    answer = edited({"image": saved(picture()), "mask": saved(half_white())}).json()
    made = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    facts = json.loads(made.info["lightgen"])
    assert facts["model"] == "fake"
    assert facts["strength"] == 1.0 and len(facts["image_sha256"]) == len(facts["mask_sha256"]) == 64
