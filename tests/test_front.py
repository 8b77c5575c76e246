"""One address in front of several edge agents."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import numpy as np
import pytest
import yaml
from edge_fakes import (
    FRONT_TOKEN,
    MODEL,
    FakeAgent,
    Ways,
    answer_of,
    fake,
    listening,
    until,
)

from mllm_sched.edge.agents import Agents
from mllm_sched.edge.config import ConfigError, FrontConfig, read_config
from mllm_sched.edge.front import Front, explain
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import HELD_BYTES
from mllm_sched.edge.system import free_port
from mllm_sched.edge.users import Users
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import (
    AnswerChanged,
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.requests import Item, Request
from mllm_sched.pipeline.wire import pack, pieces_of, start_of

Status = grpc.StatusCode
UNANSWERED = (NodeUnreachable, DeadlineMissed)
TOKENS = {name: f"token of {name}" for name in ("ann", "bob")}


@pytest.fixture
def users_file(tmp_path):
    path = tmp_path / "users.yaml"
    digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in TOKENS.items()}
    users = [{"name": name, "token_sha256": one, "at_once": 20} for name, one in digests.items()]
    path.write_text(yaml.safe_dump(users))
    path.chmod(0o600)
    return path


class System:
    """A front in this loop, in front of agents at some ports."""

    def __init__(self, front, port):
        self.front, self.agents, self.address = front, front.agents.all, f"127.0.0.1:{port}"

    async def ask(self, name, data=None, user="ann", deadline_s=20.0):
        """The answer to a request, as the client gives it."""
        with EdgeClient(self.address, Security(TOKENS[user])) as client:
            return await asyncio.to_thread(client.ask, data or message(name), name, deadline_s)

    def describe(self, deadline_s=10.0):
        with EdgeClient(self.address, Security(TOKENS["ann"])) as client:
            return client.describe(deadline_s)

    async def refused(self, name, **options):
        """How the only call of somebody ended who was turned away."""
        return await asyncio.to_thread(self._refused, message(name, **options), name)

    def _refused(self, data, name):
        with EdgeClient(self.address, Security(TOKENS["ann"])) as client:
            pieces = pieces_of(data, start_of(data, name))
            with pytest.raises(grpc.RpcError) as ended:
                list(client._call(client._stub.Generate, 10.0, pieces))
            return ended.value

    async def answering(self, key):
        """Wait until the first token of a request is here."""
        jobs = self.front.jobs._jobs
        await until(lambda: key in jobs and jobs[key].tokens)

    def counted(self, name, **labels):
        """That series of the front's, as Prometheus is told."""
        registry = self.front.metrics.registry
        return registry.get_sample_value(f"mllm_sched_front_{name}", labels) or 0.0


@asynccontextmanager
async def system(users, *ports, poll_s=0.1):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # of callers
    addresses = [f"127.0.0.1:{port}" for port in ports]
    agents = Agents(addresses, Security(FRONT_TOKEN), poll_s, FrontMetrics(addresses))
    async with agents.watched():
        front = Front("front", agents, Users.read(users), Limits(64), Security(), HELD_BYTES)
        async with listening(front) as port:
            yield System(front, port)


def behind(*ways, **options):
    """Makes a test of a coroutine that is given a front and the fake agents behind it."""

    def decorated(test):
        def run(users_file):
            async def main():
                fakes = [FakeAgent(one) for one in ways]
                async with AsyncExitStack() as stack:
                    ports = [await stack.enter_async_context(fake(one)) for one in fakes]
                    front = await stack.enter_async_context(system(users_file, *ports, **options))
                    await test(front, *fakes)

            asyncio.run(main())

        return run

    return decorated


A, B = Ways("a"), Ways("b")
SLOW_A, SLOW_B = (Ways(name, tokens=20, step_s=0.05) for name in "ab")


def message(name="1", model=MODEL, side=8, items=None):
    items = items or (Item("image", np.zeros((side, side, 3), np.uint8)),)
    return pack(Request((1, 2), items, id=name, max_new_tokens=5), model)


@behind(A)
async def test_an_answer_comes_through_unchanged_and_is_made_once(front, agent):
    answer = await front.ask("1")
    assert (answer.tokens, answer.tries) == (answer_of(message("1")), 1)
    assert [run.agent for run in answer.runs] == ["a"]
    assert (await front.ask("1")).tokens == answer.tokens
    card = await asyncio.to_thread(front.describe)
    assert (card.model, list(card.cuts), list(card.encoders)) == (
        MODEL,
        ["input"],
        ["audio", "image"],
    )
    assert agent.asked == agent.begun == ["ann/1"]
    assert front.counted("answer_latency_seconds_count", evidence="measured") == 1


@behind(A)
async def test_a_wrong_token_is_refused_whatever_is_asked(front, agent):
    for token in (None, "another", FRONT_TOKEN):
        with EdgeClient(front.address, Security(token)) as client:
            for question in (client.describe, lambda: client.ask(message(), "1", 5.0)):
                with pytest.raises(RequestRefused, match="no token, or a wrong one") as refused:
                    await asyncio.to_thread(question)
                assert refused.value.code is Status.UNAUTHENTICATED
    assert not agent.asked


@behind(A)
async def test_users_cannot_read_the_answer_of_another_by_its_id(front, agent):
    ours, theirs = message(), message(side=9)
    await front.ask("1", ours)
    answer = await front.ask("1", theirs, "bob")
    assert answer.tokens == answer_of(theirs) != answer_of(ours)
    with pytest.raises(RequestRefused, match="sent before, with other bytes"):
        await front.ask("1", ours, "bob")  # of its own, not of the other's
    await front.ask("2", user="bob")
    await front.ask("2")
    assert agent.begun == ["ann/1", "bob/1", "bob/2", "ann/2"]


@behind(*(Ways(name) for name in "abc"), poll_s=60.0)
async def test_a_burst_is_spread_over_agents_that_are_equal(front, *fakes):
    for agent in fakes:
        agent.going.clear()
    asked = [asyncio.create_task(front.ask(str(number))) for number in range(18)]
    await until(lambda: sum(len(agent.begun) for agent in fakes) == len(asked))
    for agent in fakes:
        agent.going.set()
    await asyncio.gather(*asked)
    assert [len(agent.begun) for agent in fakes] == [6, 6, 6]


@behind(Ways(latency_s=3.0, energy_j=1.0), Ways("fast", latency_s=0.1, energy_j=2.0))
async def test_the_agent_of_least_energy_is_asked_until_a_deadline_needs_a_faster_one(
    front, frugal, fast
):
    await front.ask("1", deadline_s=20)
    await front.ask("2", deadline_s=2)
    assert (frugal.begun, fast.begun) == (["ann/1"], ["ann/2"])


@behind(Ways(latency_s=30.0, answer_s=10.0))
async def test_what_no_agent_can_do_is_refused_with_the_reason(front, agent):
    with pytest.raises(NodeBusy, match=r"too-late: 40\.00 s needed, \d\.\d\d s left"):
        await front.ask("1", deadline_s=5.0)
    video = (Item("video", np.zeros((2, 8, 8, 3), np.uint8)),)
    with pytest.raises(RequestRefused, match="no edge agent here encodes video"):
        await front.ask("1", message(items=video))
    assert not agent.asked
    assert [front.counted("shed_total", reason=why) for why in ("too-late", "cannot")] == [1, 1]


@behind(A)
async def test_agents_that_say_they_take_nothing_are_not_asked(front, agent):
    for why, is_draining, said in (
        ("the journal is full", False, "no edge agent takes tasks: the journal is full"),
        ("", True, "no edge agent answers"),
    ):
        agent.why_not, agent.draining = why, is_draining
        await until(lambda one=is_draining: front.agents[0].status.draining is one)
        await until(lambda: not front.agents[0].status.taking)
        assert said in (await front.refused("1")).details()
    agent.why_not, agent.draining = "", False
    await until(lambda: front.agents[0].status.taking)
    await front.ask("2")
    assert agent.asked == ["ann/2"]


def test_an_agent_of_another_model_is_named_and_never_used(users_file, caplog):
    @behind(Ways("odd", model="0" * 64), A, B)
    async def asked(front, odd, *_):
        for name in "1234":
            await front.ask(name)
        assert [front.counted("agents", state=state) for state in ("up", "down")] == [2, 1]
        with pytest.raises(RequestRefused, match="made for model 000000000000"):
            await front.ask("5", message("5", "0" * 64))
        assert not odd.asked

    asked(users_file)
    (said,) = [one for one in caplog.records if one.message == "agent-of-another-model"]
    assert said.fields["agent"].startswith("odd at 127.0.0.1")
    assert (said.levelname, said.fields["holds"]) == ("ERROR", "0" * 12)


@behind(SLOW_A, SLOW_B)
async def test_an_agent_that_shuts_down_mid_answer_hands_over(front, a, b):
    asked = asyncio.create_task(front.ask("1"))
    await front.answering("ann/1")
    await a.drain(0.0)
    answer = await asked
    assert (answer.tokens, answer.tries) == (answer_of(message("1"), 20), 1)
    assert (a.begun, b.begun) == (["ann/1"], ["ann/1"])


@behind(SLOW_A, Ways("b", tokens=20, step_s=0.05, offset=1))
async def test_a_caller_is_told_if_another_agent_begins_the_answer_differently(front, a, b):
    def follow():
        with EdgeClient(front.address, Security(TOKENS["ann"])) as client:
            list(client.events(message(), "1", 20.0))

    following = asyncio.create_task(asyncio.to_thread(follow))
    asked = asyncio.create_task(front.ask("1"))
    await front.answering("ann/1")
    await asyncio.sleep(0.2)
    await a.drain(0.0)
    with pytest.raises(AnswerChanged, match="begins differently"):
        await following
    assert (await asked).tokens == answer_of(message(), 20, 1)  # asked for all of it again
    assert (a.begun, b.begun) == (["ann/1"], ["ann/1"])  # b is not asked to begin twice


def test_with_no_agent_up_a_caller_waits_until_one_returns(users_file):
    async def main():
        first, second, port = FakeAgent(), FakeAgent(), free_port()
        async with AsyncExitStack() as stack:
            async with fake(first, port):
                front = await stack.enter_async_context(system(users_file, port))
            await until(lambda: front.counted("agents", state="up") == 0)
            # The last try may be the one that the deadline ends; the reason is told all the same.
            with pytest.raises(UNANSWERED, match="no edge agent answers"):
                await asyncio.to_thread(front.describe, 1.0)
            waiting = asyncio.create_task(front.ask("1"))
            await asyncio.sleep(1.0)  # long enough to be turned away once
            await stack.enter_async_context(fake(second, port))
            answer = await waiting
            assert answer.tokens == answer_of(message("1")) and answer.tries > 1
        assert (first.begun, second.begun) == ([], ["ann/1"])

    asyncio.run(main())


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_request_sent_again_finds_its_agent_though_the_front_never_saw_it(
    users_file, is_answered
):
    @behind(Ways("a", step_s=0.02), Ways("b", step_s=0.02))
    async def asked_twice(before, a, b):
        asked = asyncio.create_task(before.ask("1"))
        await until(lambda: a.begun or b.begun)
        if is_answered:
            await asked
        ports = [agent.address.rpartition(":")[2] for agent in reversed(before.agents)]
        async with system(users_file, *ports) as after:
            assert (await after.ask("1")).tokens == answer_of(message("1"))
        await asked
        assert len(a.begun + b.begun) == 1

    asked_twice(users_file)


@behind(A, B)
async def test_the_refusal_of_the_last_agent_is_told_with_what_programs_read_and_counted(
    front, a, b
):
    for refusal in (Refusal("queue-full", "64 wait", retry_s=0.5), Refusal("journal", "no space")):
        a.refusal = refusal
        assert (await front.ask(refusal.reason)).runs[0].agent == "b"  # which has room
    assert not front.counted("moved_total", agent=front.agents[0].address)
    b.refusal = Refusal("too-late", "9 s needed", retry_s=1.25)
    a.refusal = b.refusal
    ended = await front.refused("2")
    assert ended.code() is Status.RESOURCE_EXHAUSTED
    assert ended.details() == "too-late: 9 s needed; ask again in 1.25 s"
    assert dict(ended.trailing_metadata()) == {"refused": "too-late", "retry-s": "1.25"}
    assert front.counted("shed_total", reason="too-late") == 1


@behind(A)
async def test_a_large_request_is_refused_for_what_it_was_refused_for_however_many_come(
    front, agent
):
    agent.refusal = Refusal("queue-full", "64 wait")
    for turn in range(4):
        asked = [front.refused(f"{turn}-{number}", side=600) for number in range(4)]
        told = await asyncio.gather(*asked)
        assert {one.code() for one in told} == {Status.RESOURCE_EXHAUSTED}


@behind(Ways(tokens=20))
async def test_a_front_that_is_told_to_end_finishes_what_was_begun(front, agent):
    agent.going.clear()
    asked = asyncio.create_task(front.ask("1"))
    await until(lambda: agent.begun)
    draining = asyncio.create_task(front.front.drain(60.0))
    error = await front.refused("2")
    assert error.code() is Status.UNAVAILABLE and "shuts down" in error.details()
    agent.going.set()
    assert (await asked).tokens == answer_of(message("1"), 20)
    await draining
    assert agent.begun == ["ann/1"]


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"agents": []}, "agents: .*at least 1 item"),
        ({"agents": ["a:1", "a:1"], "open": True}, "a:1 stands there twice"),
        ({"agents": ["edge.example:50061"]}, "others can reach it"),
        ({"held_bytes": 1 << 20}, "expected at most half of held_bytes"),
        ({"poll_s": 0}, "poll_s.*greater than or equal"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_used_are_named(tmp_path, settings, wrong):
    file = tmp_path / "front.yaml"
    file.write_text(yaml.safe_dump({"name": "f", "agents": ["127.0.0.1:50061"], **settings}))
    with pytest.raises(ConfigError, match=wrong):
        read_config(file, FrontConfig)


def test_a_front_explains_what_it_would_do_and_how_its_agents_are(users_file, tmp_path):
    (tmp_path / "token").write_text(FRONT_TOKEN)
    said = []

    @behind(A, Ways("odd", model="0" * 64))
    async def explained(front, *_):
        agents = [*(agent.address for agent in front.agents), f"127.0.0.1:{free_port()}"]
        files = {"users_file": str(users_file), "token_file": str(tmp_path / "token")}
        config = FrontConfig(name="front", agents=agents, **files)
        said.append(await asyncio.to_thread(explain, config))

    explained(users_file)
    for words in (
        "front front listens on 127.0.0.1:",
        "edge agent a at 127.0.0.1",
        "image, audio; takes tasks",
        "holds another model than most",
        "does not answer now",
    ):
        assert words in said[0]
    assert FRONT_TOKEN not in said[0]
