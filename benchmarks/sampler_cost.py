"""What sampling costs: share of one core, over four rails of an imitated board.

Run: ``make bench``, or ``python benchmarks/sampler_cost.py``. The goal is 2 % at 100 Hz.
"""

from __future__ import annotations

import tempfile
import time

from mllm_sched.harness.fake_jetson.board import FakeJetson
from mllm_sched.harness.meters import open_meter

RATES_HZ = (20, 100, 500)
SECONDS = 10.0


def main() -> None:
    """Print the share of a core, and the rate that was reached, at every rate."""
    with tempfile.TemporaryDirectory() as folder, FakeJetson(folder) as board:
        print(f"{'asked, Hz':>10} {'reached, Hz':>12} {'share of a core':>16}")
        for rate_hz in RATES_HZ:
            meter = open_meter(board.root, "ina3221", rate_hz)
            meter.start()
            time.sleep(SECONDS)
            reading = meter.stop()
            print(f"{rate_hz:>10} {reading.rate_hz:>12.1f} {meter.cpu_share:>16.2%}")
            meter.close()


if __name__ == "__main__":
    main()
