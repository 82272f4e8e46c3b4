"""Large results of jobs: sent from what is kept, as they are read, and only so many at a time."""

import asyncio

from lightgen.serve.config import JobConfig
from lightgen.serve.jobs import Job, Jobs


def made_job(count):
    """Jobs with one that has ended, with a result of so many bytes."""
    jobs = Jobs(None, JobConfig())
    job = Job("owner", [])
    job.result = b'"' + b"0" * count + b'"'
    jobs._jobs[job.name] = job
    return jobs, job


def test_a_large_result_is_sent_as_it_is_kept_and_as_fast_as_it_is_read():
    jobs, job = made_job(8 << 20)
    sent, reads = [], asyncio.Semaphore(0)

    async def main():
        async def send(message):
            sent.append(message)
            await reads.acquire()

        answer = jobs.answer(job.name, "owner")
        sending = asyncio.ensure_future(answer({"type": "http", "asgi": {"spec_version": "2.4"}}, None, send))
        for count in (1, 2, 3):
            await asyncio.sleep(0.01)
            assert len(sent) == count, "nothing is made before it is asked for"
            reads.release()
        for _ in range(1000):
            reads.release()
        await sending
        assert not jobs._readers

    asyncio.run(main())
    parts = [message["body"] for message in sent[1:]]
    assert b"".join(parts) == job.answer()
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(job.answer())).encode()
    assert max(map(len, parts)) <= 64 << 10
    assert (
        sum(isinstance(part, memoryview) and part.obj is job.result for part in parts)
        == (8 << 20) // (64 << 10) + 1
    ), "views of what is kept"


def test_an_owner_reads_so_many_large_results_at_a_time():
    jobs, job = made_job(1 << 20)

    async def main():
        async def stuck(message):
            await asyncio.Event().wait()

        async def begun(send):
            scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
            sending = asyncio.ensure_future(jobs.answer(job.name, "owner")(scope, None, send))
            await asyncio.sleep(0.01)
            return sending

        async def note(message):
            sent.append(message)

        stuck_ones = [await begun(stuck) for _ in range(4)]
        sent = []
        await begun(note)
        assert sent[0]["status"] == 429 and dict(sent[0]["headers"])[b"retry-after"] == b"1"
        stuck_ones[0].cancel()
        await asyncio.gather(stuck_ones[0], return_exceptions=True)
        sent = []
        await begun(note)
        assert sent[0]["status"] == 200, "a place is free again"
        for each in stuck_ones:
            each.cancel()
        await asyncio.gather(*stuck_ones, return_exceptions=True)
        assert not jobs._readers

    asyncio.run(main())
