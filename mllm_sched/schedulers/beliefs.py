"""What a rule believes of every arm, as a table that nobody has to know the rule to read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mllm_sched.arms import ArmSpace, Level
from mllm_sched.schedulers.decision import interval

Array = NDArray[np.float64]
Bounds = dict[str, tuple[Array, Array]]  # by quantity: lower and upper bounds of its log


class Beliefs:
    """The table, and what a rule that knows something overrides.

    Attributes
    ----------
    plays
        Runs of each cell that were told, failed ones among them, shape (cells,).
    """

    space: ArmSpace
    contexts: ArmSpace | None
    quantities: tuple[str, ...]
    plays: NDArray[np.int64]

    def belief_table(self, context: Mapping[str, Level] | None = None) -> pd.DataFrame:
        """What is believed of every arm now. Looking changes nothing.

        Parameters
        ----------
        context
            As for ``ask``.

        Returns
        -------
        One row an arm, in the order of the space: ``arm`` (index); for each quantity, such as
        ``energy_j``, ``energy_j_low`` and ``energy_j_high``, between which the rule believes its
        true mean to be (NaN where it has no belief); ``certified``; ``plays`` (runs told so far).
        A rule that keeps means alone has both bounds there.

        Examples
        --------
        >>> from mllm_sched import make_scheduler
        >>> space = ArmSpace.agx_orin()
        >>> rule = make_scheduler("ucb", space, limits={"latency_s": 0.2})
        >>> rule.tell(rule.ask().id, energy_j=3.2, latency_s=0.13)
        >>> rule.belief_table().loc[0, ["energy_j_low", "energy_j_high", "plays"]].round(3).tolist()
        [3.2, 3.2, 1.0]
        """
        arms = np.arange(len(self.space))
        cells = arms + self._offset(context)
        nothing = (np.full(len(arms), np.nan),) * 2
        bounds, columns = self._believed(cells), {}
        for name in self.quantities:
            low, high = bounds.get(name, nothing)
            with np.errstate(over="ignore"):  # what no number can hold is infinite
                columns[f"{name}_low"], columns[f"{name}_high"] = np.exp(low), np.exp(high)
        certified = self._certified_cells()[cells]
        return pd.DataFrame(
            {"arm": arms, **columns, "certified": certified, "plays": self.plays[cells]}
        )

    def _offset(self, context: Mapping[str, Level] | None) -> int:
        """First cell of a context."""
        if self.contexts is None:
            if context:
                raise ValueError(f"context={dict(context)}: made without contexts=[Factor(...)]")
            return 0
        if context is None:
            raise ValueError(f"context=None: expected a level for {', '.join(self.contexts.names)}")
        return self.contexts.arm(**context).index * len(self.space)

    def _bounds_of(self, cell: int) -> dict[str, tuple[float, float]]:
        """Between which values each quantity of a cell is believed to be."""
        believed = self._believed(np.array([cell]))
        return {
            name: interval(float(low[0]), float(high[0])) for name, (low, high) in believed.items()
        }

    def _believed(self, cells: NDArray[np.int64]) -> Bounds:
        """Bounds of the logs of the quantities of some cells; nothing by default."""
        return {}

    def _certified_cells(self) -> NDArray[np.bool_]:
        """Whether the rule holds each cell to be within every limit, shape (cells,)."""
        return np.zeros(len(self.plays), dtype=bool)
