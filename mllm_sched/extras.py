"""Packages that an extra of this one brings, and what to say where one is missing."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

PROJECT = "mllm-sched"

# Packages that are not called like their module.
PACKAGES = {
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "prometheus_client": "prometheus-client",
    "pythonjsonlogger": "python-json-logger",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# The plain package would overwrite NVIDIA's build, so the extra is no help on a Jetson.
JETSON = ", or on a Jetson each by its name, with NVIDIA's onnxruntime-gpu for onnxruntime"


class MissingPackage(ModuleNotFoundError):
    """A package is not installed; the message names it and the extra that brings it."""


@cache
def require(*modules: str) -> None:
    """Raise MissingPackage unless all of these top-level modules are installed."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise MissingPackage(advice(*modules) or f"not installed: {', '.join(missing)}")


def advice(*modules: str) -> str | None:
    """Which of these top-level modules are not installed and how to get them, in one line.

    None if all of them are there, or if no extra brings those that are not.
    """
    missing = [PACKAGES.get(module, module) for module in modules if find_spec(module) is None]
    brought = _packages_of_extras() if missing else {}
    fitting = [extra for extra, packages in brought.items() if packages.issuperset(missing)]
    if not fitting:
        return None
    extra = min(fitting, key=lambda extra: len(brought[extra]))  # the smallest
    are = "is" if len(missing) == 1 else "are"
    told = f"{', '.join(missing)} {are} not installed: pip install '{PROJECT}[{extra}]'"
    return told + JETSON if "onnxruntime" in modules else told


def _packages_of_extras() -> dict[str, set[str]]:
    """Names of the packages of every extra; none if this package is on the path, not installed."""
    from importlib.metadata import PackageNotFoundError, metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        facts = metadata(PROJECT)
    except PackageNotFoundError:
        return {}
    needs = [Requirement(line) for line in facts.get_all("Requires-Dist") or ()]
    return {
        extra: {
            canonicalize_name(need.name)
            for need in needs
            if need.marker and need.marker.evaluate({"extra": extra})
        }
        for extra in facts.get_all("Provides-Extra") or ()
    }
