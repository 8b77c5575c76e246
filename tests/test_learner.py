"""A scheduler that is rebuilt from its journal."""

import logging
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import (
    FACTS,
    SPACE,
    Clocks,
    alike,
    as_after_a_crash,
    learning,
    rebuilt,
    spec,
    taken,
    work,
)

from mllm_sched import ArmSpace, Factor
from mllm_sched.edge import journal as journal_module
from mllm_sched.edge import learner as module
from mllm_sched.edge.journal import Journal, read_journal
from mllm_sched.edge.learner import Learner
from mllm_sched.schedulers.bandits import UCB
from mllm_sched.schedulers.base import SCHEDULERS

CALLS = ["ask", "ask", "tell", "tell", "cancel", "failed", "above", "limits", "warm", "clock"]
OTHER_BOARD = pd.DataFrame(
    [
        {**SPACE[0].levels, "latency_s": 0.11, "energy_j": 2.5, "failed": ""},
        {**SPACE[1].levels, "latency_s": math.nan, "energy_j": math.nan, "failed": "no memory"},
    ]
).assign(modality="image")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def one_call(learner, call, number, going, clock):
    """Do one of the things an agent does."""
    if call == "clock":
        clock.sleep(1.7)
    elif call == "limits":
        learner.change_limits({"latency_s": 0.1 + 0.02 * (number % 7)})
    elif call == "warm":
        learner.warm_start(OTHER_BOARD, 0.2 * (number % 2))
    elif call == "ask":
        some = SPACE[number % 3 :] if number % 2 else None
        context = {"modality": ["image", "audio"][number % 2]} if learner.spec.contexts else None
        going.append(learner.ask([f"ada/{number}/0"], context=context, available=some))
    elif going:
        decision = going.pop(number % len(going))
        if call == "tell":
            learner.tell(decision.id, facts=FACTS, **taken(decision.arm, number))
        elif call == "cancel":
            learner.cancel(decision.id, "no longer wanted")
        elif call == "failed":
            learner.tell(decision.id, failed="no memory", latency_s=math.nan, facts=FACTS)
        else:
            learner.tell(decision.id, above={"latency_s": 0.5}, facts=FACTS)


@pytest.mark.parametrize(
    "made",
    [
        spec("safe-gp-ucb", settings={"forget_rate": 0.01}),
        spec("adaptive-safe-gp", contexts=[Factor("modality", ["image", "audio"])]),
        spec("thompson"),
    ],
    ids=lambda made: made.name,
)
@settings(max_examples=12)
@given(calls=st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 99)), max_size=25))
def test_a_process_that_ends_anywhere_leaves_its_scheduler_to_the_last_bit(made, calls):
    clock = Clocks()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SNAPSHOT_EVERY", 7)
        patch.setattr(journal_module, "time", clock)
        folder, going = Path(name), []
        with learning(folder / "journal.db", made) as learner:
            for call, number in calls:
                one_call(learner, call, number, going, clock)
            left = as_after_a_crash(folder / "journal.db", folder / "left")
            for decision in sorted(going, key=lambda decision: decision.id):
                learner.scheduler.cancel(decision.id)
            expected = learner.scheduler.state()
        with Journal(left) as journal:
            assert alike(rebuilt(journal, made), expected)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (spec("ucb"), r"of another scheduler \(name: safe-gp-ucb, here ucb"),
        (spec(rng=4), r"\(rng: 3, here 4\); start with these settings, or with a new journal"),
        (spec(limits={"latency_s": 0.2, "energy_j": 9.0}), r"limits: \['latency_s'\], here \['en"),
        (spec(seeds=[SPACE[2]]), "trusted: .*component=gpu, power_w=60"),
        (spec(contexts=[Factor("batch", [1, 2])]), r"contexts: \[\], here \['batch'\]"),
        (
            replace(spec(), space=ArmSpace([SPACE.factors[0], Factor("power_w", [15, 30, 50])])),
            r"power_w: \[15, 30, 60\] .*, here \[15, 30, 50\] log=False",
        ),
    ],
)
def test_a_journal_of_another_scheduler_is_refused_with_what_differs(path, other, said):
    with Journal(path) as journal:
        work(Learner(journal, spec()), 2)
        with pytest.raises(ValueError, match=said):
            Learner(journal, replace(other, seeds=[]) if other.space != SPACE else other)


def test_another_value_of_a_limit_is_a_change_of_it(path):
    with Journal(path) as journal:
        work(Learner(journal, spec()), 2)
    for _ in range(2):
        with learning(path, spec(limits={"latency_s": 0.3})) as learner:
            assert learner.scheduler.limits == {"latency_s": 0.3}
            assert [event.kind for event in learner.journal.events()].count("limits") == 1


def test_a_mistaken_call_changes_nothing_and_is_not_written(path):
    with learning(path) as learner:
        decision = learner.ask(["ada/0/0"])
        events = len(list(learner.journal.events()))
        for mistake in ({"latency_s": 0.1}, {"latency_s": -1.0, "energy_j": 1.0}):
            with pytest.raises(ValueError, match=r"tell: no value|expected a finite"):
                learner.tell(decision.id, facts=FACTS, **mistake)
        with pytest.raises(ValueError, match="unknown"):
            learner.cancel(99, "why")
        with pytest.raises(ValueError, match="lacks the columns"):
            learner.warm_start(OTHER_BOARD.drop(columns="power_w"))
        with pytest.raises(ValueError, match="expected one on each"):
            learner.change_limits({"energy_j": 1.0})
        with pytest.raises(ValueError, match="no arm to choose from"):
            learner.ask(["ada/1/0"], available=[])
        work(learner, 1, first=5)
        learner.tell(decision.id, facts=FACTS, **taken(decision.arm))
        kinds = [event.kind for event in learner.journal.events()][events:]
        assert [kind for kind in kinds if kind != "resumed"] == ["decided", "measured", "measured"]
        assert learner.scheduler.state()["_next_id"] == 2


class OtherUCB(UCB):
    """A later version of the rule, which chooses otherwise."""

    def _choose(self, cells, now):
        return self._decision(int(cells[-1]), "the last")


def test_another_version_of_the_rule_learns_from_the_measurements_and_says_so(
    path, tmp_path, monkeypatch, caplog
):
    with learning(path, spec("ucb")) as learner:
        learner.warm_start(OTHER_BOARD, 0.2)
        work(learner, 8)
        learner.change_limits({"latency_s": 0.25})
        decision = learner.ask(["ada/99/0"])
        left = as_after_a_crash(path, tmp_path / "left")
        plays = learner.scheduler.state()["counts"]
    monkeypatch.setitem(SCHEDULERS, "ucb", OtherUCB)
    with Journal(left) as journal, caplog.at_level(logging.WARNING):
        learner = Learner(journal, spec("ucb"))
        assert "cannot be done again" in caplog.text and "decision 0 was" in caplog.text
        assert learner.scheduler.state()["counts"].tolist() == plays.tolist()
        assert learner.scheduler.limits == {"latency_s": 0.25}
        assert learner.arm_of("ada/99/0") == decision.arm
        assert learner.ask(["ada/100/0"]).id == decision.id + 1
        again = as_after_a_crash(left, tmp_path / "again")
        learner.scheduler.cancel(decision.id + 1)
        expected = learner.scheduler.state()
    caplog.clear()
    with Journal(again) as journal:
        assert alike(rebuilt(journal, spec("ucb")), expected)
    assert "cannot be done again" not in caplog.text


def test_a_snapshot_that_this_version_cannot_read_is_no_end(path, monkeypatch, caplog):
    with learning(path) as learner:
        work(learner, 5)
        learner.close()

    def unreadable(*_):
        raise ValueError("does not fit this version")

    with monkeypatch.context() as patch:
        patch.setattr(module.Scheduler, "from_bytes", unreadable)
        with Journal(path) as journal, caplog.at_level(logging.WARNING):
            learner = Learner(journal, spec())
            assert "does not fit this version" in caplog.text
            assert learner.scheduler.beliefs["latency_s"].sd().min() < 0.2
            expected = learner.scheduler.state()
    with Journal(path) as journal:
        assert alike(rebuilt(journal), expected)


def test_a_snapshot_of_an_older_version_is_read(path):
    with learning(path) as learner:
        work(learner, 3)
        learner.close()
        snapshot = learner.journal.snapshot()
        older = {name: snapshot.recovery[name] for name in ("open", "repeats", "limits")}
        learner.journal.keep_snapshot(replace(snapshot, recovery=older))
    with Journal(path) as journal:
        assert rebuilt(journal)["steps"] == 3


def test_an_arm_that_takes_the_machine_down_twice_is_learned_and_left(path, tmp_path):
    made, arms, left = spec("adaptive-safe-gp"), [], path
    for boot in range(3):
        with learning(left, made) as learner:
            available = [forced] if (forced := learner.arm_of("ada/7/0")) else None
            arms.append(learner.ask(["ada/7/0"], available=available, facts=FACTS).arm)
            left = as_after_a_crash(left, tmp_path / f"boot-{boot}")
    assert arms[0] == arms[1] != arms[2]
    with learning(left, made) as learner:
        assert learner.scheduler.steps == 1
        assert learner.arm_of("ada/7/0") == arms[2]
        again = as_after_a_crash(left, tmp_path / "again")
        expected = learner.scheduler.state()
    (row,) = read_journal(left).to_dict("records")
    assert (row["failed"], row["modality"], row["user"]) == ("interrupted twice", "image", "ada")
    assert row["component"] == arms[0].component
    assert (row["limit_s"], row["reason"]) == (0.2, "trusted seed, not tried yet")
    with Journal(again) as journal:  # to the last bit, from its events alone
        assert alike(rebuilt(journal, made), expected)


def test_a_task_whose_answer_may_have_begun_runs_on_its_arm_again(path, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SNAPSHOT_EVERY", 2)
    clock = Clocks()
    monkeypatch.setattr(journal_module, "time", clock)
    with learning(path, keep_answers_s=60.0) as learner:
        work(learner, 3)
        failing, arm = learner.ask(["ada/9/0"]), learner.arm_of("ada/1/0")
        learner.tell(failing.id, failed="no memory", facts=FACTS)
        left = as_after_a_crash(path, tmp_path / "left")
        clock.even_s += 61.0
        assert learner.arm_of("ada/1/0") is None
    assert arm in SPACE
    with learning(left, keep_answers_s=60.0) as learner:
        assert learner.arm_of("ada/1/0") == arm
        assert learner.arm_of("ada/9/0") is learner.arm_of("ada/77/0") is None


def test_arms_of_the_tasks_measured_last_alone_are_remembered(path, monkeypatch):
    monkeypatch.setattr(module, "MEASURED", 5)
    with learning(path, spec("ucb")) as learner:
        work(learner, 8)
        known = [number for number in range(8) if learner.arm_of(f"ada/{number}/0")]
    assert known == [3, 4, 5, 6, 7]
