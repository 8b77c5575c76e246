"""Jupyter servers and a browser for tests, started beside the repository, ended with kernels."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest

from mllm_sched import paths

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium"
TOKEN = "only-for-tests"
START_S, END_S = 60, 15
QUIET = {  # settings of JupyterLab: no news, and cells out of sight are there all the same
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium():
    """Where Chromium is; where there is none, root installs Debian's, and others skip the test."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("no Chromium here; install it, for example with apt-get install chromium")
    done = subprocess.run(["sh", "-c", INSTALL], capture_output=True, text=True)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"Chromium could not be installed: {done.stderr[-300:]}")
    return found


def workplace(folder, *names):
    """A copy of some notebooks; what they write goes beside it. Returns folder and environment."""
    (folder / "notebooks").mkdir()
    for name in names:
        shutil.copy(paths.NOTEBOOKS / name, folder / "notebooks")
    if (paths.RESULTS / "10_savings").exists():  # which the calculator reads
        shutil.copytree(paths.RESULTS / "10_savings", folder / "results" / "10_savings")
    for name, values in QUIET.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    places = {
        "PYTHONPATH": paths.ROOT,
        "MLLM_SCHED_RESULTS": folder / "results",
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTER_RUNTIME_DIR": folder / "runtime",
    }
    return folder / "notebooks", {**os.environ, **{key: str(at) for key, at in places.items()}}


@contextlib.contextmanager
def served(module, *options, folder, environment):
    """A server on the loopback; yields its address once it answers, and ends all it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, *options, "--no-browser", f"--port={port}"]
    log = folder.parent / f"{module}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _answers(port, process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _ended(process)


def _answers(port, process, log):
    for _ in range(10 * START_S):
        assert process.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise TimeoutError(f"no answer within {START_S} s:\n{log.read_text()[-2000:]}")


def _ended(process):
    """The server ends its kernels; what is left after a while is killed."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(family, timeout=END_S)
    for one in left:
        one.kill()
    process.wait()
