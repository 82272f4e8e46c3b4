"""The worker with the shipped model: pictures that join and leave as they come are those drawn alone."""

import asyncio

import numpy as np
import pytest

from lightgen.serve.ticket import Cancelled
from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.live import PictureRequest, open_live
from tests.serve.fake_live import started

PROMPTS = ("a photo of a dog", "a photo of two red cars", "a photo of a cake left of a cat")


@pytest.fixture(scope="module")
def live():
    return open_live("nano")


def request_of(live, seed, height, width, **values):
    config = live.resolve("fast", DecodeOverrides(num_iterations=4 + seed, num_head_steps=2))
    prompt = PROMPTS[seed % len(PROMPTS)]
    return PictureRequest(prompt=prompt, width=width, height=height, seed=seed, config=config, **values)


def test_pictures_that_join_and_leave_are_those_drawn_alone(live):
    side = 4 * live.unit
    requests = [request_of(live, seed, side, side * (1 + seed % 2)) for seed in range(4)]

    async def together():
        async with started(live, max_running=3) as worker:
            (first,) = worker.submit(requests[:1], "fake", "a", previews=2)
            updates = first.updates()
            await anext(updates)
            (goes,) = worker.submit([request_of(live, 7, side, side)], "fake", "a")
            rest = worker.submit(requests[1:], "fake", "b")
            previews = [each.preview async for each in updates if each.preview is not None]
            goes.cancel()
            pictures = [await ticket.result() for ticket in (first, *rest)]
            with pytest.raises(Cancelled):
                await goes.result()
        return pictures, previews

    async def alone(request):
        async with started(live) as worker:
            return await worker.submit([request], "fake", "a")[0].result()

    pictures, previews = asyncio.run(together())
    assert live.running == 0
    for request, picture in zip(requests, pictures, strict=True):
        assert picture.shape == (request.height, request.width, 3)
        other = asyncio.run(alone(request))
        assert np.abs(picture.astype(int) - other.astype(int)).max() <= 2
        assert picture.std() > 1
    assert {each.shape for each in previews} == {pictures[0].shape}
    assert not np.array_equal(previews[0], pictures[0])


def test_an_edit_that_changes_nothing_is_answered_too(live):
    side = 4 * live.unit
    image = np.arange(side * side * 3).reshape(side, side, 3).astype(np.uint8)
    request = request_of(live, 1, side, side, image=image, mask=np.zeros((side, side), bool))

    async def main():
        async with started(live) as worker:
            (ticket,) = worker.submit([request], "fake", "a", previews=3)
            picture = await asyncio.wait_for(ticket.result(), 20)
            return picture, [update async for update in ticket.updates()]

    picture, updates = asyncio.run(main())
    assert np.array_equal(picture, image)
    assert updates[-1].known.all()
