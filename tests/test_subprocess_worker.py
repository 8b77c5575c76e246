import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from waiting import until

from mllm_sched.harness.subprocess_worker import Child, CrashError, HangError, WorkerError

STUB = """
import json, os, sys, time
for line in sys.stdin:
    order = json.loads(line)["do"]
    if order == "exit": print("out of memory", file=sys.stderr); sys.exit(3)
    if order == "hang": time.sleep(60)
    if order == "half": sys.stdout.write('{"ok"'); sys.stdout.flush(); sys.exit(0)
    if order == "stuck": sys.stdout.write('{"ok"'); sys.stdout.flush(); time.sleep(60)
    if order == "long": print(json.dumps({"ok": [0.1] * 200_000}), flush=True); continue
    if order == "raise": print(json.dumps({"error": "MemoryError: no room"}), flush=True)
    else: print(json.dumps({"ok": os.getpid()}), flush=True)
"""


@pytest.fixture
def stub():
    worker = Child([sys.executable, "-c", STUB])
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("raise", "MemoryError: no room"),
        ("exit", "the encoder crashed: exit status 3: out of memory"),
        ("half", "the encoder crashed: exit status 0"),
    ],
)
def test_what_went_wrong_is_told_and_the_next_request_is_served(stub, order, words):
    with pytest.raises(WorkerError, match=words):
        stub.ask({"do": order}, 10)
    assert stub.ask({"do": "go"}, 10) == stub.pid


@pytest.mark.parametrize("order", ["hang", "stuck"])  # before its answer, and in the middle of it
def test_one_that_hangs_is_killed_in_time(stub, order):
    pid = stub.ask({"do": "go"}, 10)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"hangs: no answer in 0\.5 s"):
        stub.ask({"do": order}, 0.5)
    assert time.monotonic() - began < 5 and not psutil.pid_exists(pid)
    assert stub.ask({"do": "go"}, 10)


def test_a_long_answer_comes_whole(stub):
    assert len(stub.ask({"do": "long"}, 10)) == 200_000


SERVED = """
import time
from mllm_sched.harness.subprocess_worker import serve
def answer(request, data):
    print("what a library prints must not reach the answers", flush=True)
    if request["do"] == "hang": time.sleep(60)
    return len(data), data[::-1]
serve(lambda: answer)
"""


def test_bytes_go_behind_a_message_and_come_behind_its_answer():
    child = Child([sys.executable, "-c", SERVED])
    for data in (b"", b"ab\n", os.urandom(3_000_000)):
        said, behind = child.exchange({"do": "turn"}, data, 30)
        assert said == len(data) and bytes(behind) == data[::-1]
    child.close()


def test_one_that_does_not_take_what_is_sent_is_killed_in_time(stub):
    pid = stub.ask({"do": "go"}, 10)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(HangError) as hung:
        stub.exchange({"do": "go"}, bytes(3_000_000), 0.5)  # more than a pipe holds
    assert hung.value.after_s == 0.5 and not psutil.pid_exists(pid)


def test_one_that_was_closed_says_so_and_starts_no_other(stub):
    pid = stub.ask({"do": "go"}, 10)
    stub.close()
    stub.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(ValueError, match="was closed"):
        stub.ask({"do": "go"}, 10)
    assert stub.pid is None


def test_closing_from_another_thread_ends_the_request_under_way(stub):
    pid = stub.ask({"do": "go"}, 10)
    closing = threading.Timer(0.3, stub.close)
    closing.start()
    with pytest.raises(CrashError, match="killed by SIGKILL"):
        stub.ask({"do": "hang"}, 60)
    closing.join()
    assert not psutil.pid_exists(pid) and stub.pid is None


ORPHAN = """
import sys
from mllm_sched.harness.subprocess_worker import Child
child = Child([sys.executable, "-c", sys.argv[1]])
child.ask({"do": "turn"}, 30)
print(child.pid, flush=True)
child.ask({"do": "hang"}, 60)
"""


def test_one_whose_parent_was_killed_ends_even_in_mid_call():
    command = [sys.executable, "-c", ORPHAN, SERVED]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not psutil.pid_exists(pid), within_s=5)
