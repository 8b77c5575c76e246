"""``python -m mllm_sched.harness.imitation FOLDER``: a board for readers who have none."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mllm_sched.harness.imitation.board import ImitationBoard


def main() -> None:
    """Make the board and feed it until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m mllm_sched.harness.imitation")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jetpack", type=int, choices=(4, 5, 6), default=6)
    options = parser.parse_args()
    with ImitationBoard(options.folder, jetpack=options.jetpack):
        print(f"feeding {options.folder} until Ctrl-C; in another shell, for example:")
        print(
            f"  mllm-sched profile --device agx-orin --board {options.folder} "
            "--encoder tiny-resnet --out build/imitation.csv --dry-run"
        )
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
