"""What a node remembers of the requests it answered."""

import asyncio

import grpc
import pytest

from mllm_sched.pipeline import jobs as module
from mllm_sched.pipeline.jobs import Job, Jobs, RefusedError
from mllm_sched.pipeline.proto import node_pb2 as pb


async def answered(jobs, name, digest=b"d", tokens=3, logits=b""):
    """A job that is done."""

    async def work(job):
        for index in range(tokens):
            job.add(pb.Token(index=index, token=index, logits=logits))
        job.end(pb.Finished())

    with jobs.take() as slot:
        job = jobs.launch(name, digest, slot, work)
    await jobs.drain(1.0)
    await asyncio.sleep(0)
    return job


async def events(job, have=0):
    return [event async for event in job.follow(have)]


def test_an_answer_is_kept_and_may_be_followed_from_any_token():
    async def main():
        jobs = Jobs(2)
        await answered(jobs, "a")
        job = jobs.find("a", b"d")
        assert [event.token.index for event in (await events(job, 1))[:-1]] == [1, 2]
        assert [event.WhichOneof("content") for event in await events(job, 3)] == ["finished"]
        with pytest.raises(RefusedError, match="the answer has 3 tokens") as refused:
            await events(job, 4)
        assert refused.value.code is grpc.StatusCode.OUT_OF_RANGE

    asyncio.run(main())


def test_a_slow_follower_misses_no_token_of_an_answer_that_ends_meanwhile():
    async def main():
        job, got = Job(b"d"), []
        job.add(pb.Token(index=0, token=7))
        async for event in job.follow(0):
            got.append(event.WhichOneof("content"))
            if len(got) == 1:  # while the first is on its way, the rest is made
                job.add(pb.Token(index=1, token=8))
                job.end(pb.Finished(tokens=2))
        assert got == ["token", "token", "finished"]

    asyncio.run(main())


def test_old_answers_are_forgotten_and_their_ids_are_not(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 100_000)

    async def main():
        jobs = Jobs(2)
        for number in range(50):
            await answered(jobs, str(number), logits=bytes(3000))
        assert jobs.find("49", b"d") is not None
        with pytest.raises(RefusedError, match="its answer is gone") as refused:
            jobs.find("0", b"d")
        assert refused.value.code is grpc.StatusCode.ALREADY_EXISTS
        with pytest.raises(RefusedError, match="with other bytes"):
            jobs.find("0", b"x")
        held = sum(job.bytes for job in jobs._jobs.values())
        assert 50_000 < held <= 100_000
        assert jobs.find("never seen", b"d") is None

    asyncio.run(main())


def test_ids_are_bounded_too(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(module, "REMEMBERED_IDS", 10)

    async def main():
        jobs = Jobs(1)
        for number in range(30):
            await answered(jobs, str(number))
        assert len(jobs._forgotten) == 10 and not jobs._jobs

    asyncio.run(main())


def test_places_are_limited_and_given_back():
    async def main():
        jobs = Jobs(2)
        with jobs.take(), jobs.take():
            with pytest.raises(RefusedError, match="2 requests are served now") as refused:
                jobs.take()
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        for number in range(5):
            await answered(jobs, str(number))
        assert jobs.taken == 0

    asyncio.run(main())


def test_a_failed_job_may_be_tried_again_and_its_followers_are_told():
    async def main():
        jobs = Jobs(1)

        async def work(job):
            job.add(pb.Token(index=0))
            job.end(failure=RefusedError(grpc.StatusCode.INTERNAL, "a defect"))

        with jobs.take() as slot:
            job = jobs.launch("a", b"d", slot, work)
        with pytest.raises(RefusedError, match="a defect"):
            await events(job)
        await asyncio.sleep(0)
        assert jobs.find("a", b"d") is None and jobs.taken == 0

    asyncio.run(main())


def test_draining_stops_what_takes_too_long():
    async def main():
        jobs = Jobs(1)

        async def work(job):
            await asyncio.sleep(60)

        with jobs.take() as slot:
            job = jobs.launch("a", b"d", slot, work)
        await jobs.drain(0.05)
        with pytest.raises(RefusedError, match="shuts down") as refused:
            await asyncio.wait_for(events(job), 1)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())
