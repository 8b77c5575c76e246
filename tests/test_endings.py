"""Nothing that was started stays behind: children whose parent was killed, runs that are ended."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from mllm_sched import paths
from mllm_sched.pipeline.processes import NodeProcess
from mllm_sched.study.notebooks import GO_ON

NODE = """
import time
from mllm_sched.pipeline.processes import NodeProcess
print(NodeProcess("--model", "small-llava").start().pid, flush=True)
time.sleep(60)
"""
SLEEPS = """
import os, time
open("pid", "w").write(f"{os.getpid()}\\n")
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


def sleeping(root):
    """The process of a run of a notebook that sleeps."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SLEEPS)])
    (root / "notebooks").mkdir()
    nbformat.write(notebook, root / "notebooks" / "00_sleeps.ipynb")
    (root / "requirements.lock").symlink_to(paths.ROOT / "requirements.lock")
    (root / "data").symlink_to(paths.ROOT / "data")
    command = [sys.executable, "-m", "mllm_sched.study.notebooks", "reproduce"]
    return subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "MLLM_SCHED_ROOT": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kernel_of(root, process):
    """The kernel's process id, once it sleeps."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if (root / "pid").exists() and (root / "pid").read_text().endswith("\n"):
            return int((root / "pid").read_text())
        time.sleep(0.1)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_says_how_to_go_on_and_leaves_no_kernel(tmp_path, number):
    process = sleeping(tmp_path)
    kernel = kernel_of(tmp_path, process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and GO_ON in said
    assert gone(kernel)
