"""The journal: what is in it, how long, and who may read it."""

import logging
import os
import sqlite3
import stat
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from journals import FACTS, SPACE, Clocks, learning, spec, taken, work

from mllm_sched import Task
from mllm_sched.devices.trace import TraceDevice
from mllm_sched.edge import journal as journal_module
from mllm_sched.edge import learner as learner_module
from mllm_sched.edge.journal import AlreadyAnswered, Journal, JournalError, read_journal
from mllm_sched.edge.journal_table import export
from mllm_sched.edge.learner import Learner
from mllm_sched.measurement import TableError

HOUR_S = 3600.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(journal_module, "time", clocks)
    return clocks


def test_an_answer_is_kept_once_per_user_and_request(path):
    with Journal(path) as journal:
        assert journal.answer("ada", "1") is None
        journal.keep_answer("ada", "1", b"digest", [5, 2**40], b"end")
        journal.keep_answer("bob", "1", b"other", [], b"")
        with pytest.raises(AlreadyAnswered, match="'1' of user 'ada'"):
            journal.keep_answer("ada", "1", b"digest", [9], b"end")
    with Journal(path) as journal:
        kept = journal.answer("ada", "1")
        assert (kept.digest, kept.tokens, kept.finished) == (b"digest", (5, 2**40), b"end")
        assert journal.answer("bob", "1").tokens == ()


def test_answers_are_for_their_owner_alone(path):
    before = os.umask(0o022)
    try:
        with Journal(path):
            files = [path.with_name(f"{path.name}{end}") for end in ("", "-wal", "-shm")]
            modes = [stat.S_IMODE(file.stat().st_mode) for file in files]
    finally:
        os.umask(before)
    assert modes == [0o600] * 3


def test_an_answer_is_found_at_once_while_the_journal_is_held(path):
    with Journal(path, busy_s=60.0) as journal:
        journal.keep_answer("ada", "1", b"digest", [5], b"end")
        other = sqlite3.connect(path, isolation_level=None)
        with closing(other), ThreadPoolExecutor(2) as pool:
            other.execute("BEGIN EXCLUSIVE")
            writing = pool.submit(journal.append, "started", {})  # waits, and holds the lock
            while journal.lock.acquire(blocking=False):
                journal.lock.release()
                time.sleep(0.01)
            assert pool.submit(journal.answer, "ada", "1").result(20).tokens == (5,)
            assert not writing.done()
            other.execute("ROLLBACK")
            assert writing.result(60).kind == "started"
        assert journal.answer("ada", "2") is None


def test_seconds_of_service_go_on_whatever_the_wall_clock_does(path, clocks, caplog):
    with Journal(path) as journal:
        assert journal.now_s() == 0.0
        clocks.sleep(100)
        clocks.wall_s -= 5000  # set back while it runs
        assert journal.now_s() == 100.0
        journal.append("started", {})
        clocks.wall_s += 9000  # and forth
        assert journal.now_s() == 100.0
        journal.append("started", {})
    clocks.even_s = 3.0  # another boot
    clocks.wall_s += 40
    with Journal(path) as journal:
        journal.append("started", {})
    clocks.wall_s -= 7000
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        assert "7000.0 s before its last event" in caplog.text
        clocks.sleep(10)
        assert journal.now_s() == 150.0
        assert [event.now_s for event in journal.events()] == [100.0, 100.0, 140.0, 140.0]


def test_a_second_writer_is_refused_by_name(path):
    with Journal(path), pytest.raises(JournalError, match=r"process \d+ writes it; stop") as error:
        Journal(path)
    assert error.value.reason == "locked"
    Journal(path).close()


def test_events_cannot_be_rewritten_and_hold_what_has_a_place_in_json(path):
    with Journal(path) as journal:
        journal.append("started", {"array": np.arange(2), "number": np.float32(0.5)})
        assert next(iter(journal.events())).body == {"array": [0, 1], "number": 0.5}
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.append("started", {"number": float("nan")})
        with pytest.raises(TypeError, match="has no place in a journal"):
            journal.append("started", {"path": path})
    with closing(sqlite3.connect(path)) as other:
        with pytest.raises(sqlite3.IntegrityError, match="only added"):
            other.execute("UPDATE events SET now_s = 7")


def test_a_journal_of_a_newer_schema_is_refused(path):
    Journal(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "UPDATE meta SET value = '2', crc = ? WHERE name = 'schema'", (zlib.crc32(b"2"),)
        )
        other.commit()
    with pytest.raises(JournalError, match=r"of schema 2; this package writes schema 1\. Use"):
        Journal(path)


def test_old_events_and_answers_go_and_the_scheduler_loses_nothing(path, clocks):
    with learning(path, keep_days=1.0, keep_answers_s=60.0) as learner:
        work(learner, 30)
        learner.journal.keep_answer("ada", "old", b"", [], b"")
        clocks.sleep(25 * HOUR_S)
        assert len(read_journal(path)) == 30  # no snapshot covers them
        work(learner, 2, first=30)
        learner.journal.keep_answer("ada", "new", b"", [], b"")
        learner.close()
        learner.journal.prune()
        assert read_journal(path)["decision"].tolist() == [30, 31]
        assert learner.journal.answer("ada", "old") is None and learner.journal.answer("ada", "new")
        clocks.sleep(50 * HOUR_S)
        learner.close()
        assert len(list(learner.journal.events())) == 1  # the clock goes on from it
    with Journal(path) as journal:
        assert Learner(journal, spec()).scheduler.steps == 32
        assert journal.now_s() == 75 * HOUR_S


def test_the_file_does_not_grow_without_bound(path, clocks, monkeypatch):
    monkeypatch.setattr(learner_module, "SNAPSHOT_EVERY", 80)
    sizes = []
    with learning(path, spec("ucb"), keep_days=0.01, keep_answers_s=60.0) as learner:
        for turn in range(12):
            work(learner, 20, first=20 * turn)
            for number in range(20):
                learner.journal.keep_answer(
                    "ada", f"{turn}/{number}", b"d" * 32, range(500), b"e" * 500
                )
            clocks.sleep(HOUR_S)
            learner.journal.prune()
            sizes.append(path.stat().st_size)
    assert max(sizes[6:]) <= 1.2 * max(sizes[:6])


def test_it_is_read_while_it_is_written_and_neither_waits(path):
    with Journal(path, busy_s=0.0) as journal, closing(sqlite3.connect(path)) as reader:
        learner = Learner(journal, spec("ucb"))
        work(learner, 3)
        reader.execute("BEGIN")  # one that stays within a transaction
        before = reader.execute("SELECT COUNT(*) FROM events").fetchone()
        work(learner, 3, first=3)
        assert read_journal(path)["decision"].tolist() == list(range(6))
        assert reader.execute("SELECT COUNT(*) FROM events").fetchone() == before


def test_a_journal_that_is_not_there_or_holds_nothing_reads_so(path):
    with pytest.raises(FileNotFoundError, match="the agent makes it"):
        read_journal(path)
    Journal(path).close()
    assert read_journal(path).empty
    with Journal(path) as journal:
        Learner(journal, spec())
        assert {"component", "power_w", "latency_s"} <= set(read_journal(path))
        with pytest.raises(TableError, match="nothing was measured yet"):
            export(path, path.with_suffix(".csv"))


def measure(learner, arms, encoder="small"):
    for number, arm in enumerate(arms):
        decision = learner.ask([f"ada/{number}/0"], available=[arm])
        learner.tell(decision.id, facts={**FACTS, "encoder": encoder}, **taken(arm, number))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_export_opens_as_a_trace(path, tmp_path, kind):
    with learning(path, spec("ucb")) as learner:
        measure(learner, [*SPACE, *SPACE])
        failing = learner.ask(["ada/9/0"], available=[SPACE[1]])
        learner.tell(failing.id, failed="no memory", facts=FACTS)
        done = export(path, tmp_path / f"out.{kind}")
    assert (done.rows, done.missing) == (13, ())
    trace = TraceDevice(done.path)
    assert trace.space.names == SPACE.names and len(trace.space) == len(SPACE)
    assert trace.evidence == "simulated"
    mean = np.mean([taken(SPACE[3], number)["latency_s"] for number in (3, 9)])
    assert trace.expected(
        trace.space[trace.space.index(SPACE[3])], Task("image", "small")
    ).latency_s == pytest.approx(mean, rel=1e-12)


def test_a_partial_export_says_what_lacks_and_keeps_the_whole_part_if_asked(path, tmp_path, caplog):
    with learning(path, spec("ucb")) as learner:
        measure(learner, [SPACE[index] for index in (0, 2, 3, 4, 5)])
        measure(learner, [SPACE[index] for index in (0, 2, 3, 5)], "large")
        partial = export(path, tmp_path / "partial.csv")
        assert partial.missing == (str(SPACE[1]), str(SPACE[4]))
        assert "lacks 2 arms, so it does not open" in caplog.text
        with pytest.raises(TableError, match="lacks"):
            TraceDevice(partial.path)
        whole = export(path, tmp_path / "whole.parquet", complete=True)
        assert whole.levels == {"component": ("gpu", "cpu"), "power_w": (15, 60)}
        assert (whole.rows, whole.missing) == (8, ())
        assert len(TraceDevice(whole.path).space) == 4
        with pytest.raises(ValueError, match=r"ends in \.csv or \.parquet"):
            export(path, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"durability": "none"}, "expected one of process, power"),
        ({"keep_days": 0}, "keep_days=0: expected above 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        Journal(tmp_path / "journal.db", **given)
    assert not (tmp_path / "journal.db").exists()
