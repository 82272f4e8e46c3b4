import json
from collections import Counter
from colorsys import rgb_to_hsv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lightgen.core.errors import UserError
from lightgen.ports.nano.emoji import EmojiTeacher, EmojiTeacherConfig, ErrorKnob, Rendered
from lightgen.ports.nano.font import FONT_VARIABLE, find_font
from lightgen.ports.nano.language import draw_prompt, parse
from lightgen.ports.nano.sprites import SpriteCache, decode_mask, emoji_table, encode_mask
from lightgen.ports.nano.world import BACKGROUNDS, CLASSES, COLORS


@pytest.fixture(scope="module")
def teacher() -> EmojiTeacher:
    return EmojiTeacher()


def relation_holds(box: list[int], relation: str, other: list[int]) -> bool:
    """GenEval's rule for `box relation other`, margin .1."""
    a, b = np.reshape(box, (2, 2)).astype(float), np.reshape(other, (2, 2)).astype(float)
    offset = a.mean(0) - b.mean(0)
    margin = 0.1 * (np.ptp(a, axis=0) + np.ptp(b, axis=0))
    beyond = np.maximum(np.abs(offset) - margin, 0) * np.sign(offset) / np.linalg.norm(offset)
    x, y = beyond
    return {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}[relation]


def counts(rendered: Rendered) -> Counter[tuple[str, str | None]]:
    return Counter((o["class"], o["color"]) for o in rendered.objects)


def test_truth_is_what_the_prompt_asks(teacher: EmojiTeacher) -> None:
    for i in range(400):
        prompt = draw_prompt(0, i, "train" if i % 2 else "test").prompt
        scene = parse(prompt)
        rendered = teacher.draw(prompt, i, 128, 128)
        assert rendered.errors == []
        assert counts(rendered) == {(g.name, g.color): g.count for g in scene.objects}, prompt
        if scene.relation is not None:
            first, second = (o["box"] for o in rendered.objects)
            assert relation_holds(first, scene.relation, second), prompt


@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 64), (64, 512), (512, 96), (200, 136)])
def test_objects_lie_apart_inside_the_canvas(teacher: EmojiTeacher, height: int, width: int) -> None:
    texts = [draw_prompt(1, i, "train").prompt for i in range(24)]
    texts += ["four cats and four dogs", "four people above three giraffes", "a car left of three cups"]
    for i, text in enumerate(texts):
        rendered = teacher.draw(text, i, height, width)
        assert rendered.image.shape == (height, width, 3)
        assert rendered.image.dtype == np.uint8
        for record in rendered.objects:
            x0, y0, x1, y1 = record["box"]
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height, text
            mask = decode_mask(record["mask"])
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == record["box"]
        for one, other in combinations((o["box"] for o in rendered.objects), 2):
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], text


def test_objects_are_large_enough_to_learn(teacher: EmojiTeacher) -> None:
    for i in range(300):
        rendered = teacher.draw(draw_prompt(2, i, "train").prompt, i, 128, 128)
        sides = [max(o["box"][2] - o["box"][0], o["box"][3] - o["box"][1]) for o in rendered.objects]
        assert min(sides) >= 0.29 * 128, (rendered.objects, i)
        if len(sides) == 1:
            assert 0.48 * 128 <= sides[0] <= 0.77 * 128


def test_same_seed_same_bytes_in_any_order() -> None:
    prompts = [draw_prompt(0, i, "train").prompt for i in range(40)]
    seeds = list(range(40))
    together = EmojiTeacher().generate(prompts, seeds, 128, 128)
    assert together.shape == (40, 128, 128, 3)
    backwards = EmojiTeacher()
    for i in reversed(range(40)):
        np.testing.assert_array_equal(backwards.draw(prompts[i], seeds[i], 128, 128).image, together[i])
    other = EmojiTeacher().generate(prompts[:1], [1], 128, 128)
    assert (other[0] != together[0]).any()


@pytest.mark.parametrize("color", COLORS)
def test_tints_are_the_colors_of_their_names(color: str) -> None:
    sprites = SpriteCache()
    target = COLORS[color]
    for name in CLASSES:
        sprite = sprites.sprite(name, color, 64)
        inside = sprite.mask & (sprite.clear[..., 0] < 0.05)
        pixels = sprite.rgb[inside].astype(float)
        value, chroma = pixels.max(1), np.ptp(pixels, axis=1)
        if color in ("black", "white"):
            assert np.quantile(chroma, 0.9) < 24, name
            value_here = np.quantile(value, 0.6)
            assert value_here < 120 if color == "black" else value_here > 155, name
            continue
        # Shades and lights keep the hue; brown and orange share theirs and differ in brightness.
        strong = pixels[chroma > 40]
        assert len(strong) > 0.3 * len(pixels), name
        hues = [rgb_to_hsv(*pixel)[0] for pixel in strong / 255]
        turn = np.median(hues) - rgb_to_hsv(*np.array(target) / 255)[0]
        assert min(abs(turn), 1 - abs(turn)) < 0.03, (name, turn)
        assert abs(np.quantile(value, 0.6) - max(target)) < 60, name


def test_open_backgrounds_keep_apart_from_the_objects(teacher: EmojiTeacher) -> None:
    for i in range(60):
        for color in ("white", "black", "yellow", "pink"):
            image = teacher.draw(f"a photo of a {color} bowl", i, 64, 64).image
            corners = image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
            assert np.linalg.norm(corners - COLORS[color], axis=-1).min() > 60, (color, i)


def test_backgrounds_and_styles_change_the_picture(teacher: EmojiTeacher) -> None:
    texts = [
        "a photo of a dog",
        *("a dog on green grass", "a dog on the beach", "a dog in the snow", "a dog under a starry sky"),
        *("a dog in a room", "a sketch of a dog", "pixel art of a dog", "a photo of a dog at night"),
    ]
    assert {parse(text).background for text in texts} == {None, *BACKGROUNDS}
    images = [teacher.draw(text, 0, 96, 96).image.astype(float) for text in texts]
    for one, other in combinations(images, 2):
        assert np.abs(one - other).mean() > 4
    assert images[-1].mean() < 0.6 * images[0].mean()
    pixels = images[-2]
    assert (pixels[::2] == pixels[1::2]).all()


def test_wrong_renders_are_wrong() -> None:
    def errant(**rates: float) -> EmojiTeacher:
        return EmojiTeacher(EmojiTeacherConfig(errors=ErrorKnob(**rates)))

    wrong_count, wrong_place = errant(wrong_count=1.0), errant(wrong_place=1.0)
    wrong_color, wrong_class, blur = errant(wrong_color=1.0), errant(wrong_class=1.0), errant(blur=1.0)
    for seed in range(40):
        drawn = wrong_count.draw("three cats", seed, 128, 128)
        assert drawn.errors == ["wrong_count"]
        assert len(drawn.objects) != 3
        drawn = wrong_place.draw("a dog left of a cat", seed, 128, 128)
        assert drawn.errors == ["wrong_place"]
        assert not relation_holds(drawn.objects[0]["box"], "left of", drawn.objects[1]["box"])
        drawn = wrong_color.draw("a red apple and a blue car", seed, 128, 128)
        assert drawn.errors == ["wrong_color"]
        assert counts(drawn) != {("apple", "red"): 1, ("car", "blue"): 1}
        assert {o["class"] for o in drawn.objects} == {"apple", "car"}
        drawn = wrong_class.draw("a dog and a cat", seed, 128, 128)
        assert drawn.errors == ["wrong_class"]
        assert {o["class"] for o in drawn.objects} != {"dog", "cat"}
        sharp = EmojiTeacher().draw("a zebra", seed, 128, 128).image.astype(float)
        soft = blur.draw("a zebra", seed, 128, 128).image.astype(float)
        assert np.abs(np.diff(soft, axis=1)).max() < 0.5 * np.abs(np.diff(sharp, axis=1)).max()
    assert wrong_count.draw("a dog", 0, 128, 128).errors == []


def test_error_rates_are_met() -> None:
    teacher = EmojiTeacher(EmojiTeacherConfig(errors=ErrorKnob(wrong_count=0.2, blur=0.1)))
    errors = Counter(e for seed in range(400) for e in teacher.draw("two cups", seed, 64, 64).errors)
    assert 50 < errors["wrong_count"] < 110
    assert 20 < errors["blur"] < 65
    assert set(errors) == {"wrong_count", "blur"}


@pytest.mark.parametrize("size", [(63, 128), (128, 513)])
def test_sizes_out_of_range_are_refused(teacher: EmojiTeacher, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="allowed: 64 to 512"):
        teacher.draw("a dog", 0, *size)


def test_editing_is_refused(teacher: EmojiTeacher) -> None:
    picture = np.zeros((1, 128, 128, 3), np.uint8)
    with pytest.raises(UserError, match="text prompts only"):
        teacher.generate(["a dog"], [0], 128, 128, source=picture, mask=picture[..., 0] > 0)


def test_missing_font_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FONT_VARIABLE, str(tmp_path / "none.ttf"))
    with pytest.raises(UserError, match=FONT_VARIABLE):
        EmojiTeacher()
    monkeypatch.delenv(FONT_VARIABLE)
    monkeypatch.setattr("lightgen.ports.nano.font._FONT_FILES", ())
    with pytest.raises(UserError) as caught:
        find_font()
    for word in ("Debian", "macOS", "Windows", FONT_VARIABLE):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_named_font_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "own.ttf"
    path.write_bytes(b"")
    monkeypatch.setenv(FONT_VARIABLE, str(path))
    assert find_font() == path


def test_every_class_has_an_emoji() -> None:
    assert list(emoji_table()) == list(CLASSES)
    main = [emojis[0] for emojis in emoji_table().values()]
    assert len(set(main)) == len(main)


def test_masks_survive_their_encoding() -> None:
    random = np.random.default_rng(0)
    for mask in (random.random((7, 5)) < 0.5, np.ones((3, 4), bool), np.zeros((3, 4), bool)):
        rle = json.loads(json.dumps(encode_mask(mask)))
        np.testing.assert_array_equal(decode_mask(rle), mask)
        assert sum(rle["counts"]) == mask.size
    # The second column begins inside the object: runs go down the columns.
    assert encode_mask(np.array([[0, 1], [1, 0]], bool)) == {"size": [2, 2], "counts": [1, 2, 1]}


def test_cache_stays_within_its_bound() -> None:
    sprites = SpriteCache(limit_bytes=60_000)
    sizes = [sprites.sprite(name, None, 64).mask.sum() for name in CLASSES[:20]]
    assert sprites._held <= 60_000
    assert sizes == [sprites.sprite(name, None, 64).mask.sum() for name in CLASSES[:20]]
    assert min(sizes) > 0
