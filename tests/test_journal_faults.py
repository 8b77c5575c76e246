"""What becomes of a journal when its disk, its file or its process fails."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pytest
from journals import FACTS, alike, as_after_a_crash, fill, small_disk, spec, taken, work

from mllm_sched.edge.journal import Journal, JournalError, read_journal
from mllm_sched.edge.learner import Learner

KILLS = 15


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@contextmanager
def no_room(journal, mounted):
    """A block within which nothing more can be written."""
    if not mounted:
        pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        yield
        journal._database.execute("PRAGMA max_page_count = 1000000")
        return
    filler = journal.path.with_name("filler")
    fill(filler)
    yield
    filler.unlink()


def measure(learner, told, unmeasured, times):
    """Ask and tell so often, or until the journal refuses."""
    for _ in range(times):
        unmeasured.append(learner.ask([f"ada/{len(told)}/0"]))
        learner.tell(unmeasured[-1].id, facts=FACTS, **taken(unmeasured[-1].arm, len(told)))
        told.append(unmeasured.pop().id)


@pytest.mark.parametrize("real", [True, False])
def test_a_full_disk_stops_the_scheduler_and_loses_no_measurement(tmp_path, real):
    told, unmeasured = [], []
    with ExitStack() as opened:
        mounted = real and opened.enter_context(small_disk(tmp_path / "disk"))
        journal = opened.enter_context(Journal(tmp_path / "disk" / "journal.db"))
        learner = Learner(journal, spec("thompson"))
        measure(learner, told, unmeasured, 5)
        for _ in range(2):
            with no_room(journal, mounted):
                for _ in range(3):
                    with pytest.raises(JournalError, match="make room on the disk") as refused:
                        measure(learner, told, unmeasured, 2000)
                    assert refused.value.reason == "full"
                    assert set(told) <= set(read_journal(journal.path)["decision"])
            measure(learner, told, unmeasured, 20)  # goes on by itself
        left = as_after_a_crash(journal.path, tmp_path / "left")
        for decision in unmeasured:
            learner.scheduler.cancel(decision.id)
        expected = learner.scheduler.state()
    assert read_journal(left)["decision"].tolist() == told
    with Journal(left) as journal:
        assert alike(Learner(journal, spec("thompson")).scheduler.state(), expected)


def test_a_journal_that_another_connection_holds_is_waited_for_then_refused(path):
    with Journal(path, busy_s=0.2) as journal:
        learner = Learner(journal, spec())
        going = learner.ask(["ada/0/0"])
        values = taken(going.arm)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began_s = time.monotonic()
            with pytest.raises(JournalError, match=r"locked; end the other") as refused:
                learner.tell(going.id, facts=FACTS, **values)
            assert refused.value.reason == "locked" and time.monotonic() - began_s >= 0.2
            with pytest.raises(JournalError):
                journal.keep_answer("ada", "0", b"", [], b"")
            assert read_journal(path).empty  # readers need not wait
            other.execute("ROLLBACK")
        learner.tell(going.id, facts=FACTS, **values)
        assert read_journal(path)["latency_s"].tolist() == [values["latency_s"]]


def test_a_journal_that_is_held_for_less_than_that_is_just_waited_for(path):
    with Journal(path, busy_s=20.0) as journal:
        learner = Learner(journal, spec())
        held, let_go = threading.Event(), threading.Event()

        def hold():
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                held.set()
                let_go.wait(0.3)
                other.execute("ROLLBACK")

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        learner.ask(["ada/0/0"])
        holder.join()


def written(path, tasks=60):
    with Journal(path) as journal:
        work(Learner(journal, spec()), tasks)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_file_is_refused_and_left_as_it_is(path, share):
    written(path)
    os.truncate(path, int(share * path.stat().st_size))
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"put the file aside, then restore a copy") as refused:
        Learner(Journal(path), spec())
    assert refused.value.reason == "broken"
    assert path.read_bytes() == before


def test_bytes_that_were_changed_anywhere_are_never_taken_for_measurements(path, tmp_path):
    written(path)
    whole, rng = path.read_bytes(), np.random.default_rng(5)
    with Journal(path) as journal:
        expected = Learner(journal, spec()).scheduler.state()
    outcomes = []
    for number in range(12):
        damaged = bytearray(whole)
        place = int(rng.integers(len(whole) - 64))
        damaged[place : place + 64] = rng.bytes(64)
        other = tmp_path / f"{number}.db"
        other.write_bytes(damaged)
        outcomes.append(state_or_error(other))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, JournalError)]
    assert all(error.reason == "broken" and "aside" in str(error) for error in refusals)
    assert all(alike(found, expected) for found in outcomes if found not in refusals)
    assert len(refusals) >= 6


def state_or_error(path):
    try:
        with Journal(path) as journal:
            return Learner(journal, spec()).scheduler.state()
    except JournalError as error:
        return error


def test_a_digit_that_was_changed_is_noticed(path):
    written(path)
    data = path.read_bytes()
    place = data.index(b'"energy_j":') + len(b'"energy_j":')
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(JournalError, match=r"event \d+ is damaged"):
        Learner(Journal(path), spec())
    with pytest.raises(JournalError, match=r"event \d+ is damaged"):
        read_journal(path)


def test_what_is_no_journal_is_named_so(path):
    path.write_text("measurements\n" * 100)
    with pytest.raises(JournalError, match="file is not a database; put the file aside"):
        Journal(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE tasks (id)")
    with pytest.raises(JournalError, match="a database, but no journal"):
        Journal(path)


def test_what_belongs_to_a_journal_that_is_gone_is_not_taken_into_a_new_one(path):
    path.with_name("journal.db-wal").write_bytes(b"pages of the old journal")
    with pytest.raises(JournalError, match=r"belongs to journal\.db, which is gone"):
        Journal(path)


def measure_without_end(path, told):
    """A process that says what is acknowledged, and is killed for it."""
    with Journal(path) as journal:
        learner = Learner(journal, spec("thompson"), snapshot_every=40)
        told.send(("started", learner.scheduler.steps))
        number = 0
        while True:
            decision = learner.ask([f"ada/{number}/0"])
            other = learner.ask([f"bob/{number}/0"])
            values = taken(decision.arm, number)
            learner.tell(decision.id, facts=FACTS, **values)
            told.send((decision.id, values["latency_s"]))
            learner.cancel(other.id, "not needed")
            journal.keep_answer("ada", f"{os.getpid()}/{number}", b"digest", [number], b"end")
            told.send(("answered", f"{os.getpid()}/{number}"))
            number += 1


def test_a_process_killed_at_any_moment_loses_nothing_it_acknowledged(path, tmp_path):
    context, rng = multiprocessing.get_context("fork"), np.random.default_rng(11)
    acknowledged, answered = {}, set()
    for _ in range(KILLS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=measure_without_end, args=(path, theirs), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(30) and ours.recv()[0] == "started"
        draining = threading.Thread(target=drain, args=(ours, acknowledged, answered))
        draining.start()
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        draining.join()
    left = as_after_a_crash(path, tmp_path / "left")
    kept = dict(read_journal(path)[["decision", "latency_s"]].itertuples(index=False))
    assert len(acknowledged) > KILLS
    assert acknowledged.items() <= kept.items()
    with Journal(path) as one, Journal(left) as other:
        learner = Learner(one, spec("thompson"))
        assert alike(learner.scheduler.state(), Learner(other, spec("thompson")).scheduler.state())
        assert learner.scheduler.steps == len(kept)
        assert all(one.answer("ada", request) for request in answered)


def drain(pipe, acknowledged, answered):
    while True:
        try:
            what, value = pipe.recv()
        except EOFError:
            return
        if what == "answered":
            answered.add(value)
        else:
            acknowledged[what] = value
