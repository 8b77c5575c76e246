"""Energy of the same windows on an NVIDIA card, by this harness and by Zeus, side by side.

Needs a card and ``pip install zeus``. Run: ``python benchmarks/nvml_beside_zeus.py [SECONDS]``.
"""

from __future__ import annotations

import sys
import time

from mllm_sched.harness.meters import open_meter

WINDOWS = 5


def main(seconds: float = 10.0) -> int:
    """Print both energies of every window, and their ratio."""
    try:
        from zeus.monitor import ZeusMonitor

        meter, zeus = open_meter(kind="nvml"), ZeusMonitor(gpu_indices=[0])
    except (ImportError, OSError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 1
    print(f"ours: {meter.source}")
    print(f"{'window':>6} {'ours, J':>10} {'bounds, J':>19} {'Zeus, J':>10} {'ratio':>7}")
    for window in range(WINDOWS):
        zeus.begin_window("window", sync_execution=False)
        meter.start()
        time.sleep(seconds)
        ours = meter.stop()
        theirs_j = zeus.end_window("window", sync_execution=False).gpu_energy[0]
        bounds = f"{ours.low_j:.1f}..{ours.high_j:.1f}"
        ratio = ours.energy_j / theirs_j
        print(f"{window:>6} {ours.energy_j:>10.1f} {bounds:>19} {theirs_j:>10.1f} {ratio:>7.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
