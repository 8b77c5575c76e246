"""A board of twelve arms whose truth is known: what tests of rules play on."""

import numpy as np

from mllm_sched.arms import ArmSpace, Factor

SPACE = ArmSpace(
    [
        Factor("component", ["gpu", "dla"]),
        Factor("power_w", [15, 30, 60], log=True),
        Factor("load", [0.5, 1.0]),
    ]
)
X = SPACE.features()
LATENCY_S = 0.29 * np.exp(-0.8 * X[:, 1] - 0.6 * X[:, 2])
ENERGY_J = np.exp(0.5 * X[:, 1] + 0.4 * X[:, 0] + (X[:, 2] - 0.3) ** 2)
FAST = SPACE.arm(component="gpu", power_w=60, load=1.0)
