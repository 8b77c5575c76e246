"""What a node remembers of the requests it answered."""

import asyncio
import tracemalloc
from functools import wraps

import grpc
import pytest

from mllm_sched.pipeline import jobs as module
from mllm_sched.pipeline.jobs import Job, Jobs, RefusedError
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.wire import digest_of

FAR_S = 1e12


def in_a_loop(test):
    @wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


async def answered(jobs, name, digest=b"d", tokens=3, logits=b""):
    """A job that is done."""

    async def work(job):
        for index in range(tokens):
            job.add(index, logits)
        job.end(pb.Finished())

    job = launched(jobs, work, name, digest)
    while not job.over:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return job


def launched(jobs, work, name="a", digest=b"d", ends_s=FAR_S):
    with jobs.take(name, digest) as slot:
        return jobs.launch(name, digest, ends_s, slot, work)


async def events(job, have=0, digest=b""):
    return [event async for event in job.follow(have, digest)]


@in_a_loop
async def test_an_answer_is_kept_and_may_be_followed_from_any_token():
    jobs = Jobs(2)
    await answered(jobs, "a")
    job = jobs.find("a", b"d")
    assert [event.token.index for event in (await events(job, 1))[:-1]] == [1, 2]
    assert [event.WhichOneof("content") for event in await events(job, 3)] == ["finished"]
    with pytest.raises(RefusedError, match="the answer has 3 tokens") as refused:
        await events(job, 4)
    assert refused.value.code is grpc.StatusCode.OUT_OF_RANGE


@in_a_loop
async def test_an_answer_that_was_made_anew_goes_on_only_behind_the_same_tokens():
    job = await answered(Jobs(2), "a")  # tokens 0, 1, 2
    for had in ([0, 7], [0, 1, 2, 3]):
        with pytest.raises(RefusedError, match="made anew") as refused:
            await events(job, len(had), digest_of(had))
        assert refused.value.code is grpc.StatusCode.ABORTED


@in_a_loop
async def test_a_follower_waits_for_the_tokens_it_has_before_they_are_compared():
    job = Job(b"d", FAR_S)
    following = asyncio.create_task(events(job, 2, digest_of([5, 6])))
    for token in (5, 6, 7):
        await asyncio.sleep(0)
        job.add(token)
    job.end(pb.Finished(tokens=3))
    assert [event.token.token for event in (await following)[:-1]] == [7]


@in_a_loop
async def test_a_slow_follower_misses_no_token_of_an_answer_that_ends_meanwhile():
    job, got = Job(b"d", FAR_S), []
    job.add(7)
    async for event in job.follow(0):
        got.append(event.WhichOneof("content"))
        if len(got) == 1:  # while the first is on its way, the rest is made
            job.add(8)
            job.end(pb.Finished(tokens=2))
    assert got == ["token", "token", "finished"]


@in_a_loop
async def test_old_answers_are_forgotten_and_their_ids_are_not(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED_BYTES", 50_000)
    monkeypatch.setattr(module, "REMEMBERED_IDS", 10)
    jobs = Jobs(2)
    for number in range(20):
        await answered(jobs, str(number), logits=bytes(3000))
    held = [number for number in range(20) if jobs.knows(str(number))]
    assert held == [16, 17, 18, 19]  # of some 12 kB each
    assert jobs.find("5", b"d") is None and jobs.find("19", b"d") is not None
    with pytest.raises(RefusedError, match="its answer is gone") as refused:
        jobs.find("6", b"d")
    assert refused.value.code is grpc.StatusCode.ALREADY_EXISTS
    with pytest.raises(RefusedError, match="with other bytes"):
        jobs.find("6", b"x")


@in_a_loop
async def test_a_failed_job_may_be_tried_again_and_its_followers_are_told():
    jobs = Jobs(1)

    async def work(job):
        job.add(0)
        job.end(failure=RefusedError(grpc.StatusCode.INTERNAL, "a defect"))

    job = launched(jobs, work)
    with pytest.raises(RefusedError, match="a defect"):
        await events(job)
    await asyncio.sleep(0)
    assert jobs.find("a", b"d") is None and jobs.taken == 0


@in_a_loop
async def test_draining_stops_what_takes_too_long():
    jobs = Jobs(1)

    async def work(job):
        await asyncio.sleep(60)

    job = launched(jobs, work)
    await jobs.drain(0.05)
    with pytest.raises(RefusedError, match="shuts down") as refused:
        await asyncio.wait_for(events(job), 1)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


@in_a_loop
async def test_an_answer_is_made_as_long_as_anyone_waits_for_it():
    loop, jobs = asyncio.get_running_loop(), Jobs(1)
    reached = []

    async def work(job):
        async with job.in_time():
            await asyncio.sleep(0.2)
            reached.append(True)
            job.end(pb.Finished())

    job = launched(jobs, work, ends_s=loop.time() + 0.05)
    job.extend(loop.time() + 5)
    await events(job)
    assert reached


@in_a_loop
async def test_what_an_answer_holds_in_memory_is_not_underrated():
    """Measured over many jobs, as the interpreter counts them."""
    jobs = Jobs(1)
    await answered(jobs, "first", tokens=64)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(30):
        await answered(jobs, str(number), tokens=64)
    held = (tracemalloc.get_traced_memory()[0] - before) / 30
    tracemalloc.stop()
    assert held <= jobs.find("0", b"d").held_bytes < 3 * held


@in_a_loop
async def test_a_request_that_is_launched_twice_is_answered_once():
    jobs, begun = Jobs(4), []

    async def work(job):
        begun.append(job)
        await asyncio.sleep(0.05)
        job.end(pb.Finished())

    with jobs.take("a", b"d") as first, jobs.take("b", b"d") as second:
        job = jobs.launch("a", b"d", 1.0, first, work)
        assert jobs.launch("a", b"d", FAR_S, second, work) is job
        with pytest.raises(RefusedError, match="with other bytes"):
            jobs.launch("a", b"x", FAR_S, second, work)
    await events(job)
    await asyncio.sleep(0)
    assert begun == [job] and job.ends_s == FAR_S and jobs.taken == 0


@in_a_loop
async def test_an_upload_that_is_complete_just_as_it_gives_way_begins_no_answer():
    loop, jobs = asyncio.get_running_loop(), Jobs(4)
    whole = loop.create_future()

    async def uploading():
        with jobs.take("a", b"d") as slot:
            async with slot.upload(FAR_S):
                await whole
            return jobs.launch("a", b"d", FAR_S, slot, lambda job: asyncio.sleep(0))

    first = asyncio.create_task(uploading())
    await asyncio.sleep(0)
    whole.set_result(None)  # wakes it in the next turn of the loop; until then it can give way
    with jobs.take("a", b"d"):
        with pytest.raises(TimeoutError):
            await first
        assert jobs.find("a", b"d") is None and jobs.taken == 1
