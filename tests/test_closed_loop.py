"""The loop of an agent: ask, encode, tell, with whatever may go wrong on the way."""

import math
import sqlite3
import time

import pytest
import torch

from mllm_sched.arms import ArmSpace, Factor
from mllm_sched.edge.closed_loop import ClosedLoop, EncodingFailed, Work, contexts_of
from mllm_sched.edge.encoder_process import Prepared
from mllm_sched.edge.journal import Journal, JournalError, read_journal
from mllm_sched.edge.learner import Learner, SchedulerSpec
from mllm_sched.edge.metrics import Metrics
from mllm_sched.edge.runtime import Encoded
from mllm_sched.pipeline.requests import Layout, Part

SPACE = ArmSpace([Factor("precision", ["float32", "int8"]), Factor("threads", [1, 2])])
TRUSTED = SPACE.arm(precision="float32", threads=2)
LIMIT_S = 0.2


class Scripted:
    """A runtime that does what a test says, and otherwise takes 0.1 s and 1 J."""

    space, evidence, energy_evidence = SPACE, "measured", "estimated"

    def __init__(self):
        self.script, self.ran = [], []

    def encoder(self, modality):
        return f"scripted:{modality}"

    def encode(self, arm, prepared, cut):
        self.ran.append(arm)
        fields = self.script.pop(0) if self.script else {}
        if fields.get("failed"):
            return Encoded(**fields)
        parts = tuple(Part("image", cut, torch.zeros(2, 3), Layout()) for _ in prepared)
        return Encoded(parts, **{"latency_s": 0.1, "energy_j": 1.0, **fields})


@pytest.fixture
def opened(tmp_path):
    """Opens a loop on one journal, as often as it is asked."""
    journals = []

    def open_loop(rule="ucb", batches=(1,)):
        for journal in journals:
            journal.close()
        contexts = contexts_of(["image"], batches)
        spec = SchedulerSpec(rule, SPACE, {"latency_s": LIMIT_S}, [TRUSTED], contexts=contexts)
        journals.append(Journal(tmp_path / "a.journal", busy_s=0.05))
        learner = Learner(journals[-1], spec)
        return ClosedLoop("edge-1", Scripted(), learner, LIMIT_S, "projector", Metrics(SPACE))

    yield open_loop
    for journal in journals:
        journal.close()


def work(name="ana/1/0", user="ana", seconds=30.0):
    prepared = Prepared("image", {"pixels": torch.zeros(1, 3)}, Layout())
    return Work(name, user, prepared, time.monotonic() + seconds)


def rows(loop):
    return read_journal(loop.learner.journal.path)


def exposed(loop, name):
    found = [line for line in loop.metrics.text().splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def test_what_was_measured_is_in_the_journal_and_in_the_answer(opened):
    loop = opened()
    (done,) = loop.encode([work()])
    (row,) = rows(loop).to_dict("records")
    assert (row["latency_s"], row["energy_j"], row["user"]) == (0.1, 1.0, "ana")
    assert (done.run.latency_s, done.run.energy_j, done.run.agent) == (0.1, 1.0, "edge-1")
    assert done.run.arm == str(loop.runtime.ran[0])
    assert (row["evidence"], row["energy_evidence"]) == ("measured", "estimated")


def test_an_arm_that_fails_is_learned_and_the_task_runs_on_another(opened):
    loop = opened()
    loop.runtime.script = [{"failed": "the encoder crashed: killed by SIGKILL"}]
    (done,) = loop.encode([work()])
    first, second = loop.runtime.ran
    assert first != second and done.run.arm == str(second)
    assert list(rows(loop)["failed"]) == ["the encoder crashed: killed by SIGKILL", ""]
    assert exposed(loop, "mllm_sched_failures_total") == 1


def test_an_arm_that_hangs_counts_as_above_the_time_it_was_waited_for(opened):
    loop = opened("adaptive-safe-gp")
    loop.runtime.script = [{"failed": "hangs", "hung_s": 2.0}]
    loop.encode([work()])
    assert rows(loop)["failed"][0] == "stopped: latency_s above 2"
    assert loop.runtime.ran[0] == TRUSTED != loop.runtime.ran[1]


def test_a_task_fails_when_two_arms_failed(opened):
    loop = opened()
    loop.runtime.script = [{"failed": "no"}, {"failed": "again no"}, {}]
    with pytest.raises(EncodingFailed, match="again no"):
        loop.encode([work()])
    assert len(loop.runtime.ran) == 2
    assert not loop.learner.scheduler._open


def test_without_a_meter_tasks_go_on_and_nothing_is_learned_of_them(opened):
    loop = opened()
    loop.runtime.script = [{"energy_j": math.nan, "meter_lost": "the sensor is gone"}, {}]
    (done,) = loop.encode([work("ana/1/0")])
    assert done.run.energy_j == 0.0
    assert loop.learner.scheduler.steps == 0 and rows(loop).empty
    assert exposed(loop, 'mllm_sched_alarms_total{kind="meter"}') == 1
    loop.encode([work("ana/2/0")])
    assert loop.learner.scheduler.steps == 1
    kinds = [event.kind for event in loop.learner.journal.events()]
    assert kinds == ["started", "decided", "cancelled", "decided", "measured"]


def test_a_task_that_was_under_way_at_a_kill_runs_on_its_arm_again(opened):
    loop = opened()
    for number in range(4):
        loop.encode([work(f"ana/{number}/0")])
    begun = loop.learner.ask(["ana/9/0"])
    again = opened()  # without a word of the old one
    assert again.learner.repeats == {"ana/9/0": begun.arm}
    again.encode([work("ana/9/0")])
    again.encode([work("ana/10/0")])
    assert again.runtime.ran[0] == begun.arm
    assert again.learner.repeats == {}
    assert len(rows(again)) == 6


def test_a_batch_is_one_decision_and_its_size_is_a_context(opened):
    loop = opened(batches=(1, 2))
    done = loop.encode([work("ana/1/0"), work("ben/1/0", "ben")])
    assert len(done) == 2
    (row,) = rows(loop).to_dict("records")
    assert row["batch"] == 2 and row["user"] == "several"


def test_a_journal_that_is_locked_is_waited_for_and_nothing_is_lost(opened):
    loop = opened()
    other = sqlite3.connect(loop.learner.journal.path, check_same_thread=False)

    class Locking(Scripted):
        def encode(self, *args):
            other.execute("BEGIN EXCLUSIVE")
            import threading

            threading.Timer(0.5, other.rollback).start()
            return super().encode(*args)

    loop.runtime = Locking()
    loop.encode([work()])
    assert len(rows(loop)) == 1
    assert exposed(loop, 'mllm_sched_alarms_total{kind="journal"}') >= 1
    other.close()


def test_a_journal_that_stays_locked_fails_the_task_at_its_deadline_and_is_used_afterwards(opened):
    loop = opened()
    loop.encode([work("ana/1/0")])
    other = sqlite3.connect(loop.learner.journal.path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JournalError) as error:
        loop.encode([work("ana/2/0", seconds=0.3)])
    assert error.value.reason == "locked"
    other.rollback()
    other.close()
    loop.encode([work("ana/3/0")])
    assert len(rows(loop)) == 2


def test_a_change_of_the_device_raises_an_alarm(opened):
    loop = opened("adaptive-safe-gp")
    for number in range(30):
        loop.encode([work(f"ana/{number}/0")])
    loop.runtime.script = [{"latency_s": 0.15, "energy_j": 2.0} for _ in range(30)]
    for number in range(30):
        loop.encode([work(f"ben/{number}/0")])
    assert exposed(loop, 'mllm_sched_alarms_total{kind="drift"}') >= 1


def test_contexts_are_what_differs_between_tasks():
    assert contexts_of(["image"], [1]) == []
    names = [factor.name for factor in contexts_of(["image", "audio"], [1, 2])]
    assert names == ["modality", "batch"]
