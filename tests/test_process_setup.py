"""A process ends with its parent, and its collector leaves alone what was loaded."""

import gc
import subprocess
import sys
import time

import psutil
import pytest

from mllm_sched.harness.subprocess_worker import Child
from mllm_sched.pipeline.processes import NodeProcess
from mllm_sched.process_setup import uncollected

COUNTS = """
import gc
from mllm_sched.harness.subprocess_worker import serve
loaded = []

def open_side():
    loaded.extend([] for _ in range(50_000))
    return lambda request, data: (gc.get_freeze_count(), b"")

serve(open_side)
"""


@pytest.fixture(params=[True, False])
def before(request):
    """Whether garbage is searched for when a test begins."""
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_a_block_that_fails_leaves_the_search_as_it_found_it(before):
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / gc.isenabled()
    assert gc.isenabled() is before


def test_what_a_child_loads_before_its_first_answer_is_not_searched_again():
    child = Child([sys.executable, "-c", COUNTS])
    assert child.ask({"do": "count"}, 60) > 50_000
    child.close()


NODE = """
import time
from mllm_sched.pipeline.processes import NodeProcess
print(NodeProcess("--model", "small-llava").start().pid, flush=True)
time.sleep(60)
"""


def gone(pid, timeout_s=15):
    """Whether a process ends in time; a zombie that nobody reaps has ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_node_ends_when_whoever_started_it_was_killed():
    parent = subprocess.Popen([sys.executable, "-c", NODE], stdout=subprocess.PIPE, text=True)
    node = int(parent.stdout.readline())
    assert psutil.pid_exists(node)
    parent.kill()
    parent.communicate()
    assert gone(node)


def test_a_node_that_runs_is_not_started_again():
    with NodeProcess("--model", "small-llava") as node:
        pid = node.pid
        with pytest.raises(RuntimeError, match=f"runs already, as process {pid}; stop it first"):
            node.begin()
        assert node.pid == pid
