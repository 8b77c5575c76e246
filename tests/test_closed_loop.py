"""The loop of an agent: ask, encode, tell, with whatever may go wrong on the way."""

import asyncio
import logging
import math
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from unittest.mock import Mock

import pytest
import torch

from mllm_sched import make_scheduler
from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.devices import Encoded
from mllm_sched.devices.model_encoders import Prepared
from mllm_sched.edge import run_agent
from mllm_sched.edge.admission import expected_of
from mllm_sched.edge.closed_loop import ClosedLoop, EncodingFailed, EncodingJob, contexts_of
from mllm_sched.edge.journal import AsyncJournal, Journal, JournalError, read_journal
from mllm_sched.edge.learner import Learner, SchedulerSpec
from mllm_sched.edge.monitor import Metrics
from mllm_sched.pipeline.requests import Layout, Part

SPACE = ArmSpace([Factor("precision", ["float32", "int8"]), Factor("threads", [1, 2])])
TRUSTED = SPACE.arm(precision="float32", threads=2)
LIMIT_S = 0.2


class Scripted:
    """A device that does what a test says, and otherwise takes 0.1 s, and 1 J for an item."""

    space, evidence, energy_evidence = SPACE, "measured", "estimated"
    modalities, batches = {"scripted:image": "image"}, True

    def __init__(self):
        self.script, self.ran = [], []

    def run(self, arm, task, items):
        self.ran.append(arm)
        fields = self.script.pop(0) if self.script else {}
        if callable(fields):
            fields = fields()
        took = {"latency_s": 0.1, "energy_j": 1.0 * len(items)}
        if fields.get("failed"):
            took = dict.fromkeys(took, math.nan)
        if not fields.get("failed") or fields["cause"] == "meter":
            layout = Layout()
            took["parts"] = [Part("image", "encoder", torch.zeros(2, 3), layout) for _ in items]
        fields = {"evidence": self.evidence, "energy_evidence": self.energy_evidence, **fields}
        return Encoded(arm, task, **{**took, **fields})


@pytest.fixture
def opened(tmp_path):
    """Opens a loop on one journal, as often as it is asked."""
    journals = []

    def open_loop(rule="ucb", batches=(1,), script=()):
        for journal in journals:
            journal.close()
        contexts = contexts_of(["image"], batches)
        spec = SchedulerSpec(rule, SPACE, {"latency_s": LIMIT_S}, [TRUSTED], contexts=contexts)
        journals.append(Journal(tmp_path / "a.journal", busy_s=0.05))
        learner = Learner(journals[-1], spec)
        loop = ClosedLoop("edge-1", Scripted(), learner, LIMIT_S, Metrics(SPACE))
        loop.device.script = list(script)
        return loop

    yield open_loop
    for journal in journals:
        journal.close()


def work(name="ana/1/0", user="ana", seconds=30.0):
    prepared = Prepared("image", {"pixels": torch.zeros(1, 3)}, Layout())
    return EncodingJob(name, user, prepared, time.monotonic() + seconds)


def rows(loop):
    return read_journal(loop.learner.journal.path)


def exposed(loop, name, **labels):
    """The value of a series; 0 if there is none."""
    return loop.metrics.registry.get_sample_value(f"mllm_sched_{name}", labels) or 0


def tasks(loop):
    return exposed(loop, "tasks_total", modality="image", evidence="measured")


def alarms(loop, kind):
    return exposed(loop, "alarms_total", kind=kind)


def warned(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def locking(loop):
    """A connection that holds the journal from the moment that an encoder is at work."""
    with closing(sqlite3.connect(loop.learner.journal.path, check_same_thread=False)) as other:
        loop.device.script = [lambda: other.execute("BEGIN EXCLUSIVE") and {}]
        yield other


def test_what_was_measured_is_in_the_journal_and_in_the_answer(opened):
    loop = opened()
    (done,) = loop.encode([work()])
    (row,) = rows(loop).to_dict("records")
    assert (row["latency_s"], row["energy_j"], row["user"]) == (0.1, 1.0, "ana")
    assert (done.run.latency_s, done.run.energy_j, done.run.agent) == (0.1, 1.0, "edge-1")
    assert done.run.arm == str(loop.device.ran[0])
    assert (row["evidence"], row["energy_evidence"]) == ("measured", "estimated")


def test_an_arm_that_fails_is_learned_and_the_task_runs_on_another(opened):
    why = "the encoder crashed: killed by SIGKILL"
    loop = opened(script=[{"failed": why, "cause": "crashed"}])
    (done,) = loop.encode([work()])
    first, second = loop.device.ran
    assert first != second and done.run.arm == str(second)
    assert list(rows(loop)["failed"]) == [why, ""]
    assert exposed(loop, "failures_total", arm=str(first), why="crashed") == 1
    assert alarms(loop, "worker") == 1


def test_an_arm_that_hangs_counts_as_above_the_time_it_was_waited_for(opened):
    loop = opened("adaptive-safe-gp", script=[{"failed": "hangs", "cause": "hung", "hung_s": 2.0}])
    loop.encode([work()])
    assert rows(loop)["failed"][0] == "stopped: latency_s above 2"
    assert loop.device.ran[0] == TRUSTED != loop.device.ran[1]


def test_a_task_fails_when_two_arms_failed_and_no_decision_stays_open(opened):
    errors = OSError(28, "no space"), KeyError("key")
    loop = opened(script=[Mock(side_effect=error) for error in errors])
    with pytest.raises(EncodingFailed, match="KeyError: 'key'"):
        loop.encode([work()])
    told = [f"{type(error).__name__}: {error}" for error in errors]
    assert list(rows(loop)["failed"]) == told
    assert not loop.learner.scheduler._open


def test_without_a_meter_tasks_go_on_and_nothing_is_learned_of_them(opened):
    lost = {"failed": "the sensor is gone", "cause": "meter", "latency_s": 0.1}
    loop = opened(script=[lost])
    (done,) = loop.encode([work("ana/1/0")])
    assert done.run.energy_j == 0.0
    assert loop.learner.scheduler.steps == 0 and rows(loop).empty
    assert alarms(loop, "meter") == 1
    loop.encode([work("ana/2/0")])
    kinds = [event.kind for event in loop.learner.journal.events()]
    assert kinds == ["started", "decided", "cancelled", "decided", "measured"]


def test_a_task_that_may_have_begun_runs_on_its_arm_again(opened):
    loop = opened()
    for number in range(4):
        loop.encode([work(f"ana/{number}/0")])
    begun = loop.learner.ask(["ana/9/0"])
    again = opened()  # after a kill
    for number in (2, 0, 9, 3, 1):
        again.encode([work(f"ana/{number}/0")])
    first = loop.device.ran
    assert again.device.ran == [first[2], first[0], begun.arm, first[3], first[1]]
    assert len(set(first)) > 1


def test_a_batch_is_one_decision_and_its_size_is_a_context(opened):
    loop = opened(batches=(1, 2))
    done = loop.encode([work("ana/1/0"), work("ben/1/0", "ben")])
    assert len(done) == 2
    (row,) = rows(loop).to_dict("records")
    assert row["batch"] == 2 and row["user"] == "several"


def test_what_a_locked_journal_could_not_take_is_written_before_the_next_decision(opened):
    loop = opened("adaptive-safe-gp")
    with locking(loop) as other:
        for name in ("ana/1/0", "ben/1/0"):  # the second gets no decision
            with pytest.raises(JournalError) as error:
                loop.encode([work(name, seconds=0.3)])
            assert error.value.reason == "locked" and len(loop.device.ran) == 1
        assert tasks(loop) == len(rows(loop)) == 0  # as the journal has it
        other.rollback()
    loop.encode([work("ben/2/0")])
    assert list(rows(loop)["failed"]) == [""] * 2
    assert not loop.learner.scheduler._open
    assert tasks(loop) == 2


def test_who_closes_waits_for_no_journal(opened, caplog):
    loop = opened()
    with locking(loop) as other:
        threading.Timer(0.3, loop.closing.set).start()
        begun_s = time.monotonic()
        with pytest.raises(JournalError):
            loop.encode([work(seconds=60.0)])
        assert time.monotonic() - begun_s < 20
        run_agent._close(loop)
        assert warned(caplog) == ["journal-left-open"]
        other.rollback()
    run_agent._close(loop)
    assert len(rows(loop)) == 1  # what could not be written then
    assert opened().learner.scheduler.steps == 1


def test_who_closes_tries_no_other_arm_and_blames_none(opened):
    loop = opened()

    def crashing():
        loop.closing.set()
        return {"failed": "the encoder crashed: killed by SIGKILL", "cause": "crashed"}

    loop.device.script = [crashing]
    with pytest.raises(EncodingFailed):
        loop.encode([work()])
    assert len(loop.device.ran) == 1
    assert rows(loop).empty and not loop.learner.scheduler._open


def test_a_change_of_the_device_raises_an_alarm(opened):
    slower = [{"latency_s": 0.15, "energy_j": 2.0}] * 20
    loop = opened("adaptive-safe-gp", script=[{}] * 20 + slower)
    for number in range(40):
        loop.encode([work(f"ana/{number}/0")])
    assert alarms(loop, "drift") >= 1


def test_emulation_that_is_slower_than_what_it_emulates_says_so(opened, caplog):
    loop = opened(script=[{"behind_s": 0.2}, {"behind_s": 0.3}, {}, {"behind_s": 0.1}])
    for number in range(4):
        loop.encode([work(f"ana/{number}/0")])
    assert alarms(loop, "behind") == 3
    assert warned(caplog) == ["behind"] * 2


def test_a_wall_clock_that_was_set_back_raises_an_alarm(opened, monkeypatch):
    loop = opened()
    loop.encode([work()])
    assert alarms(loop, "clock") == 0
    earlier_s = time.time() - 3600.0
    monkeypatch.setattr(time, "time", lambda: earlier_s)
    assert alarms(opened(), "clock") == 1


def test_expectations_know_modalities_apart():
    rule = make_scheduler(
        "safe-gp-ucb",
        SPACE,
        limits={"latency_s": LIMIT_S},
        seeds=[TRUSTED],
        contexts=contexts_of(["image", "audio"], [1, 2]),
    )
    assert expected_of(rule, ["image", "audio"]) == []
    for modality, latency_s in (("image", 0.1), ("audio", 0.05)):
        for _ in range(6):
            decision = rule.ask({"modality": modality, "batch": 1}, [TRUSTED])
            rule.tell(decision.id, latency_s=latency_s, energy_j=1.0)
    expected = [one.latency_s for one in expected_of(rule, ["image", "audio"])]
    assert expected == pytest.approx([0.1, 0.05], rel=0.2)


def test_an_agent_that_only_answers_drops_old_answers_as_well(opened, monkeypatch):
    monkeypatch.setattr(run_agent, "WATCH_S", 0.01)
    monkeypatch.setattr(run_agent, "PRUNE_S", 0.0)
    loop = opened()
    journal = loop.learner.journal
    journal.keep_answers_s = 0.05
    journal.keep_answer("ana", "1", b"digest", [1], b"end")

    async def watched():
        watched_journal = AsyncJournal(journal, lambda: None)
        watching = asyncio.create_task(run_agent._watch(watched_journal, loop.metrics))
        while journal.answer("ana", "1"):
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(asyncio.wait_for(watched(), 20))
    assert exposed(loop, "journal_up") == 1
