"""What agents learn from each other before their first task."""

import asyncio
import logging
import socket
import time
from types import SimpleNamespace

import grpc
import pytest
from journals import FACTS, SPACE, spec, taken

from mllm_sched import ArmSpace, Factor
from mllm_sched.edge import siblings
from mllm_sched.edge.journal import Journal
from mllm_sched.edge.journal_table import summarize
from mllm_sched.edge.learner import Learner, SchedulerSpec
from mllm_sched.edge.proto import agent_pb2_grpc as rpc
from mllm_sched.edge.siblings import AgentTalk, learn_from
from mllm_sched.pipeline.options import Security

SCATTER = 0.2


class Peer:
    """As much of an agent as its service asks for: a journal, and who may ask."""

    def __init__(self, path, front=True):
        self.journal, self.front = SimpleNamespace(path=path), front

    async def check(self, context):
        return SimpleNamespace(front=self.front)


def learned(learner, *peers):
    """Let a learner learn from peers, or from addresses; the addresses, and what it was given."""

    async def main():
        servers, addresses = [grpc.aio.server() for _ in peers], list[str]()
        for one, peer in zip(servers, peers, strict=True):
            addresses.append(peer)
            if isinstance(peer, Peer):
                rpc.add_AgentServicer_to_server(AgentTalk(peer), one)
                addresses[-1] = f"127.0.0.1:{one.add_insecure_port('127.0.0.1:0')}"
                await one.start()
        await asyncio.to_thread(learn_from, addresses, learner, SCATTER, Security())
        await asyncio.gather(*(one.stop(None) for one in servers))
        return addresses

    addresses = asyncio.run(main())
    given = [event.body for event in learner.journal.events() if event.kind == "warm-start"]
    return addresses, given


def measured(path, made, arms, failed=()):
    """A journal of runs on these arms, a few times each."""
    with Journal(path) as journal:
        learner = Learner(journal, made)
        for number, arm in enumerate([*arms] * 3):
            decision = learner.ask([f"ada/{number}/0"], available=[arm])
            if arm in failed:
                learner.tell(decision.id, failed="no memory", facts=FACTS)
            else:
                learner.tell(decision.id, facts=FACTS, **taken(arm, number))
    return path


@pytest.fixture
def board(tmp_path):
    """The journal of another board with the same arms."""
    return measured(tmp_path / "board.db", spec("ucb"), SPACE, failed=[SPACE[0]])


def test_a_new_agent_begins_with_what_a_sibling_measured_and_learns_from_it_once(board, tmp_path):
    made = spec("safe-gp-ucb")
    with Journal(tmp_path / "cold.db") as journal:
        cold = Learner(journal, made).ask(["ada/1/0"])
    for _ in range(3):  # as an agent that starts again and again
        with Journal(tmp_path / "warm.db") as journal:
            learner = Learner(journal, made)
            _, (given,) = learned(learner, Peer(board))
    assert given["scatter"] == SCATTER and len(given["table"]["failed"]) == len(SPACE)
    with Journal(tmp_path / "warm.db") as journal:
        warm = Learner(journal, made).ask(["ada/1/0"])
    assert warm.safe_arms > cold.safe_arms
    assert taken(warm.arm)["energy_j"] < taken(cold.arm)["energy_j"]


def test_other_arms_a_refusal_and_a_dead_sibling_are_left_out_and_named(board, tmp_path, caplog):
    others = ArmSpace([Factor("component", ["gpu", "npu"]), Factor("power_w", [15, 30], log=True)])
    other = measured(tmp_path / "o.db", SchedulerSpec("ucb", others, {"latency_s": 0.2}), others)
    peers = Peer(other), Peer(board, front=False), "127.0.0.1:1", Peer(board)
    with Journal(tmp_path / "new.db") as journal, caplog.at_level(logging.WARNING):
        addresses, (given,) = learned(Learner(journal, spec("ucb")), *peers)
    assert len(given["table"]["failed"]) == len(SPACE)
    fields = [record.fields for record in caplog.records if record.message == "sibling-left-out"]
    assert [field["sibling"] for field in fields] == addresses[:3]
    assert "npu" in fields[0]["why"] and "for fronts and agents" in fields[1]["why"]


@pytest.mark.parametrize("call", ["Status", "Holds", "Experience"])
def test_a_user_hears_nothing_that_is_for_fronts_and_agents(board, call):
    class Call:
        async def abort(self, code, why):
            raise PermissionError(why)

    asked = getattr(AgentTalk(Peer(board, front=False)), call)(None, Call())
    with pytest.raises(PermissionError, match="for fronts and agents"):
        asyncio.run(anext(asked) if call == "Experience" else asked)


def test_siblings_that_hang_or_have_no_measurements_do_not_hold_up_a_start(tmp_path, monkeypatch):
    monkeypatch.setattr(siblings, "PATIENCE_S", 0.5)
    Journal(tmp_path / "empty.db").close()
    with socket.socket() as mute, Journal(tmp_path / "new.db") as journal:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        learner, begun_s = Learner(journal, spec("ucb")), time.monotonic()
        hanging = f"127.0.0.1:{mute.getsockname()[1]}"
        _, given = learned(learner, hanging, Peer(tmp_path / "empty.db"))
        assert not given and 0.4 < time.monotonic() - begun_s < 15


def test_experience_is_a_row_for_each_arm_however_much_was_measured(tmp_path):
    path = tmp_path / "long.db"
    with Journal(path) as journal:
        learner = Learner(journal, spec("ucb"))
        for number in range(80):
            arm = SPACE[number % 4]
            decision = learner.ask([f"ada/{number}/0"], available=[arm])
            failing = number % 4 == 3 or number % 8 == 0
            given = {"failed": f"no {number}"} if failing else taken(arm, number)
            learner.tell(decision.id, facts=FACTS, **given)
    table = summarize(path)
    assert len(table) == 4 and list(table["runs"]) == [20] * 4
    assert "user" not in table and list(table["failed"]) == ["", "", "", "no 79"]
    assert table["latency_s"][0] == pytest.approx(taken(SPACE[0])["latency_s"], rel=0.1)
    assert summarize(path, recent=8)["runs"].sum() == 8
