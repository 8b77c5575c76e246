"""The explorer: choose an encoder, a limit and a scheduler; step through what it learns."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from mllm_sched.apps.explorer_view import (
    Question,
    board_picture,
    facts_table,
    fastest,
    followed,
    learned_picture,
    rules,
)
from mllm_sched.apps.fields import REFUSED, Allowed, NumberField
from mllm_sched.experiments.plots import use_style
from mllm_sched.pipeline.work import encoder_modalities

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
        What is chosen at first; ``scheduler`` is a label of ``explorer_view.rules``.
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
