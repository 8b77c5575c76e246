"""One address in front of several edge agents."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import numpy as np
import pytest
import yaml
from agent_here import MODEL, Device, Llm, here, message, until

from mllm_sched import cli
from mllm_sched.edge.agents import Agents
from mllm_sched.edge.config import ConfigError, FrontConfig, read_config
from mllm_sched.edge.front import Front
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import HELD_BYTES
from mllm_sched.edge.system import free_port
from mllm_sched.edge.users import Users
from mllm_sched.pipeline.checkpoints import bare_encoders
from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import (
    AnswerChanged,
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.options import Limits, Security
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.service import listening
from mllm_sched.pipeline.wire import pieces_of, start_of

Status = grpc.StatusCode
UNANSWERED = (NodeUnreachable, DeadlineMissed)
TOKENS = {name: f"token of {name}" for name in ("ann", "bob")}
ANSWER, LONG = (7, 8), tuple(range(20))


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
            return await asyncio.to_thread(client.ask, data or message(1, name), name, deadline_s)

    def describe(self, deadline_s=10.0):
        with EdgeClient(self.address, Security(TOKENS["ann"])) as client:
            return client.describe(deadline_s)

    async def refused(self, name, items=1):
        """How the only call of somebody ended who was turned away."""
        return await asyncio.to_thread(self._refused, message(items, name), name)

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
    agents = Agents(addresses, Security("any"), poll_s, FrontMetrics(addresses))
    async with agents.watched():
        front = Front("front", agents, Users.read(users), Limits(64), Security(), HELD_BYTES)
        async with listening(front, "127.0.0.1", 0) as port:
            yield System(front, port)


def behind(poll_s=0.1, **agents):
    """Makes a test of a coroutine that is given a front and the agents behind it, by name."""

    def decorated(test):
        def run(users_file):
            async def main():
                async with AsyncExitStack() as stack:
                    each = [here(users_file.parent, name, **how) for name, how in agents.items()]
                    opened = [await stack.enter_async_context(one) for one in each]
                    ports = [one.port for one in opened]
                    front = await stack.enter_async_context(
                        system(users_file, *ports, poll_s=poll_s)
                    )
                    await test(front, *opened)

            asyncio.run(main())

        return run

    return decorated


def begun(*agents):
    """Tasks that each agent began to encode."""
    return [list(agent.decided()) for agent in agents]


def turn_away(agent, refusal):
    """Let an agent refuse every new task."""

    def check_taking():
        raise refusal

    agent.agent._check_taking = check_taking


@behind(a={})
async def test_an_answer_comes_through_unchanged_and_is_made_once(front, agent):
    answer = await front.ask("1")
    assert (answer.tokens, answer.tries) == (ANSWER, 1)
    assert [run.agent for run in answer.runs] == ["a"]
    assert (await front.ask("1")).tokens == answer.tokens
    card = await asyncio.to_thread(front.describe)
    told = card.model, list(card.cuts), list(card.encoders)
    assert told == (agent.agent.half.identity, ["input"], ["audio", "image"])
    assert begun(agent) == [["ann/1/0"]]
    assert front.counted("answer_latency_seconds_count", evidence="measured") == 1


@behind(a={})
async def test_a_wrong_token_is_refused_whatever_is_asked(front, agent):
    for token in (None, "another", "any"):
        with EdgeClient(front.address, Security(token)) as client:
            for question in (client.describe, lambda: client.ask(message(1, "1"), "1", 5.0)):
                with pytest.raises(RequestRefused, match="no token, or a wrong one") as refused:
                    await asyncio.to_thread(question)
                assert refused.value.code is Status.UNAUTHENTICATED
    assert begun(agent) == [[]]


@behind(a={})
async def test_users_cannot_read_the_answer_of_another_by_its_id(front, agent):
    ours, theirs = message(1, "1"), message(2, "1")
    await front.ask("1", ours)
    assert len((await front.ask("1", theirs, "bob")).runs) == 2
    with pytest.raises(RequestRefused, match="sent before, with other bytes"):
        await front.ask("1", ours, "bob")  # of its own, not of the other's
    await front.ask("2", user="bob")
    await front.ask("2")
    assert begun(agent) == [["ann/1/0", "bob/1/0", "bob/1/1", "bob/2/0", "ann/2/0"]]


@behind(poll_s=60.0, **{name: {"expects": (0.1, 1.0), "llm": Llm()} for name in "abc"})
async def test_a_burst_is_spread_over_agents_that_are_equal(front, *agents):
    for agent in agents:
        agent.llm.going.clear()
    asked = [asyncio.create_task(front.ask(str(number))) for number in range(18)]
    await until(lambda: sum(agent.agent.jobs.taken for agent in agents) == len(asked))
    assert [agent.agent.jobs.taken for agent in agents] == [6, 6, 6]
    for agent in agents:
        agent.llm.going.set()
    await asyncio.gather(*asked)


@behind(poll_s=60.0, frugal={"expects": (3.0, 1.0)}, fast={"expects": (0.1, 2.0)})
async def test_the_agent_of_least_energy_is_asked_until_a_deadline_needs_a_faster_one(
    front, frugal, fast
):
    await front.ask("1", deadline_s=20)
    await front.ask("2", deadline_s=2)
    assert begun(frugal, fast) == [["ann/1/0"], ["ann/2/0"]]


@behind(a={"expects": (40.0, 1.0)})
async def test_what_no_agent_can_do_is_refused_with_the_reason(front, agent):
    with pytest.raises(NodeBusy, match=r"too-late: 40\.00 s needed, \d\.\d\d s left"):
        await front.ask("1", deadline_s=5.0)
    video = (Item("video", np.zeros((2, 56, 56, 3), np.uint8)),)
    with pytest.raises(RequestRefused, match="no edge agent here encodes video"):
        await front.ask("1", message(video, "1"))
    assert begun(agent) == [[]]
    assert [front.counted("shed_total", reason=why) for why in ("too-late", "cannot")] == [1, 1]


@behind(a={})
async def test_agents_that_say_they_take_nothing_are_not_asked(front, agent):
    with agent.locked():
        await until(lambda: not front.agents[0].status.taking)
        said = (await front.refused("1")).details()
        assert "no edge agent takes tasks: the journal cannot be written" in said
    await until(lambda: front.agents[0].status.taking)
    await front.ask("2")
    agent.agent.draining = True
    await until(lambda: front.agents[0].status.draining)
    assert "no edge agent answers" in (await front.refused("3")).details()
    assert begun(agent) == [["ann/2/0"]]


def test_an_agent_of_another_model_is_named_and_never_used(users_file, caplog):
    other = bare_encoders(MODEL, ("image", "audio"), 1)

    @behind(odd={"device": Device(half=other)}, a={}, b={})
    async def asked(front, odd, *_):
        for name in "1234":
            await front.ask(name)
        assert [front.counted("agents", state=state) for state in ("up", "down")] == [2, 1]
        with pytest.raises(RequestRefused, match=f"made for model {other.identity[:12]}"):
            await front.ask("5", message(1, "5", other))
        assert begun(odd) == [[]]

    asked(users_file)
    (said,) = [one for one in caplog.records if one.message == "agent-of-another-model"]
    assert said.fields["agent"].startswith("odd at 127.0.0.1")
    assert (said.levelname, said.fields["holds"]) == ("ERROR", other.identity[:12])


@behind(**{name: {"llm": Llm(tokens=LONG, step_s=0.05)} for name in "ab"})
async def test_an_agent_that_shuts_down_mid_answer_hands_over(front, a, b):
    asked = asyncio.create_task(front.ask("1"))
    await front.answering("ann/1")
    await a.agent.drain(0.0)
    answer = await asked
    assert (answer.tokens, answer.tries) == (LONG, 1)
    assert begun(a, b) == [["ann/1/0"], ["ann/1/0"]]


@behind(a={"llm": Llm(tokens=LONG, step_s=0.05)}, b={"llm": Llm(tokens=LONG[::-1])})
async def test_a_caller_is_told_if_another_agent_begins_the_answer_differently(front, a, b):
    def follow():
        with EdgeClient(front.address, Security(TOKENS["ann"])) as client:
            list(client.events(message(1, "1"), "1", 20.0))

    asked = asyncio.create_task(front.ask("1"))
    await front.answering("ann/1")
    following = asyncio.create_task(asyncio.to_thread(follow))
    await asyncio.sleep(0.3)
    await a.agent.drain(0.0)
    with pytest.raises(AnswerChanged, match="begins differently"):
        await following
    assert (await asked).tokens == LONG[::-1]  # asked for all of it again
    assert begun(a, b) == [["ann/1/0"], ["ann/1/0"]]  # b is not asked to begin twice


def test_with_no_agent_up_a_caller_waits_until_one_returns(users_file, tmp_path):
    async def main():
        port = free_port()
        async with AsyncExitStack() as stack:
            async with here(tmp_path, "first", port=port):
                front = await stack.enter_async_context(system(users_file, port))
            await until(lambda: front.counted("agents", state="up") == 0)
            # The last try may be the one that the deadline ends; the reason is told all the same.
            with pytest.raises(UNANSWERED, match="no edge agent answers"):
                await asyncio.to_thread(front.describe, 1.0)
            waiting = asyncio.create_task(front.ask("1"))
            await asyncio.sleep(1.0)  # long enough to be turned away once
            await stack.enter_async_context(here(tmp_path, "second", port=port))
            answer = await waiting
            assert answer.runs[0].agent == "second" and answer.tries > 1

    asyncio.run(main())


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_request_sent_again_finds_its_agent_though_the_front_never_saw_it(
    users_file, is_answered
):
    @behind(a={"llm": Llm(0.3)}, b={"llm": Llm(0.3)})
    async def asked_twice(before, a, b):
        asked = asyncio.create_task(before.ask("1"))
        await until(lambda: a.llm.asked or b.llm.asked)
        if is_answered:
            await asked
        async with system(users_file, b.port, a.port) as after:
            assert (await after.ask("1")).tokens == ANSWER
        await asked
        assert sorted(begun(a, b)) == [[], ["ann/1/0"]]

    asked_twice(users_file)


@behind(a={"expects": (0.1, 1.0)}, b={"expects": (0.1, 2.0)}, poll_s=60.0)
async def test_the_refusal_of_the_last_agent_is_told_with_what_programs_read_and_counted(
    front, a, b
):
    for refusal in (Refusal("queue-full", "64 wait", retry_s=0.5), Refusal("journal", "no space")):
        turn_away(a, refusal)
        assert (await front.ask(refusal.reason)).runs[0].agent == "b"  # which has room
    assert not front.counted("moved_total", agent=front.agents[0].address)
    turn_away(b, Refusal("too-late", "9 s needed", retry_s=1.25))
    ended = await front.refused("2")
    assert ended.code() is Status.RESOURCE_EXHAUSTED
    assert ended.details() == "too-late: 9 s needed; ask again in 1.25 s"
    assert dict(ended.trailing_metadata()) == {"refused": "too-late", "retry-s": "1.25"}
    assert front.counted("shed_total", reason="too-late") == 1


@behind(a={})
async def test_a_large_request_is_refused_for_what_it_was_refused_for_however_many_come(
    front, agent
):
    turn_away(agent, Refusal("queue-full", "64 wait"))
    for turn in range(4):
        asked = [front.refused(f"{turn}-{number}", items=100) for number in range(4)]
        told = await asyncio.gather(*asked)
        assert {one.code() for one in told} == {Status.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"agents": []}, "agents: .*at least 1 item"),
        ({"agents": ["a:1", "a:1"], "open": True}, "a:1 stands there twice"),
        ({"agents": ["edge.example:50061"]}, "others can reach it"),
        ({"held_bytes": 1 << 20}, "expected at most half of held_bytes"),
        ({"poll_s": 0}, "poll_s.*greater than or equal"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path, settings, wrong):
    file = tmp_path / "front.yaml"
    file.write_text(yaml.safe_dump({"name": "f", "agents": ["127.0.0.1:50061"], **settings}))
    with pytest.raises(ConfigError, match=wrong):
        read_config(file, FrontConfig)


def test_a_front_explains_what_it_would_do_and_how_its_agents_are(users_file, tmp_path, capsys):
    (tmp_path / "token").write_text("the front's own")
    file = tmp_path / "front.yaml"

    @behind(a={}, b={}, odd={"device": Device(half=bare_encoders(MODEL, ("image",), 1))})
    async def explained(front, *_):
        agents = [*(agent.address for agent in front.agents), f"127.0.0.1:{free_port()}"]
        files = {"users_file": str(users_file), "token_file": str(tmp_path / "token")}
        file.write_text(yaml.safe_dump({"name": "front", "agents": agents, **files}))
        assert await asyncio.to_thread(cli.main, ["front", str(file), "--check"]) == 0

    explained(users_file)
    said = capsys.readouterr().out
    for words in (
        "front front listens on 127.0.0.1:",
        "edge agent a at 127.0.0.1",
        "image, audio; takes tasks",
        "holds another model than most",
        "does not answer now",
    ):
        assert words in said
    assert "the front's own" not in said
