"""Settings of all tests, notebooks among them."""

import gc
import os
import re
import sys
from decimal import Decimal
from pathlib import Path

from hypothesis import settings

# Numbers must not depend on how many cores a machine has; set before NumPy starts its threads.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The cores are taken by the tests: processes of a sweep would only have to be started.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
# Dask would ask the imitated library of the NVML tests for GPUs, which does not know all it asks.
os.environ.setdefault("DASK_DISTRIBUTED__DIAGNOSTICS__NVML", "False")
# Programs of imitated boards call for `python3`, which some version manager takes 0.1 s to find.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# jsonschema, which nbformat needs, would build a grammar of URLs for 3 s; no notebook asks for it.
sys.modules.setdefault("rfc3987_syntax", None)

# PyTorch and all that the tests import would be searched for garbage again and again.
gc.set_threshold(100_000, 50, 100)

# The first example pays for imports and kernels, so time says nothing.
settings.register_profile("here", deadline=None, derandomize=True)
settings.load_profile("here")


# What takes longest is begun first, so that no core is idle while another works at it in the end.
LONGEST = (
    *("08_ablations", "13_sensitivity", "01_decoupling", "04_scheduler_comparison"),
    *("09_many_users", "10_savings", "06_latency_limits", "07_time_varying"),
)


def pytest_collection_modifyitems(items):
    """Sort the longest notebooks to the front; all else stays as it is."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    """Leave what is imported by now out of every later search for garbage."""
    gc.freeze()


def pytest_collectstart(collector):
    """nbval: do not compare stderr, where libraries put warnings and progress."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


def pytest_itemcollected(item):
    """nbval: compare printed numbers as numbers; it asks a cell's ``sanitize`` for every text."""
    if hasattr(item, "sanitize"):
        exact = item.sanitize
        item.sanitize = lambda shown: (
            Printed(exact(shown)) if isinstance(shown, str) else exact(shown)
        )


class Printed(str):
    """An output that equals others but for rounding in its decimal numbers.

    That is a share of 1e-4, or one unit of the last printed digit if that is at most 1 % of the
    number. Words and whole numbers are equal, spaces do not count.
    """

    __hash__ = str.__hash__
    DECIMAL = re.compile(r"(-?\d+\.\d+(?:e[+-]?\d+)?)")

    def __eq__(self, other):
        one, two = self.DECIMAL.split(self), self.DECIMAL.split(other)  # words, numbers by turns
        return (
            len(one) == len(two)
            and all(a.split() == b.split() for a, b in zip(one[::2], two[::2], strict=True))
            and all(map(self._near, one[1::2], two[1::2]))
        )

    def __ne__(self, other):
        return not self == other

    @staticmethod
    def _near(one, two):
        finest = min(10.0 ** Decimal(text).as_tuple().exponent for text in (one, two))
        step, size = abs(float(one) - float(two)), abs(float(one))
        return step <= max(min(1.001 * finest, 0.01 * size), 1e-4 * size)
