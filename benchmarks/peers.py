"""The libraries of the field behind one interface, each used as its documentation says.

An adapter is made with the arms, the limit, the trusted arms and a seed. ``ask`` gives the index of
an arm, ``tell`` takes what it took. All run every trusted arm once before they choose. Libraries
without limits get the reward that our own ``ucb`` has: minus log energy, less 1 beyond the limit,
and its exploration of 0.1, since the textbook's 1 would play all arms almost evenly.

``make peers`` installs them into ``build/peers``, so that nothing in ``.venv`` changes. The last
SafeOpt, 0.16, asks for NumPy below 2 and imports names that Python 3.10 and NumPy 1.24 dropped
(``collections.Sequence``, ``np.float``). Its code runs unchanged once both are given back to it,
which is done while it runs and only then. ``peers_gp.py`` and ``peers_bo.py`` hold other adapters.
"""

from __future__ import annotations

import math
import site
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched import ArmSpace, make_scheduler, paths
from mllm_sched.schedulers.base import Scheduler

Array = NDArray[np.float64]
EXPLORATION = 0.1  # of our own ``ucb``

site.addsitedir(str(paths.BUILD / "peers"))


class Peer(ABC):
    """One library and rule.

    Parameters
    ----------
    space
        The arms.
    limit_s
        Latency limit.
    seeds
        Indices of the arms trusted to be within the limit.
    seed
        Of all randomness.
    """

    name: ClassVar[str]
    module: ClassVar[str] = "mllm_sched"  # that must be there
    seeded: ClassVar[bool] = True  # whether trusted arms run first

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        self.space, self.seeds, self.seed = space, list(seeds), seed
        self.log_limit = math.log(limit_s)
        self.untried_seeds = list(seeds) if self.seeded else []
        self.arms: list[int] = []
        self.log_energy: list[float] = []
        self.log_latency: list[float] = []

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be used here; empty if it can."""
        return "" if find_spec(cls.module) else f"{cls.module} is not installed; see `make peers`"

    def ask(self) -> int:
        """Index of the arm to run."""
        return self.untried_seeds[0] if self.untried_seeds else int(self._choose())

    def tell(self, arm: int, energy_j: float, latency_s: float) -> None:
        """What the arm took, in joules and seconds."""
        if arm in self.untried_seeds:
            self.untried_seeds.remove(arm)
        self.arms.append(arm)
        self.log_energy.append(math.log(energy_j))
        self.log_latency.append(math.log(latency_s))
        self._learn(arm)

    def preload(self, arms: Sequence[int], energy_j: Array, latency_s: Array) -> None:
        """Many measurements at once, before anything is timed."""
        for told in zip(arms, energy_j, latency_s, strict=True):
            self.tell(*told)

    def keep(self) -> None:  # noqa: B027  # most have nothing to keep
        """Learn no hyperparameters from here on, where that is how the rule is meant."""

    def reward(self) -> float:
        """Of the last measurement, for libraries that know no limit."""
        return -self.log_energy[-1] - (self.log_latency[-1] > self.log_limit)

    @abstractmethod
    def _choose(self) -> int:
        """Index of an arm, once every trusted arm was tried."""

    def _learn(self, arm: int) -> None:  # noqa: B027
        """Take in the last measurement; models that start from all data need nothing."""


class Ours(Peer):
    """A scheduler of this repository; it decides itself what to do with trusted arms."""

    seeded = False
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        super().__init__(space, limit_s, seeds, seed)
        self.scheduler: Scheduler = make_scheduler(
            self.name.split(" + ")[0],
            space,
            limits={"latency_s": limit_s},
            seeds=[space[arm] for arm in seeds],
            rng=seed,
            **self.settings,
        )

    def tell(self, arm: int, energy_j: float, latency_s: float) -> None:
        """Hand back the decision that was asked for last."""
        self.scheduler.tell(self._decision, energy_j=energy_j, latency_s=latency_s)

    def preload(self, arms: Sequence[int], energy_j: Array, latency_s: Array) -> None:
        """As a warm start, since nothing was asked."""
        table = pd.DataFrame([dict(self.space[arm].levels) for arm in arms])
        self.scheduler.warm_start(table.assign(energy_j=energy_j, latency_s=latency_s))

    def _choose(self) -> int:
        decision = self.scheduler.ask()
        self._decision = decision.id
        return decision.arm.index


class AdaptiveSafeGP(Ours):
    """Ours, beyond the paper."""

    name = "adaptive-safe-gp"


class SafeGPUCB(Ours):
    """Ours, the paper's."""

    name = "safe-gp-ucb"


class PenalisedUCB(Ours):
    """Ours, a baseline."""

    name = "ucb + penalty"
    settings: ClassVar[dict[str, Any]] = {"penalty": 1.0}


class River(Peer):
    """``bandit.UCB``; its ``delta`` is the factor on the confidence term."""

    name, module = "river UCB + penalty", "river"

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        from river import bandit

        super().__init__(space, limit_s, seeds, seed)
        self.policy = bandit.UCB(delta=EXPLORATION, seed=seed)
        self.all_arms = list(range(len(space)))

    def _choose(self) -> int:
        return self.policy.pull(self.all_arms)

    def _learn(self, arm: int) -> None:
        self.policy.update(arm, self.reward())


class MABWiser(Peer):
    """``UCB1``. It does not try arms by itself that it has no reward of: the adapter does, once."""

    name, module = "MABWiser UCB1 + penalty", "mabwiser"

    def __init__(self, space: ArmSpace, limit_s: float, seeds: Sequence[int], seed: int) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        super().__init__(space, limit_s, seeds, seed)
        policy = LearningPolicy.UCB1(alpha=EXPLORATION)
        self.bandit = MAB(list(range(len(space))), policy, seed=seed)
        self.untried = set(range(len(space)))

    def _choose(self) -> int:
        return min(self.untried) if self.untried else self.bandit.predict()

    def _learn(self, arm: int) -> None:
        self.untried.discard(arm)
        learn = self.bandit.partial_fit if len(self.arms) > 1 else self.bandit.fit
        learn([arm], [self.reward()])


def peers() -> dict[str, type[Peer]]:
    """Every rule by name, ours first; whether it can run here is what ``missing`` says."""
    from peers_bo import BayesOpt, BoTorch, BoTorchRefit, SafeOpt, SafeOptUCB
    from peers_gp import GPyTorch, ScikitLearn

    ours = (AdaptiveSafeGP, SafeGPUCB, PenalisedUCB)
    bandits, safe_rules = (River, MABWiser), (ScikitLearn, GPyTorch)
    optimisers = (BoTorch, BoTorchRefit, BayesOpt, SafeOpt, SafeOptUCB)
    return {peer.name: peer for peer in (*ours, *bandits, *safe_rules, *optimisers)}
