import pytest
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.sampling.decode import DecodeConfig
from lightgen.stages.generate import GenerateConfig, generate

CONFIG = GenerateConfig(height=64, width=80, decode=DecodeConfig(num_iterations=2, num_head_steps=2), seed=4)


def test_a_picture_remembers_how_it_was_made(toy, tmp_path):
    (path,) = generate(CONFIG, "a photo of an été dog", tmp_path / "dog.png", toy.student.path)
    with Image.open(path) as picture:
        assert picture.size == (80, 64)
        text = picture.text
    assert text["prompt"] == "a photo of an été dog"
    assert (text["seed"], text["steps"], text["guidance_scale"]) == ("4", "2", "3.0")
    assert text["model_digest"] == toy.student.digest
    assert text["model"] == "student"


def test_the_same_seed_gives_the_same_bytes(toy, tmp_path):
    config = GenerateConfig(height=64, width=64, decode=CONFIG.decode, seed=5)
    (one,) = generate(config, "a dog", tmp_path / "one.png", toy.student.path)
    (two,) = generate(config, "a dog", tmp_path / "two.png", toy.student.path)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("dogs/", ["a-red-dog-4.png", "a-red-dog-5.png"]),
        ("deep/er/x.png", ["x-4.png", "x-5.png"]),
    ],
)
def test_where_pictures_go(toy, tmp_path, out, names):
    from dataclasses import replace

    target = f"{tmp_path}/{out}"
    made = generate(replace(CONFIG, num=2), "A red, DOG!", target, toy.student.path)
    assert [path.name for path in made] == names
    assert all(path.is_file() for path in made)
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="allowed: a name ending in .png"):
        generate(CONFIG, "a dog", tmp_path / "dog.jpg", toy.student.path)
    with pytest.raises(UserError, match="of some text"):
        generate(CONFIG, "  ", tmp_path / "dog.png", toy.student.path)
    with pytest.raises(UserError, match="checkpoint with transformer"):
        generate(CONFIG, "a dog", tmp_path / "dog.png", toy.detector.path)
