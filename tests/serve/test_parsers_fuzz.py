"""Whatever bytes strangers send, what reads them gives proper values or one line that says what is wrong."""

import asyncio
import io
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.data.lean_picture import lean_picture
from lightgen.data.picture import decode_image
from lightgen.serve.answers import Problem, error_body
from lightgen.serve.bodies import EditBody, GenerationBody, read_body
from lightgen.serve.fields import media_type, read_form, read_json
from lightgen.serve.keys import Keys
from lightgen.stages.stranger_pictures import stranger_mask, stranger_picture

MAX_SIDE = 64
EASY = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
KIND = "multipart/form-data; boundary=cut"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.just("\0"),
    st.just("\ud800"),
)
values = st.recursive(
    scalars,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=5), each, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(sorted(EditBody.model_fields)) | st.text(max_size=8)
# names and texts as browsers send them
names = st.text("abcdefghij_-.é", min_size=1, max_size=12)


def problem(error, statuses=(400,)):
    """Check that a refusal is one line in OpenAI's shape."""
    assert error.status in statuses
    told = error_body(error)["error"]
    assert told["message"] and "\n" not in told["message"] and len(told["message"]) <= 600
    json.dumps(told).encode()


def outcome(work, *arguments):
    """What a parser gives, or the message of its refusal."""
    try:
        return work(*arguments)
    except Problem as error:
        problem(error)
        return str(error)


def form(data, sizes=(1 << 30,), kind=KIND):
    """(Texts, files) of a body that comes in pieces of these sizes, or the message of its refusal."""

    async def pieces():
        start, turn = 0, 0
        while start < len(data):
            stop = start + sizes[turn % len(sizes)]
            yield data[start:stop]
            start, turn = stop, turn + 1

    found = outcome(lambda: asyncio.run(read_form(kind, pieces())))
    return found if isinstance(found, str) else (found.texts, found.files)


def multipart(texts, files):
    """Body of a form."""
    parts = [f'--cut\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() for name in texts]
    body = [head + text.encode() + b"\r\n" for head, text in zip(parts, texts.values(), strict=True)]
    for name, data in files.items():
        head = f'--cut\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
        body.append(head.encode() + data + b"\r\n")
    return b"".join(body) + b"--cut--\r\n"


@st.composite
def mutated(draw, whole):
    """Bytes of one of the whole ones with a few changed, cut out, put in or doubled."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 3))
        length = draw(st.integers(1, 12))
        if kind == 0:
            data[at : at + length] = draw(st.binary(min_size=1, max_size=12))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def pictures():
    """Small files of the three formats, and of odd modes."""
    noise = np.random.Generator(np.random.Philox(3)).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    found = []
    for mode, kind in (
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("L", "PNG"),
        ("RGB", "JPEG"),
        ("RGBA", "WEBP"),
    ):
        file = io.BytesIO()
        Image.fromarray(noise).convert("RGB" if mode == "P" else mode).convert(mode).save(file, kind)
        found.append(file.getvalue())
    return found


PICTURES = pictures()
JSON = [json.dumps({"prompt": "a dog", "n": 2, "guidance_scale": 1.5, "user": None}).encode()]
FORMS = [multipart({"prompt": "a dog", "n": "1"}, {"image": PICTURES[0]})]


@EASY
@given(st.binary(max_size=200) | mutated(JSON))
@example(b'{"a":1,"a":2}')
@example(b"[" * 100_000)
@example(b'{"a":NaN}')
@example(b'{"a":' + b"9" * 10_000 + b"}")
@example(b'{"a":"\\ud800"}')
def test_json_of_any_bytes(data):
    found = outcome(read_json, data)
    if not isinstance(found, str):
        assert found == json.loads(data)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # text is Unicode, numbers are finite


@EASY
@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_json_of_any_values_is_read_back_or_refused(told):
    found = outcome(read_json, json.dumps(told).encode())
    assert isinstance(found, str) or found == told


@EASY
@given(st.binary(max_size=300) | mutated(FORMS), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_a_form_is_the_same_in_whatever_pieces_it_comes(data, sizes):
    found, whole = form(data, sizes), form(data)
    # of two things that are wrong, the pieces may say which is seen first
    assert found == whole or isinstance(found, str) and isinstance(whole, str)


@EASY
@given(
    st.dictionaries(
        names, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), max_size=4
    ),
    st.dictionaries(names, st.binary(max_size=60), max_size=3),
)
def test_a_whole_form_is_read_as_it_was_written(texts, files):
    texts = {f"t{name}": text.replace("--cut", "") for name, text in texts.items()}
    files = {f"f{name}": data.replace(b"--cut", b"") for name, data in files.items()}
    if texts or files:
        assert form(multipart(texts, files), (7,)) == (texts, files)


@EASY
@given(
    st.text(st.characters(codec="latin-1"), max_size=60)
    | st.text("multipart/form-data;boundary=\"x, \\'", max_size=60)
)
def test_content_types_of_any_text(header):
    media_type(header)
    assert isinstance(form(FORMS[0], kind=header), str | tuple)


@EASY
@given(st.dictionaries(fields, values, max_size=6), st.sampled_from([GenerationBody, EditBody]))
def test_bodies_of_any_values(told, kind):
    found = outcome(lambda: read_body(kind, {"prompt": "a dog", **told}, is_form=False))
    if not isinstance(found, str):
        assert found.prompt and found.n is None or 1 <= found.n <= 8
        numbers = [each for each in found.model_dump().values() if isinstance(each, float)]
        assert all(map(math.isfinite, numbers))


@EASY
@given(st.dictionaries(fields, st.text(max_size=30), max_size=6))
def test_bodies_of_any_texts(told):
    outcome(lambda: read_body(EditBody, {"prompt": "a dog", **told}, is_form=True))


@EASY
@given(st.binary(max_size=100) | mutated(PICTURES))
@pytest.mark.parametrize("read", [stranger_picture, stranger_mask])
def test_pictures_of_any_bytes(read, data):
    try:
        found = read("image", data, MAX_SIDE)
    except UserError as error:
        assert str(error).startswith("image: ") and "\n" not in str(error)
        return
    image, clear = found if isinstance(found, tuple) else (found, None)
    assert max(image.shape[:2]) <= MAX_SIDE and min(image.shape[:2]) >= 1
    assert image.dtype == (np.uint8 if read is stranger_picture else np.bool_)
    assert clear is None or (clear.dtype == np.bool_ and clear.shape == image.shape[:2] and clear.any())


@EASY
@given(mutated(PICTURES))
def test_what_is_left_of_a_file_is_what_the_house_reads(data):
    try:
        lean = lean_picture(data)
        image = decode_image(lean.data)
    except UserError:
        return
    assert image.shape[:2] == (lean.height, lean.width)
    assert lean_picture(lean.data).data == lean.data


def test_whole_pictures_are_read():
    for data in PICTURES:
        assert stranger_picture("image", data, MAX_SIDE)[0].shape == (24, 40, 3)


@EASY
@given(st.text(max_size=80))
def test_no_text_but_the_key_is_a_key(guess):
    keys = Keys(["0123456789abcdef"])
    assert (keys.owner(guess) is None) == (guess != "0123456789abcdef")
