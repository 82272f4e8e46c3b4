"""Edits through a fake autoencoder of a wide view and a fake decoder; no model runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lightgen.core.draws import numpy_draws, torch_draws
from lightgen.core.errors import UserError
from lightgen.models.tokens import patchify
from lightgen.sampling.order import draw_order
from lightgen.stages.edit import EditConfig, compose, fill, frame_of, outpaint_canvas, prepare, ramp, select
from lightgen.stages.edit_batch import edit_batch, to_masks, to_pictures
from lightgen.stages.pixels import as_bytes

STRIDE, PATCH = 4, 2
UNIT = STRIDE * PATCH
AREA = 40 * 40
WHOLE = EditConfig()


class WideAutoencoder:
    """Latents that see 9 px beyond their own on each side, as the convolutions of a real one do."""

    channels, stride = 3, STRIDE

    def encode(self, pixels):
        seen = F.avg_pool2d(F.pad(pixels, (9, 9, 9, 9), mode="replicate"), 19, stride=1)
        mean = F.avg_pool2d(pixels + seen, STRIDE)
        return mean, torch.zeros_like(mean)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=STRIDE).clamp(-1, 1)


class NoisyDecoder:
    """Noise of each image's seed in place of unknown tokens; notes what it was given."""

    def __init__(self, seeds):
        self.seeds, self.calls = seeds, []

    def __call__(self, chosen, grid, known, known_mask):
        self.calls.append((chosen, grid, known, known_mask))
        shape = (grid[0] * grid[1], 3 * PATCH**2)
        noise = [torch.randn(shape, generator=torch_draws(self.seeds[i], "noise", *grid)) for i in chosen]
        tokens = torch.stack(noise)
        if known is None:
            return tokens
        counts = known_mask.sum(1)
        assert known.shape == tokens.shape
        assert bool((counts == counts[0]).all())
        assert 0 < counts[0] < shape[0]
        return torch.where(known_mask[..., None], known, tokens)


def edit(image, mask, seeds=(0,), config=WHOLE, output_type="np", num_prompts=None):
    batch = edit_batch(image, mask, num_prompts or len(seeds), seeds, UNIT, AREA, config)
    decoder = NoisyDecoder(seeds)
    painted = batch.paint(WideAutoencoder(), PATCH, decoder)
    return batch.finish(output_type, painted), decoder, batch


def picture(key, height, width):
    return numpy_draws(0, "test-picture", key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def masks_of(key, height, width, count):
    """Masks of every kind: none, all, a pixel, a corner, an edge, a box, scattered, a half."""
    draws = numpy_draws(0, "test-mask", key)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = draws.integers(height), draws.integers(width)
        kind = draws.integers(8)
        if kind == 1:
            mask[:] = True
        elif kind == 2:
            mask[y, x] = True
        elif kind == 3:
            mask[-1, -1] = True
        elif kind == 4:
            mask[draws.choice([0, -1])] = True
        elif kind == 5:
            mask[y : y + 1 + draws.integers(height), x : x + 1 + draws.integers(width)] = True
        elif kind == 6:
            mask[:] = draws.random((height, width)) < draws.random()
        elif kind == 7:
            mask[:, : x + 1] = True
    return masks


@pytest.mark.parametrize("part", range(4))
def test_a_thousand_masks(part):
    seen = set()
    for key in range(part * 126, part * 126 + 126):  # 2 masks each on average
        draws = numpy_draws(0, "test-case", key)
        height, width = draws.integers(1, 41, 2).tolist()
        count = 1 + key % 3
        pictures, masks = np.stack([picture(key, height, width)] * count), masks_of(key, height, width, count)
        pictures[1:] = 255 - pictures[1:]
        config = EditConfig(
            feather=int(draws.choice([0, 0, 1, 5])),
            crop=[None, None, 0, 7][draws.integers(4)],
            strength=float(draws.choice([1.0, 1.0, 0.3, 0.0])),
        )
        seeds = list(range(key, key + count))
        edited, decoder, batch = edit(pictures, masks.astype(np.uint8) * 255, seeds, config, "pil")
        exact, _, _ = edit(pictures, masks, seeds, config, "np")
        for i in range(count):
            made = np.asarray(edited[i])
            assert made.shape == (height, width, 3)
            assert np.array_equal(made[~masks[i]], pictures[i][~masks[i]])
            untouched = (pictures[i] / np.float32(255))[~masks[i]]
            assert exact.dtype == np.float32
            assert np.array_equal(exact[i][~masks[i]], untouched)
            if not masks[i].any() or config.strength == 0:
                assert np.array_equal(made, pictures[i])
                assert all(i not in call[0] for call in decoder.calls)
                seen.add("idle")
            elif not config.feather:
                assert not np.array_equal(made[masks[i]], pictures[i][masks[i]])
            if masks[i].all():
                seen.add("full")
        assert batch.is_idle() == (not decoder.calls)
        seen.add((count, len(decoder.calls)))
    assert {"idle", "full", (1, 0), (3, 1), (3, 2), (3, 3)} <= seen


def test_images_of_a_batch_are_the_same_alone():
    height, width, count = 37, 29, 6
    pictures = np.stack([picture(i, height, width) for i in range(count)])
    masks = np.concatenate([masks_of(i, height, width, 1) for i in (3, 5, 5, 9, 11, 12)])
    for config in (WHOLE, EditConfig(crop=3), EditConfig(strength=0.5, feather=2)):
        together, decoder, _ = edit(pictures, masks, list(range(count)), config)
        for i in range(count):
            alone, _, _ = edit(pictures[i], masks[i], [i], config)
            np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert sorted(i for call in decoder.calls for i in call[0]) == [i for i in range(count) if masks[i].any()]


def test_equal_numbers_of_known_tokens_are_decoded_together():
    pictures = np.stack([picture(i, 32, 32) for i in range(4)])
    masks = np.zeros((4, 32, 32), bool)
    masks[0, 0, 0] = masks[1, 20, 20] = masks[3, 31, 31] = True
    masks[2, :, 4] = True
    _, decoder, _ = edit(pictures, masks, [0, 1, 2, 3])
    assert [call[0] for call in decoder.calls] == [[0, 1, 3], [2]]


def test_a_token_is_predicted_if_any_of_its_pixels_is_masked():
    mask = np.zeros((32, 30), bool)
    mask[7, 8] = mask[16, 29] = True
    canvas = prepare(picture(0, 32, 30), mask, 0, UNIT, AREA, WHOLE)
    assert canvas is not None
    assert torch.nonzero(canvas.mask).tolist() == [[0, 1], [2, 3]]
    assert canvas.pixels.shape == (3, 32, 32)


def test_known_tokens_are_those_of_the_picture_and_are_kept():
    mask = np.zeros((32, 32), bool)
    mask[24:, 24:] = True
    image = picture(0, 32, 32)
    _, decoder, batch = edit(image, mask)
    ((_, grid, known, known_mask),) = decoder.calls
    assert grid == (4, 4)
    (canvas,) = batch.canvases
    plain = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(canvas.pixels[:, ~torch.from_numpy(mask)], plain[:, ~torch.from_numpy(mask)])
    wanted = patchify(WideAutoencoder().encode(canvas.pixels[None])[0], PATCH)
    assert torch.equal(known, wanted)
    assert known_mask[0].tolist() == [True] * 15 + [False]


@pytest.mark.parametrize("config", [WHOLE, EditConfig(crop=4), EditConfig(feather=0, crop=0)])
def test_nothing_depends_on_what_is_under_the_mask(config):
    image = picture(0, 45, 38)
    mask = np.zeros((45, 38), bool)
    mask[8:24, 16:32] = mask[40, 3] = True
    dark, light = np.where(mask[..., None], 0, image), np.where(mask[..., None], 255, image)
    dark, light = dark.astype(np.uint8), light.astype(np.uint8)
    one, first, _ = edit(dark, mask, config=config)
    two, second, _ = edit(light, mask, config=config)
    assert np.array_equal(one[0][mask], two[0][mask])
    assert torch.equal(first.calls[0][2], second.calls[0][2])


def test_the_fake_autoencoder_would_leak():
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[..., 8:24, 8:24] = 1
    assert WideAutoencoder().encode(pixels)[0][..., :2].min() > 0.02, "it sees the square from every token"


def test_full_mask_is_generation():
    image = picture(0, 40, 24)
    edited, decoder, _ = edit(image, np.ones((40, 24), bool), [7])
    assert decoder.calls[0][1:] == ((5, 3), None, None)
    tokens = NoisyDecoder([7])([0], (5, 3), None, None)
    from lightgen.models.tokens import unpatchify

    pixels = WideAutoencoder().decode(unpatchify(tokens, PATCH, (5, 3)))
    np.testing.assert_array_equal(edited[0], ((pixels[0] + 1) / 2).permute(1, 2, 0).numpy())
    variation, _, _ = edit(image, None, [7])
    np.testing.assert_array_equal(edited, variation)


@pytest.mark.parametrize(("strength", "count"), [(1.0, 20), (0.7, 14), (0.31, 7), (1e-12, 1)])
def test_strength_takes_the_first_of_the_images_order(strength, count):
    tokens = torch.ones(4, 5, dtype=torch.bool)
    redrawn = select(tokens, 3, strength)
    assert sorted(draw_order(3, 20)[:count].tolist()) == torch.nonzero(redrawn.flatten())[:, 0].tolist()
    tokens[2:] = False
    part = select(tokens, 3, strength)
    assert not part[2:].any()
    assert int(part.sum()) == max(1, -(-count // 2))


def test_a_variation_keeps_the_other_tokens():
    image = picture(0, 40, 40)
    _, decoder, batch = edit(image, None, [5], EditConfig(strength=0.4))
    (_, _, _, known_mask) = decoder.calls[0]
    assert int(known_mask.sum()) == 15
    assert batch.masks.all()
    (canvas,) = batch.canvases
    kept = (~canvas.mask).repeat_interleave(UNIT, 0).repeat_interleave(UNIT, 1)
    shown = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(canvas.pixels[:, kept], shown[:, kept])
    assert not torch.isclose(canvas.pixels[:, ~kept], shown[:, ~kept]).all()
    same, decoder, _ = edit(image, None, [5], EditConfig(strength=0))
    assert decoder.calls == []
    assert np.array_equal(as_bytes(same)[0], image)


def test_fill_continues_what_is_visible():
    ramp_picture = torch.linspace(-1, 1, 32).expand(3, 20, 32).clone()
    hidden = torch.zeros(20, 32, dtype=torch.bool)
    hidden[:, 12:20] = True
    filled = fill(ramp_picture.masked_fill(hidden, 100.0), hidden)
    assert torch.equal(filled[:, ~hidden], ramp_picture[:, ~hidden])
    assert (filled - ramp_picture).abs().max() < 0.3
    assert not fill(torch.ones(3, 4, 4), torch.ones(4, 4, dtype=torch.bool)).any()
    one = torch.ones(1, 9, dtype=torch.bool)
    one[0, 4] = False
    torch.testing.assert_close(fill(torch.full((3, 1, 9), 0.5), one), torch.full((3, 1, 9), 0.5))


def test_frames_around_the_mask():
    mask = np.zeros((100, 200), bool)
    mask[40:50, 60:80] = True
    frame = frame_of(mask, UNIT, AREA, 5)  # 20 x 30 px become about 1600 px: 1.63 times as large
    assert (frame.rows, frame.columns) == (5, 7)
    assert frame.top <= 35 and frame.top + frame.height >= 55
    assert frame.left <= 55 and frame.left + frame.width >= 85
    assert abs(frame.height / frame.width - 5 / 7) < 0.05
    corner = np.zeros((100, 200), bool)
    corner[50:, 108:] = True
    frame = frame_of(corner, UNIT, AREA, 9)  # 59 x 101 px become 64 x 104
    assert (frame.top + frame.height, frame.left + frame.width) == (100, 200), "inside, where there is room"
    mask[:] = True
    frame = frame_of(mask, UNIT, AREA, 5)  # larger than the model's area: as it is, never shrunk
    assert (frame.top, frame.left, frame.height, frame.width) == (0, 0, 104, 200)
    for key in range(300):
        height, width = numpy_draws(0, "test-frame", key).integers(1, 90, 2).tolist()
        mask = masks_of(key, height, width, 1)[0]
        if mask.any():
            frame = frame_of(mask, UNIT, AREA, key % 9)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert 0 <= frame.top <= rows[0] and rows[-1] < frame.top + frame.height
            assert 0 <= frame.left <= columns[0] and columns[-1] < frame.left + frame.width
            assert frame.height <= frame.rows * UNIT and frame.width <= frame.columns * UNIT


def test_the_cropped_part_comes_back_to_its_place():
    class Echo(NoisyDecoder):
        def __call__(self, chosen, grid, known, known_mask):
            self.calls.append((chosen, grid, known, known_mask))
            return known

    class Plain(WideAutoencoder):
        def encode(self, pixels):
            return F.avg_pool2d(pixels, STRIDE), pixels

    # the smooth continuation of a plane is the plane: decoded, it must lie where it was
    y, x = np.mgrid[0:64, 0:96]
    image = np.stack([y / 64, x / 96, (y + x) / 160], 2).astype(np.float32)
    mask = np.zeros((64, 96), bool)
    mask[30:38, 50:60] = True
    batch = edit_batch(image, mask, 1, [0], UNIT, AREA, EditConfig(crop=8))
    edited = batch.finish("np", batch.paint(Plain(), PATCH, Echo([0])))
    assert np.array_equal(edited[0][~mask], image[~mask])
    assert 0 < np.abs(edited[0] - image).max() < 0.12


def test_feather_fades_in_from_the_border():
    mask = np.zeros((9, 12), bool)
    mask[:, 4:] = True
    weights = ramp(mask, 3)
    np.testing.assert_allclose(weights[4], [0] * 4 + [0.25, 0.5, 0.75] + [1] * 5)
    assert np.array_equal(ramp(mask, 0), mask)
    image = np.zeros((9, 12, 3), np.uint8)
    canvas = prepare(image, mask, 0, 8, AREA, WHOLE)
    made = compose(image, mask, canvas, torch.ones(3, 16, 16), 3)
    assert made[4, :, 0].tolist() == [0] * 4 + [64, 128, 191] + [255] * 5


def test_outpainting_by_a_canvas():
    image = picture(0, 20, 30)
    canvas, mask = outpaint_canvas(image, left=5, top=7, right=1, bottom=2)
    assert canvas.shape == (29, 36, 3)
    assert np.array_equal(canvas[7:27, 5:35], image)
    assert mask.sum() == mask.size - 600
    assert not mask[7:27, 5:35].any()
    edited, _, _ = edit(canvas, mask, output_type="pil")
    assert np.array_equal(np.asarray(edited[0])[7:27, 5:35], image)
    for sides in ({}, {"left": 0}, {"left": -1, "right": 4}):
        with pytest.raises(UserError, match="outpaint: got .*, allowed: one side or more"):
            outpaint_canvas(image, **sides)


def test_every_way_to_hold_a_picture():
    image = picture(0, 12, 10)
    floats = image / np.float32(255)
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    for given in (image, image[None], [image], Image.fromarray(image), [Image.fromarray(image)]):
        assert np.array_equal(to_pictures(given), image[None])
    for given in (floats, floats[None], tensor, tensor[None], [tensor], floats.astype(np.float64)):
        assert np.array_equal(to_pictures(given), floats[None])
    assert np.array_equal(to_pictures(torch.from_numpy(image).permute(2, 0, 1)), image[None])
    assert to_pictures([image, np.stack([image, image])]).shape == (3, 12, 10, 3)
    assert np.array_equal(to_pictures(tensor.bfloat16())[0], tensor.bfloat16().float().permute(1, 2, 0))
    assert to_pictures(Image.new("RGBA", (3, 2), (0, 0, 0, 0))).tolist() == [[[[255] * 3] * 3] * 2]


def test_every_way_to_hold_a_mask():
    mask = masks_of(6, 12, 10, 1)[0]
    mask[3, 4], mask[5, 6] = True, False
    grey = np.where(mask, 128, 127).astype(np.uint8)
    held = [mask, grey, mask.astype(np.uint8), mask.astype(np.int64), np.where(mask, 0.5, 0.49)]
    held += [mask[None], mask[..., None], mask[None, :, :, None], mask[None, None]]
    held += [torch.from_numpy(each) for each in held]
    held += [Image.fromarray(grey), Image.fromarray(mask), Image.fromarray(grey).convert("RGB")]
    for each in held:
        assert np.array_equal(to_masks(each, 12, 10), mask[None])
        assert np.array_equal(to_masks([each, each], 12, 10), np.stack([mask, mask]))
    painted = np.zeros((12, 10, 4), np.uint8)
    painted[mask] = 255  # white strokes on a transparent layer
    assert np.array_equal(to_masks(Image.fromarray(painted), 12, 10)[0], mask)


def test_floats_come_back_unchanged():
    for dtype in (np.float32, np.float64):
        image = numpy_draws(0, "test-floats").random((20, 20, 3)).astype(dtype)
        mask = np.zeros((20, 20), bool)
        mask[5:9] = True
        edited, _, _ = edit(image, mask)
        assert edited.dtype == dtype
        assert np.array_equal(edited[0][~mask], image[~mask])
    tensor, _, _ = edit(torch.from_numpy(image).permute(2, 0, 1), mask, output_type="pt")
    assert tensor.shape == (1, 3, 20, 20)
    assert np.array_equal(tensor[0].permute(1, 2, 0).numpy()[~mask], image[~mask])


def test_one_picture_for_all_or_one_per_prompt():
    pictures = np.stack([picture(i, 9, 9) for i in range(4)])
    mask = np.ones((9, 9), bool)
    for given, used in ((pictures[0], [0, 0, 0, 0]), (pictures[:2], [0, 0, 1, 1]), (pictures, [0, 1, 2, 3])):
        batch = edit_batch(given, mask, 2, [0, 1, 2, 3], UNIT, AREA, WHOLE)
        assert np.array_equal(batch.pictures, pictures[used])
    with pytest.raises(UserError, match="image: got 3 for 4 images, allowed: one, or one per prompt"):
        edit_batch(pictures[:3], mask, 2, [0, 1, 2, 3], UNIT, AREA, WHOLE)
    with pytest.raises(UserError, match="mask_image: got 3 for 4 images"):
        edit_batch(pictures[0], np.stack([mask] * 3), 2, [0, 1, 2, 3], UNIT, AREA, WHOLE)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("photo.png", "got str, allowed: a PIL image"),
        ([], "got none"),
        (np.zeros((9, 9), np.uint8), r"got uint8 array \[9, 9\]"),
        (np.zeros((9, 9, 4), np.uint8), r"got uint8 array \[9, 9, 4\]"),
        (np.zeros((9, 9, 3), np.int64), r"got int64 array \[9, 9, 3\]"),
        (np.zeros((0, 9, 3), np.uint8), r"got uint8 array \[0, 9, 3\]"),
        (torch.zeros(9, 9, 3), r"got float32 tensor \[9, 9, 3\]"),
        (np.full((9, 9, 3), 1.5), "got floats from 1.5 to 1.5, allowed: 0 to 1"),
        (np.full((9, 9, 3), np.nan), "got floats from nan to nan"),
        (torch.full((3, 9, 9), -1.0), "got floats from -1 to -1"),
        (
            [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)],
            "got 8x9 px uint8 and 9x9 px uint8, allowed: one size and type",
        ),
        ([np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3))], "got 9x9 px float64 and 9x9 px uint8"),
        (Image.new("F", (9, 9)), "PIL image of floats"),
    ],
)
def test_pictures_that_are_refused(image, told):
    with pytest.raises(UserError, match=told) as caught:
        to_pictures(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (None, "got NoneType"),
        (np.zeros((9, 8), bool), r"got bool array \[9, 8\], allowed: the image's 9x9 px"),
        (Image.new("L", (9, 8)), "got 9x8 px, allowed: the image's 9x9 px"),
        (np.zeros((9, 9, 3), np.uint8), r"got uint8 array \[9, 9, 3\]"),
        (np.zeros((1, 1, 1, 9, 9), bool), "array"),
        (np.full((9, 9), np.nan), "got floats from nan to nan"),
        (np.full((9, 9), 255.0), "got floats from 255 to 255, allowed: 0 to 1"),
        (np.full((9, 9), 256), "got numbers to 256, allowed: 0 to 255"),
        (np.zeros((9, 9), complex), "complex128"),
        ([], "got none"),
    ],
)
def test_masks_that_are_refused(mask, told):
    with pytest.raises(UserError, match=told) as caught:
        to_masks(mask, 9, 9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strength": 1.1}, "strength: got 1.1"),
        ({"strength": float("nan")}, "strength: got nan"),
        ({"feather": -1}, "feather: got -1"),
        ({"crop": -1}, "padding_mask_crop: got -1"),
        ({"crop": 10**9}, "padding_mask_crop"),
    ],
)
def test_settings_that_are_refused(settings, told):
    image = picture(0, 9, 9)
    with pytest.raises(UserError, match=told):
        edit(image, np.ones((9, 9), bool), config=replace(WHOLE, **settings))
    with pytest.raises(UserError, match="padding_mask_crop: got no mask_image"):
        edit(image, None, config=EditConfig(crop=3))
