"""An agent's service, queue and journal, with a scripted device and a scripted LLM server."""

import asyncio
import gc
import hashlib
import time
import weakref
from dataclasses import replace

import grpc
import numpy as np
import pytest
from agent_here import Device, Llm, failed, here, message, until

from mllm_sched.edge.encoder_stage import LOOKS
from mllm_sched.edge.users import User, Users
from mllm_sched.pipeline.node_errors import RequestRefused
from mllm_sched.pipeline.options import Limits
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import Item

ANSWER = [7, 8]


def users(front=True, **limits):
    """A user ``few`` with these limits, and the one who asks, for others if it is a front."""
    asking = User("front", hashlib.sha256(b"any").hexdigest(), front=front)
    return Users([User("few", **limits), asking])


def serving(**options):
    """Makes a test of a coroutine that is given an agent with these options."""

    def decorated(test):
        def run(tmp_path):
            async def main():
                async with here(tmp_path, **options) as system:
                    await test(system)

            asyncio.run(main())

        return run

    return decorated


async def flooded(system, callers, flood_items, items, tasks):
    """Answers that a flood of requests got while one user asked so many tasks."""
    flooding, answers = True, []

    async def flood():
        while flooding:
            answers.append(await system.ask("bad", items=flood_items))

    floods = [asyncio.create_task(flood()) for _ in range(callers)]
    await until(lambda: len(answers) > callers)
    before = len(answers)
    for _ in range(tasks):
        assert await system.ask("good", items=items) == ANSWER
    meanwhile, flooding = len(answers) - before, False
    await asyncio.gather(*floods)
    assert all(answer == ANSWER for answer in answers)
    return meanwhile


@serving(device=Device(0.1), llm=Llm(0.05), at_once=2)
async def test_a_flood_of_text_leaves_others_their_turn_and_the_server_its_limit(system):
    assert await flooded(system, 14, flood_items=0, items=1, tasks=6) <= 6 * 8
    assert system.llm.most <= 2
    assert system.agent.answering.running == 0


@serving(llm=Llm(0.05), at_once=1)
async def test_a_flood_of_images_that_are_encoded_quickly_does_not_starve_who_sends_text(system):
    assert await flooded(system, 10, flood_items=1, items=0, tasks=5) <= 5 * 6


@serving(llm=Llm(0.2))
async def test_an_answer_that_was_stored_meanwhile_is_the_one_that_holds(system):
    for name, stored in (("1", ANSWER), ("2", [9])):
        data = message(1, name)
        asked = asyncio.create_task(system.ask(name=name, data=data))
        await until(lambda count=int(name): len(system.llm.asked) == count)
        finished = pb.Finished(tokens=len(stored)).SerializeToString()
        system.journal.keep_answer("ana", name, hashlib.sha256(data).digest(), stored, finished)
        answer = await asked
        if stored != ANSWER:
            assert answer[0] == "ABORTED" and "made anew and begins differently" in answer[1]
        assert await system.ask(name=name, data=data) == stored


@serving(device=Device(0.5))
async def test_a_locked_journal_refuses_new_tasks_at_once_and_takes_them_afterwards(
    system,
):
    assert await system.ask() == ANSWER
    held = asyncio.create_task(system.ask(deadline_s=30.0))
    await until(lambda: len(system.device.calls) == 2)
    behind = [asyncio.create_task(system.ask("ben", deadline_s=30.0)) for _ in range(3)]
    await asyncio.sleep(0.1)
    with system.locked():
        for code, why in await asyncio.gather(*behind):  # they wait, and go elsewhere
            assert code == "UNAVAILABLE" and "journal" in why
        begun_s = time.monotonic()
        new = [system.ask("cyd", deadline_s=30.0, items=n % 2) for n in range(20)]
        for code, why in await asyncio.gather(*new):
            assert code == "UNAVAILABLE" and "journal" in why
        assert time.monotonic() - begun_s < 3  # not one after the other
        assert not held.done()
    assert await held == ANSWER
    await until(lambda: not system.agent.why_not)
    assert await system.ask() == ANSWER
    assert system.counted("journal") == 23


@serving(device=Device(0.05))
async def test_a_request_of_many_items_lets_others_in_between(system):
    many = asyncio.create_task(system.ask("ana", items=30, deadline_s=30.0))
    await until(lambda: len(system.device.calls) > 2)
    before = len(system.device.calls)
    assert await system.ask("ben", deadline_s=60.0) == ANSWER
    assert len(system.device.calls) - before < 8
    assert not many.done()
    assert await many == ANSWER
    assert len(system.device.calls) == 31


class Slowed(Device):
    """Takes, and tells of, 0.15 s for every item of a call."""

    def run(self, arm, task, items):
        self.busy_s = 0.15 * len(items)
        return replace(super().run(arm, task, items), latency_s=self.busy_s)


@serving(device=Slowed(), sizes=(1, 2))  # the limit is 0.2 s
async def test_items_are_not_encoded_together_where_that_takes_longer_than_the_limit(system):
    asked = [system.ask(name, items=8, deadline_s=30.0) for name in ("ana", "ben")]
    assert await asyncio.gather(*asked) == [ANSWER, ANSWER]
    assert system.device.calls.count(2) == LOOKS
    assert system.device.calls[-1] == 1 and sum(system.device.calls) == 16
    assert not system.agent.stage.loop.infeasible["image"]


class Small(Device):
    """Has memory for one item at a time."""

    def run(self, arm, task, items):
        encoded = super().run(arm, task, items)
        return failed(encoded, "out of memory") if len(items) > 1 else encoded


@serving(device=Small(0.03), sizes=(1, 2))
async def test_calls_that_fail_for_their_size_are_not_made_again_and_again(system):
    for _ in range(3):
        await asyncio.gather(*(system.ask(name, items=4) for name in ("ana", "ben")))
    assert system.device.calls.count(2) == 2  # one, on two arms
    assert await system.ask("ana", items=4) == ANSWER


@serving(device=Device(0.1))
async def test_nothing_more_is_encoded_for_a_user_who_has_gone(system):
    code, _ = await system.ask("ana", items=20, deadline_s=0.55)
    assert code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")  # or seen to be late
    await until(lambda: not system.agent.stage.running)
    assert len(system.device.calls) < 9
    assert await system.ask("ben") == ANSWER
    assert len(system.agent.stage.queue) == 0
    assert system.agent.stage.backlog_s == 0


@serving(device=Device(2.0))
async def test_who_can_no_longer_be_in_time_is_sent_away_while_a_call_goes_on(system):
    for _ in range(30):
        system.agent.stage.admission.encoded("image", 0.4)
    long = asyncio.create_task(system.ask("ana", deadline_s=30.0))
    await until(lambda: system.agent.stage.running)
    code, words = await system.ask("ben", deadline_s=1.3)
    assert system.agent.stage.running  # the long call goes on
    assert code == "RESOURCE_EXHAUSTED" and "it waited too long" in words
    assert "ask again in" in words
    assert await long == ANSWER


@serving(device=Device(0.01), at_once=1)
async def test_where_answers_are_scarcer_than_encoding_it_is_they_that_make_the_wait(system):
    admission, stage = system.agent.stage.admission, system.agent.stage
    system.llm.going.clear()
    for _ in range(30):
        admission.encoded("image", 0.01)
        admission.answered(2.0)
    asked = [asyncio.create_task(system.ask(items=0, deadline_s=60.0))]
    await until(lambda: stage.answering.running)
    assert stage.backlog_s == pytest.approx(2.0)  # though nothing waits
    for items in (0, 1, 8):
        asked.append(asyncio.create_task(system.ask(items=items, deadline_s=60.0)))
        await until(lambda: len(stage.queue) == len(asked) - 1)
    assert stage.backlog_s == pytest.approx(8.0, rel=0.02)
    code, words = await system.ask("ana", deadline_s=3.0, items=0)
    assert code == "RESOURCE_EXHAUSTED" and "it would be answered in" in words
    system.llm.going.set()
    assert await asyncio.gather(*asked) == [ANSWER] * 4


@serving(device=Device(0.3))
async def test_what_keeps_the_device_busy_is_predicted_not_what_it_is_told_to_take(system):
    for _ in range(4):
        await system.ask()
    (expected,) = system.agent.stage.admission.predictions()
    assert 0.2 < expected.latency_s < 1.0  # told: 0.1


@serving(device=Device(0.3))
async def test_an_agent_ends_soon_though_its_journal_is_locked(system):
    asked = asyncio.create_task(system.ask(deadline_s=120.0))
    await until(lambda: system.device.calls)
    with system.locked():
        begun_s = time.monotonic()
        await system.agent.drain(0.5)
        await asyncio.to_thread(system.agent.close)
        assert time.monotonic() - begun_s < 10
    code, why = await asked
    assert code == "UNAVAILABLE", why


@serving(
    llm=Llm(0.5),
    users=users(rate_hz=0.01, burst=2, at_once=1),
    limits=Limits(requests=3),
    at_once=3,
)
async def test_every_refusal_is_counted_once(system):
    asked = asyncio.create_task(system.ask("few"))
    await until(lambda: system.llm.asked)
    assert "at-once" in (await system.ask("few"))[1]
    assert await asked == ANSWER
    assert await system.ask("few") == ANSWER
    assert "rate" in (await system.ask("few"))[1]
    assert "cannot" in (await system.ask(deadline_s=0.05))[1]
    asked = [asyncio.create_task(system.ask()) for _ in range(3)]
    await until(lambda: system.agent.jobs.taken == 3)
    assert "3 requests are served now" in (await system.ask())[1]
    draining = asyncio.create_task(system.agent.drain(5.0))
    await asyncio.sleep(0)
    assert "draining" in (await system.ask())[1]
    await asyncio.gather(*asked, draining)
    for reason in ("at-once", "rate", "cannot", "queue-full", "draining"):
        assert system.counted(reason) == 1, reason
    for reason in ("failed", "server", "journal"):
        assert system.counted(reason) == 0, reason


@serving(llm=Llm(0.3))
async def test_a_refusal_that_several_callers_are_told_is_one(system):
    secret = "10.0.0.5:50051: no token, or a wrong one"
    system.llm.fails = [RequestRefused(secret, grpc.StatusCode.UNAUTHENTICATED)]
    data = message(1, "1")
    first = asyncio.create_task(system.ask(name="1", data=data))
    await until(lambda: system.agent.jobs.knows("ana/1"))
    for code, why in await asyncio.gather(first, system.ask(name="1", data=data)):
        assert code == "INTERNAL"
        assert "10.0.0.5" not in why and "token" not in why
    assert system.counted("server") == 1


@pytest.mark.parametrize("slow", ["device", "server", "queue"])
def test_an_answer_goes_on_as_long_as_a_later_caller_waits(tmp_path, slow):
    device, llm = Device(0.0 if slow == "server" else 0.6), Llm(0.6 if slow == "server" else 0.0)

    @serving(device=device, llm=llm)
    async def asked(system):
        other = asyncio.create_task(system.ask("ben")) if slow == "queue" else None
        await until(lambda: not other or device.calls)
        data = message(1, "1")
        first = asyncio.create_task(system.ask(name="1", data=data, deadline_s=0.4))
        await until(lambda: system.agent.jobs.knows("ana/1"))
        assert await system.ask(name="1", data=data, deadline_s=20.0) == ANSWER
        assert (await first)[0] == "DEADLINE_EXCEEDED"
        if other:
            await other
        assert system.decided()["ana/1/0"] == 1

    asked(tmp_path)


@serving(device=Device(0.3))
async def test_what_requests_hold_is_bounded_and_given_back(system):
    system.agent.held.limit = 25 * len(message(1, "1"))
    asked = asyncio.create_task(system.ask())
    await until(lambda: system.device.calls)
    assert system.agent.held.total > 4 * len(message(1, "1"))  # larger, as the encoder takes it
    code, why = await system.ask("ana", items=16)
    assert code == "RESOURCE_EXHAUSTED" and "no room for" in why, why
    assert await asked == ANSWER
    await until(lambda: system.agent.held.total == 0)
    assert await system.ask() == ANSWER
    assert system.counted("queue-full") == 1


@pytest.fixture
def uncollected():
    """Nothing that is part of a cycle is freed meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Remembered(Device):
    """Knows what it prepared, as long as anybody else holds it."""

    def __init__(self, busy_s=0.0, fails=False):
        super().__init__(busy_s)
        self.fails, self.made = fails, []

    def prepare(self, item):
        prepared = super().prepare(item)
        self.made.append(weakref.ref(prepared))
        return prepared

    def run(self, arm, task, items):
        encoded = super().run(arm, task, items)
        return failed(encoded, "it fell over") if self.fails else encoded


@pytest.mark.parametrize("way", ["answered", "failed", "late"])
def test_what_a_request_held_is_free_once_it_is_over_however_it_ended(tmp_path, uncollected, way):
    device = Remembered(0.3 if way == "late" else 0.0, way == "failed")

    @serving(device=device)
    async def asked(system):
        await system.ask("ana", deadline_s=0.2 if way == "late" else 10.0)
        await until(lambda: not system.agent.stage.running)
        await until(lambda: not any(one() for one in device.made), 5.0)
        assert device.made

    asked(tmp_path)


@serving(users=users(front=False))
async def test_only_a_front_may_ask_for_others(system):
    assert await system.ask("few") == ("PERMISSION_DENIED", "only a front may ask for others")


@serving()
async def test_what_no_agent_can_answer_is_refused_with_the_reason(system):
    few = (Item("audio", np.zeros(161, np.int16)),)
    for data, status, said in (
        (message(1, "1", logits=True), "FAILED_PRECONDITION", "logits"),
        (message(few, "1"), "INVALID_ARGUMENT", "audio of 161"),
    ):
        code, why = await system.ask(name="1", data=data)
        assert code == status and said in why
    assert await system.ask() == ANSWER
