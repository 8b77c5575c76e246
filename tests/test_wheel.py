"""The package as a wheel: what is in it, and what runs where nothing but its core is installed."""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mllm_sched import paths

PIP = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
ENCODERS = "onnx, onnxruntime, onnxscript, torch, transformers are not installed"

HIDDEN = "import sys, importlib.util as u; print(*filter(u.find_spec, sys.argv[1:]))"

EVERY_SCHEDULER = """
from mllm_sched.experiments.random_tables import FIELD, Trial

for rule in FIELD:
    Trial(rule, "rough", 48, tasks=5).play(0)
    print(rule.name)
"""

OTHER_DEVICES = """
from mllm_sched import open_device
from mllm_sched.cli import main
from mllm_sched.harness.fake_jetson.board import FakeJetson

open_device("trace:data/published/orin_sweep_trace.csv").close()
with FakeJetson("board"):
    for device in ("host", "agx-orin --board board"):
        assert main(["profile", "--dry-run", "--device", *device.split()]) == 0
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    subprocess.run([*PIP, *build, folder, paths.ROOT], check=True)
    (path,) = folder.iterdir()
    return path


def core():
    """Names of the packages that the core needs, and of those that these need in turn."""
    found, left = set(), [("mllm-sched", frozenset())]
    while left:
        name, extras = left.pop()
        needs = map(Requirement, distribution(name).requires or ())
        for need in needs:
            wanted = [{"extra": extra} for extra in extras or {""}]
            if need.marker and not any(map(need.marker.evaluate, wanted)):
                continue
            if (item := (canonicalize_name(need.name), frozenset(need.extras))) not in found:
                found.add(item)
                left.append(item)
    return {name for name, _ in found}


def link_packages(names, folder):
    """The installed packages of these names and no others, as links in a folder."""
    folder.mkdir()
    for name in names:
        package = distribution(name)
        tops = {file.parts[0] for file in package.files} - {"..", "__pycache__"}
        for top in tops:
            (folder / top).symlink_to(Path(package.locate_file(top)).resolve())


class Installed:
    """The wheel in an environment of its own, run in an empty folder."""

    def __init__(self, wheel, folder):
        self.here, self.home = folder / "here", folder / "home"
        self.here.mkdir()
        self.home.mkdir()
        made = [sys.executable, "-m", "venv", "--without-pip", folder / "venv"]
        subprocess.run(made, check=True)
        self.programs = folder / "venv" / "bin"
        install = ["install", "--no-deps", "--no-index", wheel]
        subprocess.run([*PIP, "--python", self.programs / "python", *install], check=True)
        (packages,) = (folder / "venv" / "lib").glob("*/site-packages")
        link_packages(core(), folder / "core")
        (packages / "core.pth").write_text(f"{folder / 'core'}\n")
        self.package = packages / "mllm_sched"

    def __call__(self, program, *arguments, status=0):
        """Run a program of the environment; what it printed, or its one line on standard error."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.here,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        if status:
            assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr if status else done.stdout

    def files(self):
        """Every file of the installed package, and when it was written."""
        return {path: path.stat().st_mtime_ns for path in self.package.rglob("*")}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """It runs; afterwards nothing in the installed package has changed."""
    environment = Installed(wheel, tmp_path_factory.mktemp("installed"))
    before = environment.files()
    yield environment
    assert environment.files() == before


def test_data_and_the_files_beside_the_code_are_in_the_wheel_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = [path for path in paths.DATA.rglob("*") if path.is_file() and ".py" not in path.suffix]
    assert {f"mllm_sched/{path.relative_to(paths.ROOT).as_posix()}" for path in data} <= names
    beside = ["py.typed", "edge/grafana.json", "edge/alerts.yml", "edge/proto/agent_pb2.pyi"]
    beside += [f"harness/fake_jetson/programs/{name}" for name in ("nvpmodel", "tegrastats")]
    assert {f"mllm_sched/{name}" for name in beside} <= names
    assert {name.split("/")[0] for name in names} == {"mllm_sched", "mllm_sched-0.1.0.dist-info"}


def test_the_default_device_runs_without_the_packages_of_the_extras(installed):
    others = ("torch", "gpytorch", "onnxruntime", "grpc", "yaml")
    told = installed("python", "-c", HIDDEN, *others, "numpy", "pandas")
    assert told.split() == ["numpy", "pandas"]
    told = installed("mllm-sched", "run", "--limit", "0.2", "--steps", "20", "--out", "run.csv")
    assert "latency simulated, energy simulated" in told
    assert len((installed.here / "run.csv").read_text().splitlines()) == 21


def test_every_scheduler_decides(installed):
    names = installed("python", "-c", EVERY_SCHEDULER).split()
    assert {"safe-gp-ucb", "adaptive-safe-gp", "stageopt", "exp3"} <= set(names)


def test_a_profile_is_planned_on_this_machine_and_on_an_imitated_board(installed):
    told = installed("python", "-c", OTHER_DEVICES)
    assert told.count("minutes_at_most") == 2 and "60 arms, latency simulated" in told


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("profile --encoder tiny-clip", f"{ENCODERS}: pip install 'mllm-sched[pipeline]', or on a"),
        ("serve-llm", "grpcio is not installed: pip install 'mllm-sched[pipeline]'"),
        ("agent agent.yaml", "pyyaml is not installed: pip install 'mllm-sched[edge]'"),
        ("claims", "this needs a checkout of the repository"),
    ],
)
def test_what_needs_more_says_so_in_a_line(installed, command, told):
    before = set(installed.here.iterdir())
    assert told in installed("mllm-sched", *command.split(), status=2)
    assert set(installed.here.iterdir()) == before
