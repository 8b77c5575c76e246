"""The explorer: choose an encoder, a limit and a scheduler; step through what it learns.

First what it shows, without widgets: a question, the run that answers it, its pictures.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from mllm_sched.apps.fields import REFUSED, Allowed, NumberField
from mllm_sched.arms import Arm, power_name
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.arm_landscape import board_figure
from mllm_sched.experiments.exploration import Exploration, board_table, explore, learned_figure
from mllm_sched.experiments.lineup import ADAPTIVE, SAFE, paper_lineup
from mllm_sched.experiments.plots import use_style
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


STEP_MS = 700  # between two tasks while it plays
WIDE = {"description_width": "12em"}


class Explorer(widgets.VBox):
    """The widget; see ``explorer``.

    Attributes
    ----------
    question
        The last good one, which is what the figures answer.
    """

    def __init__(self, question: Question, n: int) -> None:
        use_style()
        self.question = question
        self.encoder = _choice("encoder", list(encoder_modalities()), question.encoder)
        self.scheduler = _choice("scheduler", list(rules()), question.label)
        self.limit = NumberField(
            *("latency limit, s", question.limit_s, Allowed(above=0), (0.001, 10.0)),
            log=True,
            css="explorer-limit",
        )
        self.load = NumberField(
            *("other work", question.background_load, Allowed(least=0, most=0.95), (0.0, 0.95)),
            css="explorer-load",
        )
        self.seed = NumberField(
            *("seed", question.seed, Allowed(least=0, most=1e6, whole=True), (0, 20)),
            css="explorer-seed",
        )
        self.message = _text("explorer-message")
        self.table = _text("explorer-table")
        self.learned = _text("explorer-learned")
        self.board = _text("explorer-board")
        self.task, steps = _player(question.steps, n)
        super().__init__([self._controls(), self.message, steps, *self._views()])
        self.add_class("explorer")
        self._follow()
        self._draw()

    def __repr__(self) -> str:
        """What a page shows that runs no widgets."""
        return "The explorer: open this notebook in JupyterLab, or call make app"

    def _controls(self) -> widgets.Widget:
        left = widgets.VBox([self.encoder, self.scheduler])
        right = widgets.VBox([self.limit.widget, self.load.widget, self.seed.widget])
        return widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap"))

    def _views(self) -> list[widgets.Widget]:
        return [self.table, self.learned, self.board]

    def _follow(self) -> None:
        """Hear of every change; of a slider only once it is let go."""
        for field in (self.limit, self.load, self.seed):
            field.slider.continuous_update = False
            field.on_change(self._asked)
        for choice in (self.encoder, self.scheduler):
            choice.observe(lambda change: self._asked(), "value")
        self.task.observe(lambda change: self._draw(board=False), "value")

    def _asked(self) -> None:
        """Answer what is now chosen, or say why not and keep what is shown."""
        asked = replace(
            self.question,
            encoder=self.encoder.value,
            label=self.scheduler.value,
            limit_s=self.limit.value,
            background_load=self.load.value,
            seed=int(self.seed.value),
        )
        refused = self._refused(asked)
        self.message.value = _alert(refused)
        if not refused and asked != self.question:
            self.question = asked
            self._draw()

    def _refused(self, asked: Question) -> list[str]:
        """Why there is no answer, in sentences. A refused field says itself what to give."""
        told, (arm, least_s) = [], fastest(asked)
        too_fast = self.limit.value < least_s
        if too_fast and not self.limit.error:
            told.append(f"latency limit, s: {self.limit.value:g} — no arm is that fast.")
        if too_fast or self.limit.error:
            told.append(f"The fastest arm, {arm}, takes {least_s:.3g} s (simulated).")
        if told or self.load.error or self.seed.error:
            told.append("Shown below is the last good choice.")
        return told

    def _draw(self, board: bool = True) -> None:
        n = self.task.value
        self.table.value = facts_table(self.question, n)
        self.learned.value = learned_picture(self.question, n)
        if board:
            self.board.value = board_picture(self.question)


def explorer(
    encoder: str = "clip-vit-l14-336",
    limit_s: float = 0.2,
    scheduler: str = "Safe GP-UCB",
    steps: int = 150,
    n: int = 40,
) -> Explorer:
    """A widget that follows one scheduler on the simulated board, task by task.

    Parameters
    ----------
    encoder, limit_s, scheduler
        What is chosen at first; ``scheduler`` is a label of ``rules``.
    steps
        Tasks of a run.
    n
        The task that is shown at first.

    Raises
    ------
    ValueError
        For an unknown encoder or scheduler, a limit that no arm can meet, or an n beyond the run.
    """
    for kind, given, known in (
        ("encoder", encoder, list(encoder_modalities())),
        ("scheduler", scheduler, list(rules())),
    ):
        if given not in known:
            raise ValueError(f"{kind} {given!r}: expected one of {', '.join(known)}")
    question = Question(encoder, limit_s, label=scheduler, steps=steps)
    followed(question).after(n)  # refuses what cannot be shown
    return Explorer(question, n)


def _alert(sentences: list[str]) -> str:
    if not sentences:
        return ""
    said = html.escape(" ".join(sentences))
    return f'<p role="alert" style="color:{REFUSED};margin:0">{said}</p>'


def _choice(name: str, options: list[str], value: str) -> widgets.Dropdown:
    wide = widgets.Layout(width="26em")
    choice = widgets.Dropdown(
        options=options, value=value, description=name, style=WIDE, layout=wide
    )
    choice.add_class(f"explorer-{name}")
    return choice


def _text(css: str) -> widgets.HTML:
    part = widgets.HTML()
    part.add_class(css)
    return part


def _player(steps: int, n: int) -> tuple[Any, widgets.Widget]:
    """The slider of the task, and the row it stands in with its buttons."""
    play = widgets.Play(value=n, min=1, max=steps, interval=STEP_MS, show_repeat=False)
    task = widgets.IntSlider(
        value=n, min=1, max=steps, description="after task", continuous_update=False
    )
    task.layout.width = "40em"
    widgets.jslink((play, "value"), (task, "value"))
    play.add_class("explorer-play")
    task.add_class("explorer-task")
    return task, widgets.HBox([play, task])
