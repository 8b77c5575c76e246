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
TOKEN = "only-for-tests"
START_S, END_S = 60, 15
QUIET = {  # settings of JupyterLab: no news, and cells out of sight are there all the same
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def chromium():
    """Where Chromium is; `make browser` installs it where it can, elsewhere the test is skipped."""
    if not any(map(shutil.which, NAMES)):
        subprocess.run(["make", "browser"], cwd=paths.ROOT, check=False)
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or pytest.skip("no Chromium here; install it, or call make browser as root")


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


class Server:
    """A server on the loopback, which ends with all that it started when the block does."""

    def __init__(self, module, *options, folder, environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", module, *options, "--no-browser", f"--port={self.port}"]
        self._log = folder.parent / f"{module}.log"
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """The server ends its kernels; what is left after a while is killed."""
        family = self.family()
        self._process.terminate()
        _, left = psutil.wait_procs(family, timeout=END_S)
        for one in left:
            one.kill()
        self._process.wait()

    def family(self):
        """Its process and those it started; none if it has died."""
        try:
            whole = psutil.Process(self._process.pid)
            return [whole, *whole.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def address(self):
        """Its address, once it answers."""
        for _ in range(10 * START_S):
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return f"http://127.0.0.1:{self.port}"
            time.sleep(0.1)
        raise TimeoutError(f"no answer within {START_S} s:\n{self._log.read_text()[-2000:]}")
