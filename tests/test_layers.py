"""Imports point one way: no circle between modules, and no layer knows one above it."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from mllm_sched import paths

# From the bottom to the top; what stands on one line does not know each other.
LAYERS = [
    {"arms", "tasks", "paths", "atomic_io", "extras", "process_setup"},
    {"measurement"},
    {"schedulers", "pipeline"},
    {"harness"},
    {"devices"},
    {"edge"},
    {"experiments"},
    {"apps"},
    {"cli_study"},
    {"cli"},
]


def modules():
    for path in sorted(paths.PACKAGE.rglob("*.py")):
        if "proto" not in path.parts:
            parts = path.relative_to(paths.PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), path


def imports(path, known):
    """Modules of the package that one imports, in functions too, but for the type checker."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
        if isinstance(node, ast.ImportFrom) and node.module in known:
            whole = [f"{node.module}.{name.name}" for name in node.names]
            yield from (name if name in known else node.module for name in whole)


@pytest.fixture(scope="module")
def graph():
    found = dict(modules())
    return {name: {*imports(path, found)} for name, path in found.items()}


def test_there_is_no_circle(graph):
    handed_on = {name for name, path in modules() if path.name == "__init__.py"}
    inside = {name: needs - handed_on for name, needs in graph.items() if name not in handed_on}
    assert not [name for name, needs in inside.items() if name in needs]
    try:
        tuple(TopologicalSorter(inside).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_layer_knows_one_above_it_or_beside_it(graph):
    def place(name):
        top = name.split(".")[1]
        return next(level for level, layer in enumerate(LAYERS) if top in layer), top

    wrong = []
    for name, needs in graph.items():
        if name == "mllm_sched":
            continue
        level, room = place(name)
        for needed in needs - {"mllm_sched"}:
            other, its_room = place(needed)
            if its_room != room and other >= level:
                wrong.append(f"{name} -> {needed}")
    assert not wrong, "\n".join(wrong)


def test_every_public_class_has_a_name_of_its_own():
    homes = {}
    for name, path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert not twice
