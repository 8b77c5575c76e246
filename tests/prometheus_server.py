"""Debian's Prometheus for tests, unpacked beside the repository and started on the loopback."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from waiting import until

from mllm_sched import paths

PACKAGE = "prometheus"


def programs():
    """The folder of prometheus and promtool: installed ones, else unpacked, never installed."""
    if (found := shutil.which("prometheus")) and shutil.which("promtool"):
        return Path(found).parent
    unpacked = paths.CACHE / "debian" / PACKAGE
    if not unpacked.exists():
        _unpack(unpacked)
    return unpacked / "usr" / "bin"


def _unpack(place):
    """Get Debian's package and unpack it there; a test that cannot have it is skipped."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("no Prometheus here, and not root on Debian: install the package prometheus")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        commands = [["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", PACKAGE]]
        for command in commands:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(
                    f"no Prometheus here: {' '.join(command)}: {done.stderr.strip()[-200:]}"
                )
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg", "-x", package, Path(folder) / "out"], check=True)
        (Path(folder) / "out").rename(place)


class Prometheus:
    """A Prometheus that scrapes some ports; it ends when the block does.

    Parameters
    ----------
    targets
        Ports by the name of their job.
    """

    def __init__(self, folder, targets, rules, interval="1s"):
        self._folder = folder
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in targets.items()
        ]
        every = {"scrape_interval": interval, "scrape_timeout": interval}
        settings = {
            "global": {**every, "evaluation_interval": interval},
            "scrape_configs": scrapes,
            "rule_files": [str(rules)],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [
            programs() / "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def _log(self):
        return self._folder / "prometheus.log"

    def __enter__(self):
        try:
            until(lambda: self._answers(), self.complaints)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self):
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5).close()
        except OSError:
            return False
        return True

    def get(self, what, **parameters):
        """The data of an answer of its HTTP API, which must come without a warning."""
        query = urllib.parse.urlencode(parameters)
        address = f"http://127.0.0.1:{self._port}/api/v1/{what}?{query}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert said["status"] == "success" and not said.get("warnings"), said
        return said["data"]

    def query(self, expression):
        """Values of an expression now, by their labels."""
        result = self.get("query", query=expression)["result"]
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in result}

    def complaints(self):
        """Lines of its log that are worse than news."""
        lines = self._log.read_text().splitlines()
        return [line for line in lines if "level=warn" in line or "level=error" in line]
