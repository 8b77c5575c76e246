"""Which extra brings what is not installed."""

import ast
import importlib.util
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mllm_sched
from mllm_sched import cli, extras, paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def without(monkeypatch):
    """Makes modules look as if they were not installed."""
    found = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(
            extras, "find_spec", lambda name: None if name in names else found(name)
        )
        extras.require.cache_clear()

    yield hide
    extras.require.cache_clear()


def imported():
    """Top-level modules that the package imports anywhere, but for its own and Python's."""
    for file in Path(mllm_sched.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_whatever_the_package_imports_is_of_its_core_or_of_an_extra():
    needs = {**PROJECT["optional-dependencies"], "core": PROJECT["dependencies"]}
    needs.pop("dev")
    brought = {canonicalize_name(Requirement(line).name) for line in chain(*needs.values())}
    modules = set(imported()) - sys.stdlib_module_names - {"mllm_sched", "pynvml"}
    assert {extras.PACKAGES.get(name, name) for name in modules} - brought == set()


@pytest.mark.parametrize(
    ("modules", "extra"),
    [
        (["torch"], "pipeline"),
        (["onnxruntime", "torch"], "pipeline"),
        (["yaml"], "edge"),
        (["torch", "yaml"], "edge"),
        (["simpy"], "site"),
        (["gpytorch"], "notebooks"),
        (["sklearn"], "notebooks"),
    ],
)
def test_the_smallest_extra_that_brings_all_of_them_is_named(without, modules, extra):
    without(*modules)
    advice = extras.advice(*modules)
    assert f"pip install 'mllm-sched[{extra}]'" in advice
    assert ("with NVIDIA's onnxruntime-gpu" in advice) == ("onnxruntime" in modules)


def test_what_is_there_or_of_no_extra_gets_no_advice(without):
    without("torch", "elsewhere")
    assert extras.advice("numpy", "grpc") is None
    assert extras.advice("elsewhere") is None
    extras.require("numpy")
    with pytest.raises(extras.MissingPackage, match="torch is not installed"):
        extras.require("numpy", "torch")


@pytest.mark.parametrize("name", ["elsewhere", "torch.elsewhere", None])
def test_a_missing_module_that_is_not_of_an_extra_stays_an_error_of_the_program(monkeypatch, name):
    def broken(options):
        raise ModuleNotFoundError("No module named 'elsewhere'", name=name)

    monkeypatch.setattr(cli, "_claims", broken)
    with pytest.raises(ModuleNotFoundError, match="elsewhere"):
        cli.main(["claims"])
