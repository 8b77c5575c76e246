"""What a front tells of itself, and to whom it may concern."""

from __future__ import annotations

from typing import Protocol


class FrontMetrics(Protocol):
    """What a front tells of itself."""

    def placed(self, agent: str) -> None:
        """A task went to this agent."""

    def moved(self, agent: str) -> None:
        """A task left this agent, which died or shut down, unanswered."""

    def shed(self, reason: str) -> None:
        """A request was not served, for this reason."""

    def agents(self, up: int, down: int) -> None:
        """So many agents answer; so many do not, or hold another model."""

    def answered(self, total_s: float, evidence: str) -> None:
        """An answer is complete; evidence of the latency of its encoding."""


class Untold:
    """Metrics of a front that nobody reads."""

    def placed(self, agent: str) -> None:
        """Untold."""

    def moved(self, agent: str) -> None:
        """Untold."""

    def shed(self, reason: str) -> None:
        """Untold."""

    def agents(self, up: int, down: int) -> None:
        """Untold."""

    def answered(self, total_s: float, evidence: str) -> None:
        """Untold."""


UNTOLD = Untold()
