"""The files around the package agree with each other, and hold what they promise."""

import re
import subprocess
import sys
import tomllib
from hashlib import sha256
from importlib.metadata import distributions
from itertools import chain

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mllm_sched import paths

ROOT = paths.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDS = [
    need
    for line in [*PROJECT["dependencies"], *chain(*EXTRAS.values())]
    if (need := Requirement(line)).name != PROJECT["name"]
]


def pins(lines):
    """Name and version of every exact requirement."""
    exact = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name.strip()): version.strip() for name, version in exact}


LOCK = pins((ROOT / "requirements.lock").read_text().splitlines())


def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_the_lock_satisfies_the_project():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for need in [*NEEDS, *map(Requirement, build)]:
        assert LOCK[canonicalize_name(need.name)] in need.specifier, need
    assert LOCK["torch"] == "2.13.0"


def test_the_lock_holds_whatever_its_packages_need():
    """An environment made of the lock alone is complete: no package misses another."""
    there = {canonicalize_name(each.name): each.version for each in distributions()}
    for package in distributions():
        for need in map(Requirement, package.requires or ()):
            if not need.marker or need.marker.evaluate({"extra": ""}):
                version = there.get(canonicalize_name(need.name))
                fits = version and need.specifier.contains(version, prereleases=True)
                assert fits, f"{package.name} needs {need}, there is {version}"


def test_environment_yml_is_in_step_with_the_lock_and_the_project():
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in parts
    (pip,) = [part["pip"] for part in parts if isinstance(part, dict)]
    assert "-c requirements.lock" in pip and "-e ." in pip
    wanted = {canonicalize_name(need.name) for need in NEEDS}
    assert pins(pip) == {name: LOCK[name] for name in wanted}


def test_make_lists_every_target_and_knows_those_of_the_readme():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^  make (\w+)", listed, re.MULTILINE)
    wanted = ["env", "reproduce", "test", "lint", "lab", "notebooks", "bench", "clean", "help"]
    assert set(wanted) <= set(targets)
    documents = ["README.md", "CONTRIBUTING.md", "claims.yaml", "data/README.md"]
    text = "".join((ROOT / name).read_text() for name in documents)
    assert set(re.findall(r"`make (\w+)", text)) <= set(targets)


def test_every_file_the_documents_link_to_exists():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"


def test_no_tracked_file_names_a_place_of_one_machine():
    home = re.compile(r"/home/\w+|/Users/\w+|/root/|C:\\\\|/tmp/\w+/|index-url|\.\./shared")
    for path in tracked():
        if path.suffix == ".svg" or path.parent == ROOT / "tests":  # which make places up
            continue
        text = path.read_text(errors="replace")
        found = home.search(text)
        assert not found, f"{path.name}: {found and found[0]}"
        assert str(ROOT) not in text or str(ROOT) == "/", path.name


def test_data_is_what_its_checksums_say():
    lines = (ROOT / "data" / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = [path for path in tracked() if path.is_relative_to(ROOT / "data")]
    files = [path for path in files if path.suffix != ".py"]  # tools are no data
    there = {f"./{path.relative_to(ROOT / 'data').as_posix()}": path for path in files}
    there.pop("./SHA256SUMS", None)
    assert set(there) == set(listed), "run `make checksums`"
    for name, path in there.items():
        assert sha256(path.read_bytes()).hexdigest() == listed[name], name


def results_folders():
    return sorted(path for path in (ROOT / "results").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", results_folders(), ids=lambda folder: folder.name)
def test_a_folder_of_results_is_complete(folder):
    """Tables; every figure as SVG and PNG; and an origin that knows every file by its checksum."""
    record = yaml.safe_load((folder / "provenance.json").read_text())
    assert record["git"]["dirty"] is False
    known = {**record["tables"], **record.get("figures", {})}
    files = {path.name for path in folder.iterdir()} - {"provenance.json"}
    assert files == set(known), "run its notebook, or `make peers`"
    assert all(sha256((folder / name).read_bytes()).hexdigest() == known[name] for name in known)
    stems = {
        kind: {name[:-4] for name in files if name.endswith(kind)} for kind in (".svg", ".png")
    }
    assert any(name.endswith(".csv") for name in files)
    assert stems[".svg"] and stems[".svg"] == stems[".png"]


def test_generated_grpc_code_is_in_step_with_its_proto(tmp_path):
    """`make proto` would change nothing."""
    proto = "mllm_sched/pipeline/proto/node.proto"
    where = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *where, proto]
    subprocess.run(command, cwd=ROOT, check=True)
    made = sorted((tmp_path / proto).parent.iterdir())
    assert len(made) == 3
    for file in made:
        assert file.read_text() == (ROOT / proto).with_name(file.name).read_text(), file.name
