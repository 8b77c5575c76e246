"""Tables after a rerun against the committed ones: the same, but for another processor's rounding.

``python tests/compare_results.py results build/tested``; ``make test`` calls it. Figures are drawn
from the numbers in these tables.
"""

import sys
from pathlib import Path

from mllm_sched.experiments.provenance import ROUNDING, table_difference


def differences(committed: Path, now: Path) -> list[str]:
    """What differs first in every table beneath two folders; empty if nothing does.

    Raises
    ------
    FileNotFoundError
        When ``committed`` holds no tables: nothing would be compared.
    """
    before, after = (
        {path.relative_to(at) for path in at.rglob("*.csv")} for at in (committed, now)
    )
    if not before:
        raise FileNotFoundError(f"no tables in {committed}: nothing to compare with")
    found = dict.fromkeys(before - after, "is missing") | dict.fromkeys(after - before, "is new")
    for name in before & after:
        texts = [(folder / name).read_text() for folder in (committed, now)]
        if difference := table_difference(*texts, ROUNDING):
            found[name] = difference
    return [f"{name.as_posix()}: {what}" for name, what in sorted(found.items())]


if __name__ == "__main__":
    found = differences(*map(Path, sys.argv[1:]))
    print("\n".join(found) or "all tables are the committed ones, but for rounding")
    raise SystemExit(bool(found))
