"""One address in front of several edge agents."""

import asyncio
import gc
import hashlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace

import grpc
import numpy as np
import pytest
import yaml
from edge_fakes import (
    FRONT_TOKEN,
    MODEL,
    FakeAgent,
    Ways,
    agent_program,
    answer_of,
    fake,
    free_port,
    listening,
    until,
)

from mllm_sched.edge import agent_link, placement
from mllm_sched.edge.agents import Agents
from mllm_sched.edge.config import ConfigError, FrontConfig, read_config
from mllm_sched.edge.front import Front, explain
from mllm_sched.edge.monitor import FrontMetrics
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import OpenCalls
from mllm_sched.edge.users import User, Users
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
from mllm_sched.pipeline.service import ServiceProcess
from mllm_sched.pipeline.wire import pack, pieces_of, start_of

Status = grpc.StatusCode
UNANSWERED = (NodeUnreachable, DeadlineMissed)
TOKENS = {name: f"token of {name}" for name in ("ann", "bob", "cyd")}
AS_FRONT = Security(FRONT_TOKEN)


class Told(FrontMetrics):
    """Metrics that a test can read."""

    def __init__(self):
        super().__init__([])
        self.placements, self.moves, self.sheds, self.evidence = [], [], [], []

    def placed(self, agent):
        super().placed(agent)
        self.placements.append(agent)

    def moved(self, agent):
        super().moved(agent)
        self.moves.append(agent)

    def shed(self, reason):
        super().shed(reason)
        self.sheds.append(reason)

    def agents(self, up, down):
        super().agents(up, down)
        self.up, self.down = up, down

    def answered(self, total_s, evidence):
        super().answered(total_s, evidence)
        self.evidence.append(evidence)


@pytest.fixture
def users_file(tmp_path):
    path = tmp_path / "users.yaml"
    users = [
        {
            **{"name": name, "token_sha256": hashlib.sha256(token.encode()).hexdigest()},
            **{"rate_hz": 1000.0, "burst": 1000, "at_once": 2 if name == "cyd" else 20},
        }
        for name, token in TOKENS.items()
    ]
    path.write_text(yaml.safe_dump(users))
    path.chmod(0o600)
    return path


class System:
    """A front in this loop, in front of agents at some ports."""

    def __init__(self, front, port):
        self.front, self.agents, self.told = front, front.agents, front.agents.metrics
        self.address = f"127.0.0.1:{port}"

    async def ask(self, data, name, user="ann", deadline_s=20.0):
        return await asyncio.to_thread(ask, self.address, data, name, user, deadline_s)


def ask(address, data, name, user="ann", deadline_s=20.0):
    with EdgeClient(address, Security(TOKENS[user])) as client:
        return client.ask(data, name, deadline_s)


@asynccontextmanager
async def system(users, *ports, poll_s=0.1, **options):
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))  # of callers
    agents = Agents(
        [f"127.0.0.1:{port}" for port in ports], AS_FRONT, poll_s=poll_s, metrics=Told()
    )
    async with agents.watched():
        front = Front("front", agents, Users.read(users), **options)
        async with listening(front) as port:
            yield System(front, port)


@asynccontextmanager
async def running(users, *fakes, **options):
    """A front, and fake agents in this loop."""
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(fake(one)) for one in fakes]
        yield await stack.enter_async_context(system(users, *ports, **options))


def message(name="1", model=MODEL, side=8, **options):
    item = Item("image", np.zeros((side, side, 3), np.uint8))
    return pack(Request((1, 2), (item,), id=name, max_new_tokens=5), model, **options)


def test_an_answer_comes_through_unchanged_and_is_made_once(users_file):
    async def main():
        agent, data = FakeAgent(), message()
        async with running(users_file, agent) as system:
            answer = await system.ask(data, "1")
            assert (answer.tokens, answer.tries) == (answer_of(data), 1)
            assert [run.agent for run in answer.runs] == ["a"]
            assert (await system.ask(data, "1")).tokens == answer.tokens
            card = await asyncio.to_thread(describe, system.address)
            assert (card.model, list(card.cuts), list(card.encoders)) == (
                MODEL,
                ["input"],
                ["audio", "image"],
            )
        assert agent.asked == agent.begun == ["ann/1"]
        assert system.told.evidence == ["measured"]

    asyncio.run(main())


def follow(address, data, seen, deadline_s=20.0):
    """Add every token to a list, as it comes."""
    with EdgeClient(address, Security(TOKENS["ann"])) as client:
        for event, _ in client.events(data, "1", deadline_s):
            if event.WhichOneof("content") == "token":
                seen.append(event.token.token)


def describe(address, deadline_s=10.0):
    with EdgeClient(address, Security(TOKENS["ann"])) as client:
        return client.describe(deadline_s)


def test_encoding_alone_is_left_to_nodes(users_file):
    def encode(address):
        with EdgeClient(address, Security(TOKENS["ann"])) as client:
            item = Item("image", np.zeros((8, 8, 3), np.uint8))
            client.encode(Request((1,), (item,)), MODEL, 5.0)

    async def main():
        async with running(users_file, FakeAgent()) as system:
            with pytest.raises(RequestRefused, match="ask with Generate") as refused:
                await asyncio.to_thread(encode, system.address)
            assert refused.value.code is Status.UNIMPLEMENTED

    asyncio.run(main())


def test_a_wrong_token_is_refused_whatever_is_asked(users_file):
    def wrong(address, token):
        with EdgeClient(address, Security(token)) as client:
            for question in (client.describe, lambda: client.ask(message(), "1", 5.0)):
                with pytest.raises(RequestRefused, match="no token, or a wrong one") as refused:
                    question()
                assert refused.value.code is Status.UNAUTHENTICATED

    async def main():
        agent = FakeAgent()
        async with running(users_file, agent) as system:
            for token in (None, "another", FRONT_TOKEN):
                await asyncio.to_thread(wrong, system.address, token)
        assert not agent.asked

    asyncio.run(main())


def test_users_cannot_read_the_answer_of_another_by_its_id(users_file):
    async def main():
        agent, ours, theirs = FakeAgent(), message(), message(side=9)
        async with running(users_file, agent) as system:
            await system.ask(ours, "1")
            answer = await system.ask(theirs, "1", "bob")
            assert answer.tokens == answer_of(theirs) != answer_of(ours)
            with pytest.raises(RequestRefused, match="sent before, with other bytes"):
                await system.ask(ours, "1", "bob")  # of its own, not of the other's
            await system.ask(message("2"), "2", "bob")
            await system.ask(message("2"), "2")
        assert agent.begun == ["ann/1", "bob/1", "bob/2", "ann/2"]

    asyncio.run(main())


def test_a_burst_is_spread_over_agents_that_are_equal(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name)) for name in "abc"]
        limits = Limits(requests=32)
        async with running(users_file, *fakes, poll_s=60.0, limits=limits) as system:
            for agent in fakes:
                agent.going.clear()
            names = [str(number) for number in range(18)]
            asked = [asyncio.create_task(system.ask(message(name), name)) for name in names]
            await until(lambda: sum(len(agent.begun) for agent in fakes) == len(names))
            for agent in fakes:
                agent.going.set()
            await asyncio.gather(*asked)
        assert [len(agent.begun) for agent in fakes] == [6, 6, 6]

    asyncio.run(main())


def test_the_agent_of_least_energy_is_asked_until_a_deadline_needs_a_faster_one(users_file):
    async def main():
        frugal = FakeAgent(Ways("frugal", latency_s=3.0, energy_j=1.0))
        fast = FakeAgent(Ways("fast", latency_s=0.1, energy_j=2.0))
        async with running(users_file, frugal, fast) as system:
            await system.ask(message("1"), "1", deadline_s=20)
            await system.ask(message("2"), "2", deadline_s=2)
        assert (frugal.begun, fast.begun) == (["ann/1"], ["ann/2"])

    asyncio.run(main())


def test_a_deadline_that_nobody_can_meet_is_shed_with_the_reason(users_file):
    async def main():
        agent = FakeAgent(Ways(latency_s=30.0, answer_s=10.0))
        async with running(users_file, agent) as system:
            with pytest.raises(NodeBusy, match=r"too-late: 40\.00 s needed, \d\.\d\d s left"):
                await system.ask(message(), "1", deadline_s=5.0)
            assert system.told.sheds == ["too-late"]
        assert not agent.asked

    asyncio.run(main())


def test_what_no_agent_encodes_is_refused(users_file):
    async def main():
        async with running(users_file, FakeAgent()) as system:
            items = (Item("video", np.zeros((2, 8, 8, 3), np.uint8)),)
            data = pack(Request((1, 2), items, id="1", max_new_tokens=5), MODEL)
            with pytest.raises(RequestRefused, match="no edge agent here encodes video"):
                await system.ask(data, "1")
            assert system.told.sheds == ["cannot"]

    asyncio.run(main())


def test_agents_above_their_limit_go_on_answering_and_come_back_once_they_are_within_it(users_file):
    async def main():
        slow = FakeAgent(Ways("slow", infeasible=True, energy_j=1.0))
        frugal = FakeAgent(Ways("frugal", infeasible=True, energy_j=1.0, latency_s=3.0))
        slow.heals = True
        async with running(users_file, slow, frugal, poll_s=0.05) as system:
            known = system.agents.all[0].status
            await system.ask(message("1"), "1")
            await until(lambda: system.agents.all[0].status is not known and not told(system))
            await system.ask(message("2"), "2")
        assert (slow.begun, frugal.begun) == (["ann/1", "ann/2"], [])

    def told(system):
        return system.agents.all[0].status.predictions[0].infeasible

    asyncio.run(main())


def test_an_agent_that_is_never_chosen_is_tried_again_after_a_while(users_file, monkeypatch):
    monkeypatch.setattr(placement, "PROBE_S", 0.0)
    monkeypatch.setattr(placement, "PROBE_TASKS", 4)

    async def main():
        usual, dear = FakeAgent(Ways("usual")), FakeAgent(Ways("dear", energy_j=2.0))
        above = FakeAgent(Ways("above", infeasible=True))
        above.heals = True
        async with running(users_file, usual, dear, above, poll_s=0.05) as system:
            for number in range(12):
                await system.ask(message(str(number)), str(number))
            await until(lambda: not system.agents.all[2].status.predictions[0].infeasible)
            tried = len(dear.begun), len(above.begun)
            for number in range(12, 18):
                await system.ask(message(str(number)), str(number))
        assert tried[0] == 2 and tried[1] >= 2
        assert len(above.begun) > tried[1] + 1  # within its limit it takes turns with the usual one

    asyncio.run(main())


def test_a_full_agent_leaves_tasks_to_the_next_and_the_last_refusal_is_told(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name, limit=1, step_s=0.1)) for name in "ab"]
        async with running(users_file, *fakes, poll_s=5.0) as system:
            fakes[0].jobs.limit = 0
            first = asyncio.create_task(system.ask(message("1"), "1"))
            await until(lambda: fakes[1].begun)
            with pytest.raises(NodeBusy, match="busy: 1 requests are served now"):
                await system.ask(message("2"), "2")
            assert system.told.sheds == ["queue-full"]
            assert (await first).tokens == answer_of(message("1"))
        assert [agent.begun for agent in fakes] == [[], ["ann/1"]]
        assert not system.told.moves

    asyncio.run(main())


def test_agents_that_say_they_take_nothing_are_not_asked(users_file):
    async def main():
        agent = FakeAgent()
        agent.why_not = "queue-full"
        async with running(users_file, agent) as system:
            with pytest.raises(NodeBusy, match="no edge agent takes tasks: queue-full"):
                await system.ask(message(), "1")
            agent.why_not = ""
            await until(lambda: system.agents.all[0].status.taking)
            await system.ask(message(), "1")
        assert agent.asked == ["ann/1"]

    asyncio.run(main())


def test_with_all_agents_shutting_down_a_caller_is_told_to_come_again(users_file):
    async def main():
        agent = FakeAgent()
        async with running(users_file, agent) as system:
            await agent.drain(0.0)
            await until(lambda: system.agents.all[0].status.draining)
            error = await asyncio.to_thread(refused, system.address, message(), "1")
            assert error.code() is Status.UNAVAILABLE
            assert "no edge agent answers" in error.details()
        assert not agent.asked

    asyncio.run(main())


def test_an_agent_of_another_model_is_named_and_never_used(users_file, caplog):
    async def main():
        odd, *fakes = FakeAgent(Ways("odd", model="0" * 64)), FakeAgent(), FakeAgent(Ways("b"))
        async with running(users_file, odd, *fakes) as system:
            for name in "1234":
                await system.ask(message(name), name)
            assert (system.told.up, system.told.down) == (2, 1)
            with pytest.raises(RequestRefused, match="made for model 000000000000"):
                await system.ask(message("5", "0" * 64), "5")
        assert not odd.asked

    asyncio.run(main())
    (said,) = [one for one in caplog.records if one.message == "agent-of-another-model"]
    assert said.fields["agent"].startswith("odd at 127.0.0.1")
    assert (said.levelname, said.fields["holds"]) == ("ERROR", "0" * 12)


@pytest.mark.slow
def test_an_agent_killed_mid_answer_is_replaced_and_taken_back_when_it_returns(
    users_file, tmp_path
):
    ways = Ways(tokens=20, step_s=0.05, ledger=str(tmp_path / "ledger"))

    async def main():
        with agent_program(ways) as doomed, agent_program(replace(ways, name="b")) as other:
            async with system(users_file, port_of(doomed), port_of(other)) as front:
                data = message()
                asked = asyncio.create_task(front.ask(data, "1"))
                await until(lambda: job_of(front, "ann/1") and job_of(front, "ann/1").tokens)
                doomed.kill()
                answer = await asked
                assert answer.tokens == answer_of(data, 20)
                assert (answer.tries, [run.agent for run in answer.runs]) == (1, ["b"])
                assert front.told.moves == [doomed.address]
                assert not front.agents.all[0].up
                await asyncio.to_thread(doomed.start)
                await until(lambda: front.agents.all[0].up)
                assert (await front.ask(message("2"), "2")).runs[0].agent == "a"

    asyncio.run(main())
    assert (tmp_path / "ledger").read_text().splitlines() == ["a ann/1", "b ann/1", "a ann/2"]


def port_of(program):
    return int(program.address.rpartition(":")[2])


def job_of(system, key):
    return system.front.jobs._jobs.get(key)


def test_an_agent_that_shuts_down_mid_answer_hands_over(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name, tokens=20, step_s=0.05)) for name in "ab"]
        async with running(users_file, *fakes) as system:
            data = message()
            asked = asyncio.create_task(system.ask(data, "1"))
            await until(lambda: job_of(system, "ann/1") and job_of(system, "ann/1").tokens)
            await fakes[0].drain(0.0)
            answer = await asked
            assert (answer.tokens, answer.tries) == (answer_of(data, 20), 1)
        assert [len(agent.begun) for agent in fakes] == [1, 1]

    asyncio.run(main())


def test_an_answer_that_another_agent_begins_differently_is_begun_again_for_the_user(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name, 20, 0.05, offset)) for name, offset in (("a", 0), ("b", 1))]
        async with running(users_file, *fakes) as system:
            data = message()
            asked = asyncio.create_task(system.ask(data, "1"))
            await until(lambda: job_of(system, "ann/1") and job_of(system, "ann/1").tokens)
            await fakes[0].drain(0.0)
            assert (await asked).tokens == answer_of(data, 20, 1)
        assert [len(agent.begun) for agent in fakes] == [1, 1]  # b is not asked to begin twice

    asyncio.run(main())


def test_a_caller_that_follows_by_itself_is_told_that_the_answer_changed(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name, 20, 0.05, offset)) for name, offset in (("a", 0), ("b", 1))]
        async with running(users_file, *fakes) as system:
            seen = []
            following = asyncio.create_task(
                asyncio.to_thread(follow, system.address, message(), seen)
            )
            await until(lambda: seen)
            await fakes[0].drain(0.0)
            with pytest.raises(AnswerChanged, match="begins differently"):
                await following

    asyncio.run(main())


def test_with_no_agent_up_a_caller_waits_until_one_returns(users_file):
    async def main():
        data, first, second, port = message(), FakeAgent(), FakeAgent(), free_port()
        async with AsyncExitStack() as stack:
            async with fake(first, port):
                front = await stack.enter_async_context(system(users_file, port))
            # The last try may be the one that the deadline ends; the reason is told all the same.
            with pytest.raises(UNANSWERED, match="no edge agent answers"):
                await front.ask(data, "1", deadline_s=2.0)
            with pytest.raises(UNANSWERED, match="no edge agent answers"):
                await asyncio.to_thread(describe, front.address, 2.0)
            waiting = asyncio.create_task(front.ask(data, "1"))
            await asyncio.sleep(1.0)  # long enough to be turned away once
            await stack.enter_async_context(fake(second, port))
            answer = await waiting
            assert answer.tokens == answer_of(data)
            assert answer.tries > 1
        assert (first.begun, second.begun) == ([], ["ann/1"])

    asyncio.run(main())


def front_program(folder, users, *ports):
    (folder / "token").write_text(FRONT_TOKEN)
    settings = {
        "name": "front",
        "listen": f"127.0.0.1:{free_port()}",
        "metrics": f"127.0.0.1:{free_port()}",
        "agents": [f"127.0.0.1:{port}" for port in ports],
        "users_file": str(users),
        "token_file": "token",
        "poll_s": 0.1,
    }
    file = folder / "front.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ServiceProcess(sys.executable, "-c", FRONT, str(file))


FRONT = """
import sys
from pathlib import Path
from mllm_sched.edge.config import read_config
from mllm_sched.edge.config import FrontConfig
from mllm_sched.edge.front import run_front
from mllm_sched.process_setup import end_with
end_with(int(sys.argv[3]))
run_front(read_config(Path(sys.argv[1]), FrontConfig))
"""


@pytest.mark.slow
def test_a_front_killed_mid_answer_finds_the_agent_that_has_it_when_it_returns(
    users_file, tmp_path
):
    async def main():
        fakes = [FakeAgent(Ways(name, tokens=20, step_s=0.05)) for name in "ab"]
        async with AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(fake(one)) for one in fakes]
            program = front_program(tmp_path, users_file, *ports)
            await asyncio.to_thread(program.start)
            data, seen = message(), []
            following = asyncio.create_task(
                asyncio.to_thread(follow, program.address, data, seen, 60.0)
            )
            await until(lambda: seen)
            await asyncio.to_thread(program.kill)
            fakes[0].why_not = "full"  # what it has it goes on with all the same
            await asyncio.to_thread(program.start)
            await following
            await asyncio.to_thread(program.stop)
        assert tuple(seen) == answer_of(data, 20)
        assert [agent.begun for agent in fakes] == [["ann/1"], []]

    asyncio.run(main())


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_request_sent_again_finds_its_agent_though_the_front_never_saw_it(
    users_file, is_answered
):
    async def main():
        fakes = [FakeAgent(Ways(name, step_s=0.02)) for name in "ab"]
        async with AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(fake(one)) for one in fakes]
            async with system(users_file, *reversed(ports)) as before:
                asked = asyncio.create_task(before.ask(message(), "1"))
                await until(lambda: fakes[0].begun or fakes[1].begun)
                if is_answered:
                    await asked
            async with system(users_file, *ports) as after:
                assert (await after.ask(message(), "1")).tokens == answer_of(message())
            if not is_answered:
                asked.cancel()
        assert sum(len(one.begun) for one in fakes) == 1

    asyncio.run(main())


def test_an_agent_that_hangs_when_it_is_asked_what_it_has_delays_nobody_for_long(
    users_file, monkeypatch
):
    monkeypatch.setattr(agent_link, "HOLDS_S", 0.1)
    monkeypatch.setattr(agent_link, "ANSWER_S", 60.0)

    async def main():
        mute, other = FakeAgent(Ways("mute", energy_j=9.0)), FakeAgent(Ways("other"))
        mute.mute.clear()
        async with running(users_file, mute, other) as system:
            await system.ask(message(), "1")
        mute.mute.set()
        assert other.begun == ["ann/1"]

    asyncio.run(main())


def test_the_refusal_of_the_last_agent_is_told_with_what_programs_read_and_counted(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name)) for name in "ab"]
        async with running(users_file, *fakes) as system:
            fakes[0].refusal = Refusal("queue-full", "64 wait", retry_s=0.5)
            await system.ask(message("1"), "1")  # the other one has room
            fakes[1].refusal = Refusal("too-late", "9 s needed", retry_s=1.25)
            ended = await asyncio.to_thread(refused, system.address, message("2"), "2")
            assert ended.code() is Status.RESOURCE_EXHAUSTED
            assert ended.details() == "too-late: 9 s needed; ask again in 1.25 s"
            assert dict(ended.trailing_metadata()) == {"refused": "too-late", "retry-s": "1.25"}
            assert system.told.sheds == ["too-late"]

    asyncio.run(main())


def test_a_large_request_is_refused_for_what_it_was_refused_for_however_many_come(users_file):
    async def main():
        agent = FakeAgent()
        async with running(users_file, agent) as system:
            agent.refusal = Refusal("queue-full", "64 wait")
            for turn in range(4):
                names = [f"{turn}-{number}" for number in range(4)]
                told = await asyncio.gather(
                    *(
                        asyncio.to_thread(refused, system.address, message(name, side=600), name)
                        for name in names
                    )
                )
                assert {one.code() for one in told} == {Status.RESOURCE_EXHAUSTED}

    asyncio.run(main())


def test_a_request_that_is_refused_leaves_nothing_behind_that_waits_to_send_it(users_file):
    def sending():
        asleep = (task.get_coro() for task in asyncio.all_tasks())
        return [one for one in asleep if "request_iterator" in one.__qualname__]

    async def main():
        agent = FakeAgent()
        async with running(users_file, agent) as system:
            agent.refusal = Refusal("queue-full", "64 wait")
            gc.collect()
            gc.disable()  # it would find what is left in cycles
            try:
                for number in range(10):
                    name = str(number)
                    await asyncio.to_thread(refused, system.address, message(name), name)
                await until(lambda: not sending(), 5.0)
            finally:
                gc.enable()

    asyncio.run(main())


def test_an_agent_whose_journal_is_full_is_not_taken_for_dead(users_file):
    async def main():
        full, other = FakeAgent(), FakeAgent(Ways("b"))
        full.refusal = Refusal("journal", "no space left")
        async with running(users_file, full, other) as system:
            assert (await system.ask(message(), "1")).runs[0].agent == "b"
            assert not system.told.moves

    asyncio.run(main())


def refused(address, data, name):
    """How the call of somebody ended who was turned away."""
    with EdgeClient(address, Security(TOKENS["ann"])) as client:
        pieces = pieces_of(data, start_of(data, name))
        call = client._call(client._stub.Generate, 10.0, pieces)
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        return ended.value


def test_a_front_that_is_told_to_end_finishes_what_was_begun(users_file):
    async def main():
        agent, data = FakeAgent(Ways(tokens=20)), message()
        async with running(users_file, agent) as system:
            agent.going.clear()
            asked = asyncio.create_task(system.ask(data, "1"))
            await until(lambda: agent.begun)
            draining = asyncio.create_task(system.front.drain(60.0))
            error = await asyncio.to_thread(refused, system.address, message("2"), "2")
            assert error.code() is Status.UNAVAILABLE and "shuts down" in error.details()
            agent.going.set()
            assert (await asked).tokens == answer_of(data, 20)
            await draining
        assert agent.begun == ["ann/1"]

    asyncio.run(main())


def test_a_task_whose_link_was_cut_goes_back_to_the_agent_that_went_on_with_it(users_file):
    async def main():
        fakes = [FakeAgent(Ways(name, tokens=3, step_s=0.3)) for name in "ab"]
        ports = [free_port(), free_port()]
        async with AsyncExitStack() as stack, AsyncExitStack() as links:
            for one, port in zip(fakes, ports, strict=True):
                await links.enter_async_context(fake(one, port))
            front = await stack.enter_async_context(system(users_file, *ports))
            asked = asyncio.create_task(front.ask(message(), "1"))
            await until(lambda: fakes[0].begun)
            await links.aclose()
            await until(lambda: front.told.up == 0)
            for one, port in zip(reversed(fakes), reversed(ports), strict=True):
                await stack.enter_async_context(fake(one, port))
            await until(lambda: front.told.up == 2)
            assert (await asked).tokens == answer_of(message(), 3)
        assert [agent.begun for agent in fakes] == [["ann/1"], []]

    asyncio.run(main())


@pytest.mark.slow
def test_an_agent_that_hangs_gets_no_new_tasks_and_loses_the_one_it_has(
    users_file, tmp_path, monkeypatch
):
    waits = ("keepalive_time", "keepalive_timeout", "http2.ping_timeout")
    quick = [(f"grpc.{name}_ms", 300) for name in waits]
    monkeypatch.setattr(agent_link, "ANSWER_S", 0.5)
    monkeypatch.setattr(agent_link, "_OPTIONS", quick)
    ways = Ways(tokens=10, step_s=0.05)

    async def main():
        with agent_program(ways) as hung, agent_program(replace(ways, name="b")) as other:
            async with system(users_file, port_of(hung), port_of(other)) as front:
                asked = asyncio.create_task(front.ask(message(), "1"))
                await until(lambda: job_of(front, "ann/1") and job_of(front, "ann/1").tokens)
                os.kill(hung.pid, signal.SIGSTOP)
                try:
                    await until(lambda: not front.agents.all[0].up)
                    assert (await front.ask(message("2"), "2")).runs[0].agent == "b"
                    assert (await asked).runs[0].agent == "b"
                finally:
                    os.kill(hung.pid, signal.SIGCONT)
                await until(lambda: front.agents.all[0].up)

    asyncio.run(main())


def test_an_upload_that_is_too_large_is_refused_by_its_first_piece(users_file):
    async def main():
        async with running(users_file, FakeAgent(), limits=Limits(bytes=5000)) as system:
            with pytest.raises(RequestRefused, match="expected 8 to 5000"):
                await system.ask(message(side=64), "1")
            assert (await asyncio.to_thread(describe, system.address)).max_bytes == 5000
            assert system.front.held.total == 0

    asyncio.run(main())


def test_a_user_whose_requests_take_the_memory_leaves_room_for_others(users_file):
    async def main():
        size, agent = len(message("1")), FakeAgent(Ways(step_s=0.1))
        async with running(users_file, agent, held_bytes=5 * size) as system:
            held = system.front.held
            asked = [asyncio.create_task(system.ask(message(name), name)) for name in "12"]
            await until(lambda: held.total == 2 * size)
            with pytest.raises(NodeBusy, match=f"no room for {size} bytes"):
                await system.ask(message("3"), "3")
            await system.ask(message("4"), "4", "bob")
            await asyncio.gather(*asked)
            assert held.total == 0
            assert system.told.sheds == ["queue-full"]
            await system.ask(message("3"), "3")

    asyncio.run(main())


def test_a_front_that_serves_as_many_as_it_may_says_so_and_counts_it(users_file):
    async def main():
        agent = FakeAgent(Ways(step_s=0.1))
        async with running(users_file, agent, limits=Limits(requests=1)) as system:
            asked = asyncio.create_task(system.ask(message("1"), "1"))
            await until(lambda: agent.begun)
            with pytest.raises(NodeBusy, match="1 requests are served now"):
                await system.ask(message("2"), "2", "bob")
            assert system.told.sheds == ["queue-full"]
            await asked

    asyncio.run(main())


def test_a_user_who_asks_for_more_at_once_than_allowed_is_turned_away_alone(users_file):
    async def main():
        agent = FakeAgent(Ways(step_s=0.1))
        async with running(users_file, agent) as system:
            asked = [asyncio.create_task(system.ask(message(name), name, "cyd")) for name in "12"]
            await until(lambda: len(agent.begun) == 2)
            with pytest.raises(NodeBusy, match="at-once"):
                await system.ask(message("3"), "3", "cyd")
            assert system.told.sheds == ["at-once"]
            await system.ask(message("3"), "3", "bob")
            await asyncio.gather(*asked)
            await system.ask(message("3"), "3", "cyd")

    asyncio.run(main())


def test_calls_that_bring_nothing_are_few_for_each_user(users_file):
    calls = OpenCalls()
    user = User("ann", at_once=1)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(calls.of(user))
        with pytest.raises(Refusal, match="4 calls of ann are open"), calls.of(user):
            pass
        with calls.of(User("bob", at_once=1)):
            pass
    with calls.of(user):
        pass


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"agents": []}, "agents: .*at least 1 item"),
        ({"agents": ["a:1", "a:1"], "open": True}, "a:1 stands there twice"),
        ({"agents": ["edge.example:50061"]}, "others can reach it"),
        ({"agents": ["127.0.0.1"]}, "expected HOST:PORT"),
        ({"listen": "0.0.0.0:50060"}, "others can reach it"),
        ({"held_bytes": 1 << 20}, "expected at most half of held_bytes"),
        ({"pol_s": 1}, "pol_s.*Extra inputs"),
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
    async def main():
        odd = FakeAgent(Ways("odd", model="0" * 64))
        async with AsyncExitStack() as stack:
            ports = [await stack.enter_async_context(fake(one)) for one in (FakeAgent(), odd)]
            front_program(tmp_path, users_file, *ports, free_port())
            return await asyncio.to_thread(
                explain, read_config(tmp_path / "front.yaml", FrontConfig)
            )

    told = asyncio.run(main())
    assert "front front listens on 127.0.0.1:" in told
    assert "edge agent a at 127.0.0.1" in told
    assert "image, audio; takes tasks" in told or "audio, image; takes tasks" in told
    assert "holds another model than most" in told
    assert "does not answer now" in told
    assert FRONT_TOKEN not in told
