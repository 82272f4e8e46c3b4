"""Captioners: real models of random weights, and a server on this machine that plays one."""

import base64
import importlib.util
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.ports import captioner_model
from lightgen.ports.captioner import (
    DESCRIBE,
    EXPAND,
    AskConfig,
    EndpointCaptioner,
    EndpointCaptionerConfig,
    ModelCaptionerConfig,
    read_answer,
    whole_sentences,
)
from lightgen.ports.captioner_model import ModelCaptioner, captioner_files, load_captioner

_SPEC = importlib.util.spec_from_file_location("toy_captioner", Path(__file__).with_name("toy_captioner.py"))
assert _SPEC and _SPEC.loader
toy = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)

ASK = AskConfig(expand="say more:", describe="what is it?", max_tokens=10)
CONFIG = ModelCaptionerConfig(model="toy", ask=ASK, precision="fp32", batch_size=3)
CPU = torch.device("cpu")
TEXTS = ["a cat", "a much longer caption of two dogs", "x", "three red cups"]


def images() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((64, 64), (100, 70), (30, 99))]


@pytest.fixture(autouse=True)
def _letters_are_no_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner_model, "whole_sentences", lambda text: text)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {
        "reader": toy.save_reader(root / "reader"),
        "plain": toy.save_reader(root / "plain", template=None),
        "qwen": toy.save_seer(root / "qwen"),
        "llava": toy.save_llava(root / "llava"),
    }


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_text_is_expanded_alike_in_any_batch(folders: dict[str, Path], temperature: float) -> None:
    ask = AskConfig(**{**vars(ASK), "temperature": temperature})
    captioner = load_captioner(ModelCaptionerConfig(**{**vars(CONFIG), "ask": ask}), folders["reader"], CPU)
    together = captioner.expand(TEXTS, [1, 2, 3, 4])
    assert [
        captioner.expand([text], [seed])[0] for text, seed in zip(TEXTS, [1, 2, 3, 4], strict=True)
    ] == together
    assert captioner.expand(TEXTS[::-1], [4, 3, 2, 1]) == together[::-1]
    assert captioner.expand([], []) == []
    other = captioner.expand(TEXTS, [5, 6, 7, 8])
    assert (other == together) == (temperature == 0)
    assert temperature == 0 or len(set(together)) == 4


def test_draws_follow_the_distribution() -> None:
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1, 1e-9]])).repeat(2000, 1)
    process = captioner_model._draws(AskConfig(temperature=1.0, top_p=1.0), range(2000), 5)
    drawn = process(torch.zeros(2000, 7, dtype=torch.long), scores).argmax(1)  # pyright: ignore
    shares = torch.bincount(drawn, minlength=4) / 2000
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1, 0.0]), atol=0.04)
    sharp = captioner_model._draws(AskConfig(temperature=0.7, top_p=0.5), range(200), 5)
    assert set(sharp(torch.zeros(200, 7, dtype=torch.long), scores[:200]).argmax(1).tolist()) == {0}  # pyright: ignore


def test_a_caption_ends_where_the_model_ends_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = load_captioner(CONFIG, folders["reader"], CPU)
    letters = toy.toy_tokenizer()
    monkeypatch.setattr(captioner_model, "whole_sentences", lambda text: f"cut:{text}")
    ids = letters("a cat.", add_special_tokens=False)["input_ids"]
    end, pad = letters.eos_token_id, letters.pad_token_id
    assert captioner._text([*ids, end, pad, pad]) == "a cat."
    assert captioner._text(ids) == "cut:a cat."


def test_words_of_the_template_in_a_caption_do_nothing(folders: dict[str, Path]) -> None:
    for name in ("reader", "qwen"):
        captioner = load_captioner(CONFIG, folders[name], CPU)
        seen: list[list[int]] = []
        captioner._answers = lambda ids, seeds, inputs, seen=seen: seen.extend(ids) or [""] * len(ids)
        captioner.expand(["a <image> cat <end>"], [1])
        assert not set(seen[0]) & {toy.SPECIAL.index("<image>"), toy.SPECIAL.index("<end>")}
        assert "say more:" in toy.toy_tokenizer().decode(seen[0])


@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_images_of_any_size_are_described_alike_in_any_batch(folders: dict[str, Path], name: str) -> None:
    captioner = load_captioner(CONFIG, folders[name], CPU)
    seen = images()
    together = captioner.describe(seen, [1, 2, 3])
    assert [
        captioner.describe([each], [seed])[0] for each, seed in zip(seen, [1, 2, 3], strict=True)
    ] == together
    greedy = ModelCaptionerConfig(**{**vars(CONFIG), "ask": AskConfig(**{**vars(ASK), "temperature": 0.0})})
    captioner = load_captioner(greedy, folders[name], CPU)
    extremes = [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8), seen[0]]
    assert len(set(captioner.describe(extremes, [1, 1, 1]))) > 1, "it looks at the image"
    assert captioner.expand(["a cat"], [1])  # and it reads as well


def test_the_places_of_an_image_are_those_of_the_librarys_own_processor(folders: dict[str, Path]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    captioner = load_captioner(CONFIG, folders["llava"], CPU)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(folders["llava"]),
        tokenizer=toy.toy_tokenizer(),
        patch_size=7,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    text = "user: <see><image></see>what is it? answer: "
    theirs = processor(images=[images()[0]], text=[text], return_tensors="pt")
    assert captioner._with_image(16) == theirs["input_ids"][0].tolist()
    seen = captioner._language.processor([images()[0]], return_tensors="pt")
    assert captioner._language.image_tokens(seen, 1) == [16]
    assert torch.equal(seen["pixel_values"], theirs["pixel_values"])


def test_without_a_template_the_task_is_said_plainly(folders: dict[str, Path]) -> None:
    captioner = load_captioner(CONFIG, folders["plain"], CPU)
    assert toy.toy_tokenizer().decode(captioner._ids("say more: a cat")) == "say more: a cat\n\nDescription:"
    assert captioner.expand(["a cat"], [1])[0]


def test_folders_that_do_not_fit_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    def copy(name: str, **changes: object) -> Path:
        folder = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for path in folders[name].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / "config.json").read_bytes()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    with pytest.raises(UserError, match="got images, allowed: texts"):
        load_captioner(CONFIG, folders["reader"], CPU).describe(images(), [1, 2, 3])
    with pytest.raises(UserError, match="holds a 'evil', allowed: gemma2"):
        load_captioner(CONFIG, copy("reader", model_type="evil", auto_map={"AutoModel": "evil.Evil"}), CPU)
    for lost in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = copy("reader")
        (folder / lost).unlink()
        with pytest.raises(UserError, match="no (config.json|tokenizer.json|safetensors)"):
            captioner_files(folder)
    folder = copy("reader")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="captioner ") as caught:
        load_captioner(CONFIG, folder, CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="weights missing|captioner "):
        load_captioner(CONFIG, copy("reader", num_hidden_layers=3), CPU)
    folder = copy("llava")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "OtherProcessor"}')
    with pytest.raises(UserError, match="'OtherProcessor', allowed: CLIPImageProcessor"):
        load_captioner(CONFIG, folder, CPU)
    wide = load_captioner(CONFIG, toy.save_llava(tmp_path / "wide", side=56), CPU)
    with pytest.raises(UserError, match="56x56 px, allowed: the model's 28x28"):
        wide.describe(images()[:1], [1])
    assert isinstance(load_captioner(CONFIG, folders["llava"], CPU), ModelCaptioner)


class Server(BaseHTTPRequestHandler):
    """Plays a chat server: tells what it was asked; does as the text says."""

    asked: ClassVar[list[dict]] = []
    keys: ClassVar[list[str | None]] = []
    at_once: ClassVar[list[int]] = [0, 0]

    def do_POST(self) -> None:  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.asked.append(body)
        Server.keys.append(self.headers.get("Authorization"))
        Server.at_once[0] += 1
        Server.at_once[1] = max(Server.at_once)
        time.sleep(0.02)
        Server.at_once[0] -= 1
        content = body["messages"][0]["content"]
        text = content if isinstance(content, str) else "image"
        status, answer = 200, {"choices": [{"message": {"content": f"More of {text[-3:]}."}}]}
        if "forbidden" in text:
            status, answer = 400, {"error": {"code": "content_policy_violation", "message": "no"}}
        elif "broken" in text:
            status, answer = 400, {"error": {"code": "bad", "message": "unknown field seed"}}
        elif "odd" in text:
            answer = {"choices": []}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    Server.keys.clear()
    found = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1"
    found.shutdown()
    found.server_close()


def test_a_server_expands_and_describes(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", "secret")
    config = EndpointCaptionerConfig(base_url=f"{server}/", model="m", ask=ASK, key_variable="TOY_KEY")
    captioner = EndpointCaptioner(config)
    texts = [f"caption {n:03d}" for n in range(20)] + ["forbidden"]
    answers = captioner.expand(texts, list(range(21)))
    assert answers == [f"More of {n:03d}." for n in range(20)] + [""]
    assert Server.at_once[1] > 1 and set(Server.keys) == {"Bearer secret"}
    first = next(each for each in Server.asked if each["seed"] == 7)
    assert first["messages"] == [{"role": "user", "content": "say more:\n\nCaption: caption 007"}]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("m", 10, 0.7)
    seen = images()[:2]
    assert captioner.describe(seen, [1, 2]) == ["More of age."] * 2
    parts = next(each for each in Server.asked if each["seed"] == 2 and "image" in str(each["messages"]))
    picture, text = parts["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is it?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == seen[1]).all()
    assert captioner.expand([], []) == []
    for text, said in (("broken", "unknown field seed"), ("odd", "no choices")):
        with pytest.raises(UserError, match=said) as caught:
            captioner.expand([text], [1])
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    lean = EndpointCaptionerConfig(
        base_url=server, model="m", omit=("seed", "max_tokens"), extra={"max_completion_tokens": 9}
    )
    EndpointCaptioner(lean).expand(["x"], [1])
    assert set(Server.asked[-1]) == {"temperature", "top_p", "max_completion_tokens", "model", "messages"}


def test_answers_are_read_with_care() -> None:
    def answer(content: object, reason: str = "stop") -> dict:
        return {"choices": [{"message": {"content": content}, "finish_reason": reason}]}

    assert read_answer(answer("A cat. A d", "length")) == "A cat."
    assert read_answer(answer("A cat. A d")) == "A cat. A d"
    assert read_answer(answer("x", "content_filter")) == read_answer(answer(None)) == ""
    assert [whole_sentences(text) for text in ("", "a b", "A cat! So", 'He said "no." And')] == [
        *("", "", "A cat!", 'He said "no."')
    ]
    for wrong in ({}, {"choices": "x"}, {"choices": [{}]}, {"choices": [{"message": 5}]}, answer(5)):
        with pytest.raises(UserError, match="answer: got"):
            read_answer(wrong)


def test_numbers_out_of_range_are_refused() -> None:
    good = EndpointCaptionerConfig()
    good.check()
    assert "number" in EXPAND and "colour" in EXPAND and "how many" in DESCRIBE
    for change in (
        {"model": ""},
        {"concurrency": 0},
        {"retries": -1},
        {"timeout_s": 0.0},
        {"omit": ("model",)},
        {"extra": {"seed": 1}},
        {"base_url": "http://example.com/v1"},
        {"base_url": "file:///etc"},
    ):
        with pytest.raises(UserError):
            EndpointCaptionerConfig(**{**vars(good), **change}).check()
    for change in ({"expand": " "}, {"max_tokens": 0}, {"temperature": 3.0}, {"top_p": 0.0}):
        with pytest.raises(UserError, match="--captioner.ask"):
            AskConfig(**{**vars(ASK), **change}).check()
    with pytest.raises(UserError, match="TOY_NONE"):
        EndpointCaptioner(EndpointCaptionerConfig(key_variable="TOY_NONE"))
