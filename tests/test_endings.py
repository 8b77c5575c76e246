"""A node does not stay behind when whoever started it was killed."""

import subprocess
import sys
import time

import psutil
import pytest

from mllm_sched.pipeline.service import NodeProcess

NODE = """
import time
from mllm_sched.pipeline.service import NodeProcess
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
