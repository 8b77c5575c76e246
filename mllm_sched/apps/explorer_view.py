"""What the explorer shows, without widgets: a question, the run that answers it, its pictures."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd
from matplotlib.figure import Figure

from mllm_sched.arms import Arm, power_name
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.arm_landscape import board_figure
from mllm_sched.experiments.exploration import Exploration, board_table, explore, learned_figure
from mllm_sched.experiments.lineup import ADAPTIVE, SAFE, paper_lineup
from mllm_sched.experiments.random_tables import FIELD
from mllm_sched.experiments.runner import Rule
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.tasks import Task

DOTS_PER_INCH = 96


def rules() -> dict[str, Rule]:
    """Every rule that can be followed, by label: first those of the paper, then the field's.

    Kernels have their default values; notebook 04 fits them to other encoders.
    """
    return {rule.label: rule for rule in [SAFE, ADAPTIVE, *paper_lineup(), *FIELD]}


@dataclass(frozen=True)
class Question:
    """What a visitor chose.

    Attributes
    ----------
    encoder
        As the board knows it.
    limit_s
        Latency limit in seconds.
    background_load
        Share of every component that other work takes, in [0, 1).
    label
        Of ``rules``.
    seed
        Of the board's noise and the scheduler's own randomness.
    steps
        Tasks.
    """

    encoder: str = "clip-vit-l14-336"
    limit_s: float = 0.2
    background_load: float = 0.0
    label: str = "Safe GP-UCB"
    seed: int = 0
    steps: int = 150

    def task(self) -> Task:
        """What is scheduled."""
        modality = encoder_modalities()[self.encoder]
        return Task(modality, self.encoder, background_load=self.background_load)


@lru_cache(maxsize=64)
def followed(question: Question) -> Exploration:
    """The run that answers a question; ValueError if no arm can meet the limit."""
    board = SimulatedOrin(question.seed)
    limits, rule = {"latency_s": question.limit_s}, rules()[question.label]
    return explore(board, question.task(), limits, rule, question.steps, question.seed)


def fastest(question: Question) -> tuple[str, float]:
    """The quickest arm in words, and its true latency in seconds, whatever the limit."""
    board = SimulatedOrin()
    latency_s = board.expected_all(question.task()).latency_s
    return in_words(board.space[int(latency_s.argmin())]), float(latency_s.min())


def in_words(arm: Arm) -> str:
    """An arm as someone would say it.

    Examples
    --------
    >>> in_words(SimulatedOrin().space[2])
    'GPU at 15W with 60 % load'
    """
    level = power_name(float(arm.power_w))
    return f"{str(arm.component).upper()} at {level} with {float(arm.load):.0%} load".replace(
        "%", " %"
    )


@lru_cache(maxsize=256)
def learned_picture(question: Question, n: int) -> str:
    """What is known after n tasks, as HTML."""
    figure = learned_figure(followed(question), n, label=question.label)
    return _picture(figure, f"What {question.label} knows of the 60 arms after {n} tasks")


def board_picture(question: Question) -> str:
    """The board at a glance, as HTML."""
    return _board_picture(question.task(), question.limit_s)


@lru_cache(maxsize=64)
def _board_picture(task: Task, limit_s: float) -> str:
    device = SimulatedOrin()
    board = board_table(device, task, {"latency_s": limit_s})
    figure = board_figure(board, limit_s, evidence=device.evidence)
    return _picture(figure, f"Latency and energy of the 60 arms for {task.encoder}")


def facts(question: Question, n: int) -> dict[str, str]:
    """The decision of task n and where the scheduler stands after it, in words."""
    seen = followed(question)
    task, now = seen.tasks.iloc[n - 1], seen.summary(n)
    return {
        "Arm chosen": in_words(seen.arm(n)),
        "Why": str(task["reason"]),
        "It took": f"{task['latency_s']:.3g} s and {task['energy_j']:.3g} J (simulated)",
        "Safe set": _safe_set(task["safe_arms"], int(seen.board["within"].sum())),
        "Arms tried": f"{int(now['tried'])} of {len(seen.space)}",
        "Tasks beyond the limit": f"{int(now['beyond the limit'])} of {n}",
        "Energy so far": f"{now['energy, J']:.4g} J, {1 + now['over the oracle']:.3g} times the "
        f"oracle's {now['oracle, J']:.4g} J (simulated)",
    }


def _safe_set(certified: float, meeting: int) -> str:
    if pd.isna(certified):
        return f"this rule certifies no arm; {meeting} truly meet the limit"
    return f"{certified:.0f} arms certified; {meeting} truly meet the limit"


def facts_table(question: Question, n: int) -> str:
    """``facts`` as HTML, two beside each other."""
    columns = "display:grid;grid-template-columns:max-content 1fr max-content 1fr;gap:2px 16px"
    cells = "".join(
        f"<b>{html.escape(name)}</b><span>{html.escape(value)}</span>"
        for name, value in facts(question, n).items()
    )
    return f'<div style="{columns};line-height:1.5">{cells}</div>'


def _picture(figure: Figure, said: str) -> str:
    """A figure as an image within the page, with a text for those who cannot see it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DOTS_PER_INCH)
    source = base64.b64encode(data.getvalue()).decode()
    return (
        f'<img alt="{html.escape(said)}" src="data:image/png;base64,{source}" '
        'style="width:100%;max-width:1104px">'
    )
