"""Services as child processes: none outlives its starter, and a supervisor starts them again."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import until

from mllm_sched.edge.system import Supervisor
from mllm_sched.pipeline.service import ServiceProcess

SERVICE = """
import sys, time
from pathlib import Path
from mllm_sched.process_setup import end_with
end_with(int(sys.argv[-1]))
starts = Path(sys.argv[1])
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
if number == 1:
    time.sleep(60)  # the second start hangs, so that it can be killed before it listens
if number == 2:
    sys.exit("not this time either")
print("listening on 127.0.0.1:1", flush=True)
time.sleep(600)
"""
STARTER = """
import sys, time
from mllm_sched.pipeline.service import ServiceProcess
print(ServiceProcess(sys.executable, "-c", *sys.argv[1:]).start().pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def starts(tmp_path):
    """A file that grows by a letter with every start of the service."""
    return tmp_path / "starts"


def test_a_service_ends_when_whoever_started_it_was_killed(starts):
    command = [sys.executable, "-c", STARTER, SERVICE, str(starts)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    service = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    until(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE)


def test_a_service_that_runs_is_not_started_again(starts):
    with ServiceProcess(sys.executable, "-c", SERVICE, str(starts)) as service:
        pid = service.pid
        with pytest.raises(RuntimeError, match=f"runs already, as process {pid}; stop it first"):
            service.begin()
        assert service.pid == pid


def test_a_service_that_is_killed_while_it_starts_comes_back_all_the_same(starts):
    with ServiceProcess(sys.executable, "-c", SERVICE, str(starts)) as process:
        with Supervisor({"slow": process}) as supervisor:
            os.kill(process.pid, signal.SIGKILL)
            until(lambda: len(starts.read_text()) == 2)
            os.kill(process.pid, signal.SIGKILL)
            until(lambda: supervisor.restarts["slow"])
        assert process.alive and len(starts.read_text()) == 4
        assert supervisor.restarts["slow"] == 1  # two starts came to nothing
