"""Jobs: asked for now, drawn without anybody waiting, fetched by their owner, and bounded."""

import asyncio
import threading
from dataclasses import replace

import pytest

from lightgen.serve.config import JobConfig, LimitConfig, QueueConfig, ServeConfig
from lightgen.serve.shapes import JobAnswer
from tests.serve.served import EDITS, GENERATIONS, JOBS, KEY, OTHER_KEY, Model, asked, picture, refusal, saved

ASKED = {"prompt": "a red apple", "seed": 3, "n": 2}


async def ended(client, name, **named):
    """The job when it has ended."""
    for _ in range(400):
        found = (await client.get(f"{JOBS}/{name}", **named)).json()
        if found["status"] in ("succeeded", "failed"):
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(found)


def test_a_job_is_answered_at_once_and_has_the_pictures_later():
    gate = threading.Semaphore(0)

    async def work(client):
        began = await client.post(f"{GENERATIONS}?async=1", json=ASKED)
        assert began.status_code == 202
        job = JobAnswer.model_validate(began.json())
        assert (job.status, job.result, job.error) == ("queued", None, None)
        assert began.headers["location"] == f"{JOBS}/{job.id}"
        gate.release(3)
        for _ in range(200):
            now = (await client.get(began.headers["location"])).json()
            if now["pictures"][0]["iteration"] == 3:
                break
            await asyncio.sleep(0.01)
        assert now["status"] == "running"
        assert [each["status"] for each in now["pictures"]] == ["running", "running"]
        gate.release(1000)
        done = await ended(client, job.id)
        answer = (await client.post(GENERATIONS, json=ASKED)).json()
        assert done["status"] == "succeeded" and done["pictures"][0]["status"] == "done"
        assert done["result"]["data"] == answer["data"]
        JobAnswer.model_validate(done)

    asked(work, Model(gate=gate))


def test_edits_may_be_jobs():
    async def work(client):
        files = {"image": ("x", saved(picture()))}
        began = await client.post(f"{EDITS}?async=true", data={"prompt": "a"}, files=files)
        return await ended(client, began.json()["id"])

    assert len(asked(work)["result"]["data"]) == 1


def test_a_deleted_job_is_not_drawn_on_and_is_gone():
    model = Model(step_s=0.01)

    async def work(client):
        name = (
            await client.post(f"{GENERATIONS}?async=1", json={**ASKED, "num_inference_steps": 200})
        ).json()["id"]
        await asyncio.sleep(0.05)
        gone = await client.delete(f"{JOBS}/{name}")
        assert gone.json() == {"id": name, "object": "image.job", "deleted": True}
        refusal(await client.get(f"{JOBS}/{name}"), 404)
        refusal(await client.delete(f"{JOBS}/{name}"), 404)
        for _ in range(100):
            if not model.pictures:
                break
            await asyncio.sleep(0.01)

    asked(work, model)
    assert len(model.seeds("step")) < 100


def test_a_job_that_fails_says_why():
    async def work(client):
        began = await client.post(f"{GENERATIONS}?async=1", json=ASKED)
        return await ended(client, began.json()["id"])

    found = asked(work, Model(fails={"step": 1}))
    assert found["status"] == "failed" and found["result"] is None
    assert found["error"]["type"] == "server_error" and "secret" not in str(found)


def test_a_job_is_there_for_its_owner_alone(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{OTHER_KEY}\n")
    own, other = ({"authorization": f"Bearer {key}"} for key in (KEY, OTHER_KEY))

    async def work(client):
        name = (await client.post(f"{GENERATIONS}?async=1", json=ASKED, headers=own)).json()["id"]
        for method in (client.get, client.delete):
            refusal(await method(f"{JOBS}/{name}", headers=other), 404)
        assert (await ended(client, name, headers=own))["status"] == "succeeded"

    asked(work, config=ServeConfig(api_key_file=file))


@pytest.mark.parametrize(
    ("path", "values"),
    [(f"{GENERATIONS}?async=2", ASKED), (f"{GENERATIONS}?async=1", {**ASKED, "stream": True})],
)
def test_what_is_no_job_is_refused(path, values):
    refusal(asked(lambda client: client.post(path, json=values)))


def test_names_that_are_none_are_refused():
    async def work(client):
        refusal(await client.get(f"{JOBS}/nobody"))
        refusal(await client.get(f"{JOBS}/job_{'0' * 32}"), 404)

    asked(work)


async def several(client, count, values=ASKED, **named):
    """Names of jobs that have ended, one after the other."""
    names = []
    for _ in range(count):
        began = await client.post(f"{GENERATIONS}?async=1", json=values, **named)
        names.append(began.json()["id"])
        await ended(client, names[-1], **named)
    return names


def test_the_oldest_go_when_there_are_too_many_or_too_large():
    async def kept(client):
        names = await several(client, 4)
        return [(await client.get(f"{JOBS}/{name}")).status_code for name in names]

    assert asked(kept, config=ServeConfig(jobs=JobConfig(max_jobs=3))) == [404, 200, 200, 200]


def test_one_who_keeps_many_jobs_does_not_push_out_another_s(tmp_path):
    own, other, file = owners(tmp_path)

    async def kept(client):
        (mine,) = await several(client, 1, headers=own)
        theirs = await several(client, 4, headers=other)
        found = [await client.get(f"{JOBS}/{name}", headers=other) for name in theirs]
        found.append(await client.get(f"{JOBS}/{mine}", headers=own))
        return [each.status_code for each in found]

    config = ServeConfig(jobs=JobConfig(max_jobs=3), api_key_file=file)
    assert asked(kept, config=config) == [404, 404, 200, 200, 200]


def test_the_bytes_of_all_jobs_are_bounded():
    jobs, size = JobConfig(), len(asked(lambda client: client.post(GENERATIONS, json=ASKED)).content)

    async def kept(client):
        names = await several(client, 4)
        found = [await client.get(f"{JOBS}/{name}") for name in names]
        return [each.status_code if each.is_error else each.json()["status"] for each in found]

    for most, expected in ((2.5, [404, 404, "succeeded", "succeeded"]), (0.5, ["failed"] * 4)):
        object.__setattr__(jobs, "max_bytes", int(most * size))  # less than a config may say
        assert asked(kept, config=replace(ServeConfig(), jobs=jobs)) == expected


def owners(tmp_path):
    """Headers of two owners, and the file of their keys."""
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{OTHER_KEY}\n")
    return *({"authorization": f"Bearer {key}"} for key in (KEY, OTHER_KEY)), file


def test_many_small_jobs_stay_where_another_s_large_ones_need_room(tmp_path):
    own, other, file = owners(tmp_path)
    jobs = JobConfig()
    large = {**ASKED, "size": "64x64", "n": 8}

    async def kept(client):
        names = await several(client, 4, headers=own)
        theirs = await several(client, 3, large, headers=other)
        found = [await client.get(f"{JOBS}/{name}", headers=own) for name in names]
        found += [await client.get(f"{JOBS}/{name}", headers=other) for name in theirs]
        return [each.status_code for each in found]

    size = len(asked(lambda client: client.post(GENERATIONS, json=ASKED)).content)
    most = len(asked(lambda client: client.post(GENERATIONS, json=large)).content)
    object.__setattr__(jobs, "max_bytes", 4 * size + 2 * most + size // 2)  # less than a config may say
    config = replace(ServeConfig(), jobs=jobs, api_key_file=file)
    assert 4 * size < 2 * most
    assert asked(kept, config=config) == [200] * 4 + [404, 200, 200]


def test_who_keeps_as_much_as_another_pushes_out_their_own(tmp_path):
    own, other, file = owners(tmp_path)

    async def kept(client):
        (mine,) = await several(client, 1, headers=own)
        theirs = await several(client, 2, headers=other)
        found = [await client.get(f"{JOBS}/{mine}", headers=own)]
        found += [await client.get(f"{JOBS}/{name}", headers=other) for name in theirs]
        return [each.status_code for each in found]

    config = ServeConfig(jobs=JobConfig(max_jobs=2), api_key_file=file)
    assert asked(kept, config=config) == [200, 404, 200]


def test_who_is_refused_pushes_nothing_out():
    config = ServeConfig(
        jobs=JobConfig(max_jobs=1), limits=LimitConfig(max_pictures=3), queue=QueueConfig(max_per_key=3)
    )
    gate = threading.Semaphore(16)

    async def work(client):
        (name,) = await several(client, 1)
        drawing = asyncio.ensure_future(client.post(GENERATIONS, json=ASKED))
        await asyncio.sleep(0.1)
        refusal(await client.post(f"{GENERATIONS}?async=1", json=ASKED), 429)
        assert (await client.get(f"{JOBS}/{name}")).status_code == 200
        gate.release(1000)
        await drawing

    asked(work, Model(gate=gate), config)


def test_old_jobs_go_by_themselves():
    jobs = JobConfig()
    object.__setattr__(jobs, "max_age_s", 0.05)

    async def work(client):
        (name,) = await several(client, 1)
        await asyncio.sleep(0.2)
        refusal(await client.get(f"{JOBS}/{name}"), 404)

    asked(work, config=replace(ServeConfig(), jobs=jobs))


def test_jobs_that_are_not_done_are_not_thrown_away_for_new_ones():
    config = ServeConfig(jobs=JobConfig(max_jobs=1), queue=QueueConfig())

    async def work(client):
        assert (await client.post(f"{GENERATIONS}?async=1", json=ASKED)).status_code == 202
        late = await client.post(f"{GENERATIONS}?async=1", json=ASKED)
        assert "retry-after" in late.headers
        return refusal(late, 429)

    assert "not done" in asked(work, Model(step_s=0.05), config)
