"""Files say how they were made, in every format, and are signed where there is a certificate."""

import base64
import io
import json
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.serve import provenance
from lightgen.serve.config import ServeConfig
from lightgen.serve.provenance import C2paSigner, load_signer, manifest, provenance_bytes
from lightgen.stages.picture_files import picture_bytes
from tests.serve.served import GENERATIONS, Model, asked, post

PROMPT = "a red “äpple”"
ASKED = {"prompt": PROMPT, "seed": 7, "negative_prompt": "a pear", "guidance_scale": 2}
PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
MARK = b"signed by the fake"


def facts_of(data):
    image = Image.open(io.BytesIO(data))
    if image.format == "PNG":
        return json.loads(image.info["lightgen"])
    comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"ASCII\0\0\0")
    return json.loads(comment[8:])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_file_says_how_it_was_made(kind):
    answer = post({**ASKED, "output_format": kind}).json()
    facts = facts_of(base64.b64decode(answer["data"][0]["b64_json"]))
    assert facts.items() >= {**ASKED, "guidance_scale": 2.0, "width": 32, "height": 32}.items()
    assert facts["model"] == "fake" and facts["model_digest"] == "0" * 64
    assert facts["preset"] == "fast" and facts["refresh_every"] == 2 and "lightgen_version" in facts


def test_what_a_file_says_is_what_it_takes_to_draw_it_again():
    answer = post(ASKED).json()
    facts = facts_of(base64.b64decode(answer["data"][0]["b64_json"]))
    names = ("prompt", "negative_prompt", "seed", "preset", "guidance_scale", "num_head_steps", "temperature")
    again = {name: facts[name] for name in names} | {"num_inference_steps": facts["num_iterations"]}
    model = Model()
    assert (
        post({**again, "size": f"{facts['width']}x{facts['height']}"}, model=model).json()["data"]
        == answer["data"]
    )


def test_a_picture_is_the_same_with_and_without_facts():
    for facts in ({}, {"prompt": PROMPT}):
        assert (np.asarray(Image.open(io.BytesIO(picture_bytes(PIXELS, facts)))) == PIXELS).all()
    assert picture_bytes(PIXELS, {"prompt": "x" * 70_000}, "jpeg").find(b"xxx") == -1
    sizes = [len(picture_bytes(PIXELS, {}, "jpeg", quality)) for quality in (10, 50, 100)]
    assert sizes == sorted(sizes)


class FakeC2pa(types.ModuleType):
    """As much of the library as is used; only one algorithm fits."""

    class C2paError(Exception):
        pass

    class Settings:
        @staticmethod
        def from_dict(values):
            return values

    class Context:
        def __init__(self, settings):
            assert settings["builder"]["thumbnail"]["enabled"] is False

    class C2paSignerInfo:
        def __init__(self, algorithm, certificate, key, address):
            assert address is None, "nothing is asked of others"
            self.algorithm, self.key = algorithm, key

    class Signer:
        def __init__(self, info):
            if (info.algorithm, info.key) != ("ps256", b"key"):
                raise FakeC2pa.C2paError("another algorithm\nis its")

        from_info = classmethod(lambda cls, info: cls(info))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    class Builder:
        def __init__(self, text, context):
            self.text = text

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def sign(self, signer, kind, source, target):
            assert json.loads(self.text)["format"] == kind
            target.write(source.read() + MARK + self.text.encode())


@pytest.fixture
def files(tmp_path):
    (tmp_path / "chain.pem").write_bytes(b"chain")
    (tmp_path / "key.pem").write_bytes(b"key")
    return ServeConfig(c2pa_certificate=tmp_path / "chain.pem", c2pa_key=tmp_path / "key.pem")


@pytest.fixture
def library(monkeypatch):
    found = FakeC2pa("c2pa")
    monkeypatch.setattr(provenance.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(provenance.importlib, "import_module", lambda name: found)


def test_pictures_are_signed_with_their_facts(files, library):
    async def work(client):
        return (await client.post(GENERATIONS, json=ASKED)).json()

    data = base64.b64decode(asked(work, config=files)["data"][0]["b64_json"])
    picture, mark, text = data.partition(MARK)
    assert mark and facts_of(picture)["prompt"] == PROMPT
    said = json.loads(text)
    assert said["assertions"][1]["data"]["prompt"] == PROMPT


def test_what_is_on_the_way_is_not_signed(files, library):
    values = {**ASKED, "stream": True, "partial_images": 1}
    text = asked(lambda client: client.post(GENERATIONS, json=values), Model(step_s=0.02), files).text
    for line in text.splitlines():
        if line.startswith("data"):
            data = json.loads(line.partition(": ")[2])
            assert (MARK in base64.b64decode(data["b64_json"])) is data["type"].endswith("completed")


def test_a_key_that_fits_nothing_is_refused(library):
    with pytest.raises(UserError, match="sign nothing") as caught:
        C2paSigner(FakeC2pa("c2pa"), b"chain", b"no key")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said(files, library, monkeypatch):
    assert load_signer(ServeConfig()) is None
    gone = ServeConfig(c2pa_certificate=Path("nowhere.pem"), c2pa_key=files.c2pa_key)
    with pytest.raises(UserError, match="nowhere.pem"):
        load_signer(gone)
    monkeypatch.setattr(provenance.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install c2pa-python"):
        load_signer(files)


def test_an_edited_picture_is_said_to_be_made_in_part():
    kinds = [
        manifest("image/png", facts)["assertions"][0]["data"]["actions"][0]["digitalSourceType"]
        for facts in ({"prompt": "a"}, {"prompt": "a", "image_sha256": "0"})
    ]
    assert [kind.rpartition("/")[2] for kind in kinds] == [
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
    ]


def test_without_a_signer_the_file_is_as_it_is():
    assert provenance_bytes(PIXELS, {"seed": 1}, "png", 95, None) == picture_bytes(PIXELS, {"seed": 1})
