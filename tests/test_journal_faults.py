"""What becomes of a journal when its disk, its file or its process fails."""

import contextlib
import itertools
import multiprocessing
import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from journals import (
    FACTS,
    alike,
    as_after_a_crash,
    fill,
    learning,
    rebuilt,
    small_disk,
    spec,
    taken,
    work,
)

from mllm_sched.edge import learner as learner_module
from mllm_sched.edge.journal import Journal, JournalError, read_journal
from mllm_sched.edge.learner import Learner

KILLS = 10


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


def test_a_full_disk_stops_the_scheduler_and_loses_no_measurement(tmp_path):
    told, unmeasured, disk = [], [], tmp_path / "disk"
    with small_disk(disk) as mounted, Journal(disk / "journal.db") as journal:
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
        assert alike(rebuilt(journal, spec("thompson")), expected)


def test_a_journal_that_another_connection_holds_is_waited_for_then_refused(path):
    with learning(path, spec("thompson"), busy_s=0.1) as learner:
        work(learner, 3)
        going = learner.ask(["ada/50/0"])
        values = taken(going.arm)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began_s = time.monotonic()
            with pytest.raises(JournalError, match=r"locked; end the other") as refused:
                learner.tell(going.id, facts=FACTS, **values)
            assert refused.value.reason == "locked" and time.monotonic() - began_s >= 0.1
            for _ in range(2):
                with pytest.raises(JournalError, match="locked"):
                    learner.ask(["ada/51/0"])
            with pytest.raises(JournalError, match="locked"):
                learner.journal.keep_answer("ada", "0", b"", [], b"")
            assert len(read_journal(path)) == 3  # readers need not wait
            other.execute("ROLLBACK")
        learner.tell(going.id, facts=FACTS, **values)  # all is as if nothing had been tried
        assert learner.ask(["ada/51/0"]).id == going.id + 1
        assert learner.scheduler.steps == 4
        assert read_journal(path)["latency_s"].tolist()[3] == values["latency_s"]


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
        expected = rebuilt(journal)
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
            return rebuilt(journal)
    except JournalError as error:
        return error


def test_a_digit_that_was_changed_is_noticed(path):
    written(path)
    data = path.read_bytes()
    place = data.index(b'"energy_j":') + len(b'"energy_j":')
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    for reading in (lambda: Learner(Journal(path), spec()), lambda: read_journal(path)):
        with pytest.raises(JournalError, match=r"event \d+ is damaged"):
            reading()


def test_what_is_no_journal_or_belongs_to_one_that_is_gone_is_named_so(path):
    path.write_text("measurements\n" * 100)
    with pytest.raises(JournalError, match="file is not a database; put the file aside"):
        Journal(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE tasks (id)")
    with pytest.raises(JournalError, match="a database, but no journal"):
        Journal(path)
    path.unlink()
    path.with_name("journal.db-wal").write_bytes(b"pages of the old journal")
    with pytest.raises(JournalError, match=r"belongs to journal\.db, which is gone"):
        Journal(path)


def measure_without_end(path, told):
    """A process that says what is acknowledged, and is killed for it."""
    with learning(path, spec("thompson")) as learner:
        told.send(("started", None))
        for number in itertools.count():
            decision = learner.ask([f"ada/{number}/0"])
            other = learner.ask([f"bob/{number}/0"])
            values = taken(decision.arm, number)
            learner.tell(decision.id, facts=FACTS, **values)
            told.send((decision.id, values["latency_s"]))
            learner.cancel(other.id, "not needed")
            request = f"{os.getpid()}/{number}"
            learner.journal.keep_answer("ada", request, b"digest", [number], b"end")
            told.send(("answered", request))


def test_a_process_killed_at_any_moment_loses_nothing_it_acknowledged(path, tmp_path, monkeypatch):
    monkeypatch.setattr(learner_module, "SNAPSHOT_EVERY", 40)
    context, rng = multiprocessing.get_context("fork"), np.random.default_rng(11)
    acknowledged = []
    for _ in range(KILLS):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=measure_without_end, args=(path, theirs), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(30)
        draining = threading.Thread(target=drain, args=(ours, acknowledged))
        draining.start()
        time.sleep(rng.uniform(0.0, 0.15))
        process.kill()
        process.join()
        draining.join()
    left = as_after_a_crash(path, tmp_path / "left")
    kept = dict(read_journal(path)[["decision", "latency_s"]].itertuples(index=False))
    measured = {what: value for what, value in acknowledged if isinstance(what, int)}
    assert len(measured) > KILLS
    assert measured.items() <= kept.items()
    with Journal(path) as one, Journal(left) as other:
        state = rebuilt(one, spec("thompson"))
        assert alike(state, rebuilt(other, spec("thompson"))) and state["steps"] == len(kept)
        assert all(one.answer("ada", said) for what, said in acknowledged if what == "answered")


def drain(pipe, acknowledged):
    with contextlib.suppress(EOFError):
        while True:
            acknowledged.append(pipe.recv())
