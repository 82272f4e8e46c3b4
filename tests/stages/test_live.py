"""Pictures of a live batch: those of the pipeline alone, whoever joined or left meanwhile."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lightgen.core.errors import UserError
from lightgen.stages.decoding import DecodeOverrides, pipeline_arguments
from lightgen.stages.edit import EditConfig
from lightgen.stages.live import LiveBatch, LivePicture, PictureRequest, open_live
from lightgen.stages.pipeline import LightGenPipeline
from tests.stages.test_pipeline import released_like
from tests.stages.toy import toy_parts

SMALL = {"width": 64, "height": 64, "prompt": "a red dog"}
QUICK = DecodeOverrides(num_iterations=3, num_head_steps=2)


@pytest.fixture(scope="module")
def live():
    return LiveBatch(LightGenPipeline.from_parts(toy_parts()))


@pytest.fixture(scope="module")
def photo():
    ramp = np.arange(50 * 70 * 3, dtype=np.uint32).reshape(50, 70, 3)
    return (ramp * 7 % 251).astype(np.uint8)


def hole(top=10, left=20, height=20, width=24, shape=(50, 70)):
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def wanted(live, seed=0, preset=None, overrides=QUICK, **values):
    config = live.resolve(preset, overrides)
    return PictureRequest(**{**SMALL, "seed": seed, "config": config, **values})


def edited(live, image, seed=0, **values):
    return wanted(live, seed, **{"width": image.shape[1], "height": image.shape[0], "image": image, **values})


def alone(live, request):
    """What the pipeline gives for the same arguments."""
    values = dict(pipeline_arguments(request.config))
    if request.image is None:
        values |= {"width": request.width, "height": request.height}
    else:
        mask = request.mask
        values |= {
            "image": Image.fromarray(request.image),
            "mask_image": None if mask is None else Image.fromarray(mask.astype(np.uint8) * 255),
            "strength": request.edit.strength,
            "padding_mask_crop": request.edit.crop,
            "feather": request.edit.feather,
        }
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    return np.array(live._pipeline(**texts, seeds=[request.seed], **values).images[0])


def check(live, request, image):
    """The same to the rounding of sums: at most one level, in a few pixels."""
    expected = alone(live, request)
    assert image.dtype == np.uint8 and image.shape == (request.height, request.width, 3)
    apart = np.abs(image.astype(int) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01
    if request.mask is not None:
        assert (image[~request.mask] == request.image[~request.mask]).all()


def run(live, requests, every=1):
    """Pictures by request, of which one joins at every so many steps."""
    waiting, images = list(requests), {}
    for step in range(100):
        if waiting and step % every == 0:
            joined = live.join([waiting.pop(0)])
            assert isinstance(joined[0], LivePicture), joined
        done = live.step()
        images |= {each.request: image for each, image in zip(done, live.finish(done), strict=True)}
        if not waiting and not live.running:
            return [images[request] for request in requests]
    raise AssertionError("pictures stay")


def test_pictures_are_those_of_the_pipeline(live):
    requests = [
        wanted(live, 1),
        wanted(live, 2, "fast", prompt="two cats", negative_prompt="a car"),
        wanted(live, 3, width=96, negative_prompt="", overrides=replace(QUICK, guidance_scale=1.0)),
        wanted(live, 4, "balanced", DecodeOverrides(num_iterations=5), height=32, prompt="a blue bird"),
        wanted(live, 5, overrides=replace(QUICK, temperature=0.7, guidance_rise=0.5, solver="dpm++")),
    ]
    for request, image in zip(requests, run(live, requests), strict=True):
        check(live, request, image)


def test_and_of_a_model_as_released():
    live = LiveBatch(released_like())
    requests = [
        wanted(live, 1),
        wanted(live, 2, "fast", negative_prompt="a car"),
        wanted(live, 3, width=96, overrides=replace(QUICK, solver="ddim")),
    ]
    for request, image in zip(requests, run(live, requests), strict=True):
        check(live, request, image)


def test_edits_are_those_of_the_pipeline(live, photo):
    requests = [
        edited(live, photo, 1, mask=hole()),
        edited(live, photo, 2, mask=hole(), edit=EditConfig(strength=0.5, feather=3)),
        edited(live, photo, 3, mask=hole(0, 0, 9, 9), edit=EditConfig(crop=8)),
        edited(live, photo, 4),
        wanted(live, 5),
    ]
    for request, image in zip(requests, run(live, requests), strict=True):
        check(live, request, image)


def test_those_that_join_together_and_stay_when_another_leaves(live):
    requests = [wanted(live, seed, prompt=f"{seed} dogs") for seed in range(4)]
    pictures = live.join(requests)
    live.step()
    live.leave(pictures[1])
    live.leave(pictures[1])
    assert live.running == 3
    live.step()
    done = live.step()
    assert done == [pictures[0], pictures[2], pictures[3]] and live.running == 0
    for picture, image in zip(done, live.finish(done), strict=True):
        check(live, picture.request, image)


def test_an_edit_of_nothing_is_finished_at_once(live, photo):
    requests = [
        edited(live, photo, mask=np.zeros((50, 70), bool)),
        edited(live, photo, mask=hole(), edit=EditConfig(strength=0.0)),
    ]
    pictures = live.join(requests)
    assert live.running == 2 and all(each.known().all() and each.num_iterations == 0 for each in pictures)
    for image in live.preview(pictures):
        assert (image == photo).all()
    assert live.step() == pictures and live.running == 0
    for image in live.finish(pictures):
        assert (image == photo).all()


def test_a_preview_is_grey_where_tokens_are_unknown(live, photo):
    pictures = live.join([wanted(live, 1), edited(live, photo, 2, mask=hole())])
    first = live.preview(pictures)
    assert (first[0] == 128).all()
    assert (first[1][hole()] == 128).all() and (first[1][~hole()] == photo[~hole()]).all()
    live.step()
    for picture, image in zip(pictures, live.preview(pictures), strict=True):
        known, unit = picture.known(), live.unit
        assert known.shape == picture.grid and 0 < known.sum() < known.size
        mask = picture.request.mask
        cells = known.repeat(unit, 0).repeat(unit, 1)[: image.shape[0], : image.shape[1]]
        assert (image[~cells if mask is None else ~cells & mask] == 128).all()
        assert not (image[cells] == 128).all()
        assert (picture.iteration, picture.num_iterations) == (1, 3)
    live.step(), live.step()
    for shown, finished in zip(live.preview(pictures), live.finish(pictures), strict=True):
        assert (shown == finished).all()


def test_what_cannot_be_drawn_is_refused_alone(live, photo):
    good = [wanted(live, seed) for seed in (1, 2)]
    flow = live.resolve("fast", QUICK)
    bad = {
        "prompt: got a blank": wanted(live, prompt=" "),
        "negative_prompt: ": wanted(live, negative_prompt="x" * 5000),
        "size: got 65x64": wanted(live, width=65),
        "size: got 0x64": wanted(live, width=0),
        "seeds: ": wanted(live, seed=2**64),
        "solver: ": replace(wanted(live), config=replace(flow, solver="ancestral")),
        "num_iterations: ": replace(wanted(live), config=replace(flow, num_iterations=0)),
        "only with an image": wanted(live, mask=hole()),
        "strength: ": edited(live, photo, edit=EditConfig(strength=2.0)),
        "padding_mask_crop: got no": edited(live, photo, edit=EditConfig(crop=3)),
        "the image's 70x50 px": edited(live, photo, width=64),
        "mask_image: ": edited(live, photo, mask=hole(shape=(64, 64))),
        "image: got float64": edited(live, photo / 255),
    }
    answers = live.join([good[0], *bad.values(), good[1]])
    assert [isinstance(each, LivePicture) for each in answers] == [True, *[False] * len(bad), True]
    for (text, request), answer in zip(bad.items(), answers[1:-1], strict=True):
        assert isinstance(answer, UserError) and text in str(answer) and "\n" not in str(answer)
        with pytest.raises(UserError, match=".") as caught:
            live.check(request)
        assert str(caught.value) == str(answer)
    assert live.running == 2
    live.check(good[0])
    live.reset()
    assert live.running == 0 and live.step() == []


def test_a_batch_begins_anew_after_a_failure(live, monkeypatch):
    live.join([wanted(live, 1), wanted(live, 2)])
    live.step()

    def fail(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(type(live._transformer.decoder_norm), "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            live.step()
    live.reset()
    request = wanted(live, 3)
    check(live, request, run(live, [request])[0])


def test_nano_is_opened_with_its_facts():
    live = open_live("nano")
    assert live.facts["model"] == "nano" and len(live.facts["model_digest"]) >= 32
    assert live.default_size == (128, 128) and live.unit == 16
    assert live.resolve("fast", DecodeOverrides()).refresh_every == 2
    with pytest.raises(UserError):
        live.resolve("quick", DecodeOverrides())
    with pytest.raises(UserError):
        open_live("no-such-folder")
    assert not torch.is_inference_mode_enabled()
