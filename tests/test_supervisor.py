"""Processes that are started again when they end."""

import os
import signal
import sys

from waiting import until

from mllm_sched.edge.system import Supervisor
from mllm_sched.pipeline.service import ServiceProcess

SLOW = """
import sys, time
from pathlib import Path
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


def test_a_process_that_is_killed_while_it_starts_comes_back_all_the_same(tmp_path):
    starts = tmp_path / "starts"

    def begun():
        return len(starts.read_text()) if starts.exists() else 0

    with ServiceProcess(sys.executable, "-c", SLOW, str(starts)) as process:
        with Supervisor({"slow": process}) as keeper:
            os.kill(process.pid, signal.SIGKILL)
            until(lambda: begun() == 2)
            os.kill(process.pid, signal.SIGKILL)
            until(lambda: keeper.restarts["slow"])
        assert process.alive
        assert begun() == 4
        assert (keeper.restarts["slow"], keeper.failed_starts["slow"]) == (1, 2)
