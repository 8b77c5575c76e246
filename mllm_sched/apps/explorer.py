"""The explorer: choose an encoder, a limit and a scheduler; step through what it learns."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, replace
from functools import lru_cache

import ipywidgets as widgets
import pandas as pd
from matplotlib.figure import Figure

from mllm_sched.apps.fields import ABOVE_0, REFUSED, WIDE, NumberField, Wanted, classed
from mllm_sched.arms import Arm, power_name
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments.comparison import ADAPTIVE, SAFE, paper_lineup
from mllm_sched.experiments.exploration import (
    Exploration,
    board_figure,
    board_table,
    energy_strip,
    explore,
    learned,
)
from mllm_sched.experiments.plots import use_style
from mllm_sched.experiments.random_tables import FIELD
from mllm_sched.experiments.runner import Rule
from mllm_sched.pipeline.work import encoder_modalities
from mllm_sched.tasks import Task

# -- What it shows: a question, the run that answers it, its pictures and facts


def rules() -> dict[str, Rule]:
    """Every rule that can be followed, by label, with default kernels."""
    return {rule.label: rule for rule in [SAFE, ADAPTIVE, *paper_lineup(), *FIELD]}


@dataclass(frozen=True)
class Question:
    """What a visitor chose."""

    encoder: str = "clip-vit-l14-336"  # as the board knows it
    limit_s: float = 0.2  # on latency
    background_load: float = 0.0  # share of every component that other work takes, in [0, 1)
    label: str = "Safe GP-UCB"  # of ``rules``
    seed: int = 0  # of the board's noise and of the scheduler
    steps: int = 150  # tasks

    def task(self) -> Task:
        """What is scheduled."""
        modality = encoder_modalities()[self.encoder]
        return Task(modality, self.encoder, background_load=self.background_load)


@lru_cache(maxsize=64)
def followed(question: Question) -> Exploration:
    """The run that answers a question; ValueError if no arm can meet the limit."""
    board, rule = SimulatedOrin(question.seed), rules()[question.label]
    return explore(board, question.task(), question.limit_s, rule, question.steps, question.seed)


def in_words(arm: Arm) -> str:
    """An arm as someone would say it.

    >>> in_words(SimulatedOrin().space[2])
    'GPU at 15W with 60 % load'
    """
    level, load = power_name(float(arm.power_w)), 100 * float(arm.load)
    return f"{str(arm.component).upper()} at {level} with {load:.0f} % load"


@lru_cache(maxsize=256)
def learned_picture(question: Question, n: int) -> str:
    """What is known after n tasks, as HTML."""
    figure, seen = Figure(figsize=(11.5, 4.1)), followed(question)
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    learned(seen, n, left)
    energy_strip(seen, n, right)
    return _picture(figure, f"What {question.label} knows of the 60 arms after {n} tasks")


@lru_cache(maxsize=64)
def board_picture(task: Task, limit_s: float) -> str:
    """The board at a glance, as HTML."""
    device = SimulatedOrin()
    board = board_table(device, task, limit_s)
    figure = board_figure(board, limit_s, evidence=device.evidence)
    return _picture(figure, f"Latency and energy of the 60 arms for {task.encoder}")


def _picture(figure: Figure, said: str) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=96)
    source = base64.b64encode(data.getvalue()).decode()
    return (
        f'<img alt="{html.escape(said)}" src="data:image/png;base64,{source}" '
        'style="width:100%;max-width:1104px">'
    )


def facts(question: Question, n: int) -> dict[str, str]:
    """The decision of task n and where the scheduler stands after it, in words."""
    seen = followed(question)
    task, now, meeting = seen.tasks.iloc[n - 1], seen.summary(n), int(seen.board["within"].sum())
    certified = task["safe_arms"]
    none = "this rule certifies no arm"
    safe_set = none if pd.isna(certified) else f"{certified:.0f} arms certified"
    return {
        "Arm chosen": in_words(seen.space[int(task["arm"])]),
        "Why": str(task["reason"]),
        "It took": f"{task['latency_s']:.3g} s and {task['energy_j']:.3g} J (simulated)",
        "Safe set": f"{safe_set}; {meeting} truly meet the limit",
        "Arms tried": f"{int(now['tried'])} of {len(seen.space)}",
        "Tasks beyond the limit": f"{int(now['beyond the limit'])} of {n}",
        "Energy so far": f"{now['energy, J']:.4g} J, {1 + now['over the oracle']:.3g} times the "
        f"oracle's {now['oracle, J']:.4g} J (simulated)",
    }


def _facts_table(question: Question, n: int) -> str:
    columns = "display:grid;grid-template-columns:max-content 1fr max-content 1fr;gap:2px 16px"
    cells = "".join(
        f"<b>{html.escape(name)}</b><span>{html.escape(value)}</span>"
        for name, value in facts(question, n).items()
    )
    return f'<div style="{columns};line-height:1.5">{cells}</div>'


# -- The widget

SHARE: Wanted = ("a number from 0 to 0.95", lambda value: 0 <= value <= 0.95)
SEED: Wanted = (
    "a whole number from 0 to 1000000",
    lambda value: 0 <= value <= 1e6 and value == int(value),
)


class Explorer(widgets.VBox):
    """Follows one scheduler on the simulated board, task by task.

    ``steps`` are the tasks of a run, ``n`` the one that is shown at first. ``question`` is the last
    good one, which is what the figures answer. Raises ValueError for an unknown encoder or
    scheduler, a limit that no arm can meet, or an n beyond the run.
    """

    def __init__(
        self,
        encoder: str = "clip-vit-l14-336",
        limit_s: float = 0.2,
        scheduler: str = "Safe GP-UCB",
        steps: int = 150,
        n: int = 40,
    ) -> None:
        self.encoder = _choice("encoder", list(encoder_modalities()), encoder)
        self.scheduler = _choice("scheduler", list(rules()), scheduler)
        self.question = Question(encoder, limit_s, label=scheduler, steps=steps)
        followed(self.question).after(n)  # refuses what cannot be shown
        use_style()
        self.limit = NumberField(
            "latency limit, s", limit_s, *ABOVE_0, (0.001, 10.0), log=True, css="explorer-limit"
        )
        self.load = NumberField("other work", 0.0, *SHARE, (0.0, 0.95), css="explorer-load")
        self.seed = NumberField("seed", 0, *SEED, (0, 20), whole=True, css="explorer-seed")
        self.message, self.table, self.learned, self.board = (
            classed(f"explorer-{name}", widgets.HTML())
            for name in ("message", "table", "learned", "board")
        )
        tasks = {"value": n, "min": 1, "max": steps}
        play = widgets.Play(**tasks, interval=700, show_repeat=False)  # ms between two tasks
        self.task = widgets.IntSlider(
            **tasks,
            description="after task",
            continuous_update=False,
            layout=widgets.Layout(width="40em"),
        )
        widgets.jslink((play, "value"), (self.task, "value"))
        player = [classed("explorer-play", play), classed("explorer-task", self.task)]
        choices = widgets.VBox([self.encoder, self.scheduler])
        numbers = widgets.VBox([self.limit, self.load, self.seed])
        controls = widgets.HBox([choices, numbers], layout=widgets.Layout(flex_flow="row wrap"))
        views = [self.table, self.learned, self.board]
        super().__init__([controls, self.message, widgets.HBox(player), *views])
        self.add_class("explorer")
        for field in (self.limit, self.load, self.seed):
            field.slider.continuous_update = False  # a run is played only once it is let go
            field.on_change = self._ask
        for choice in (self.encoder, self.scheduler):
            choice.observe(lambda change: self._ask(), "value")
        self.task.observe(lambda change: self._show_task(), "value")
        self._show()

    def _ask(self) -> None:
        """Answer what is now chosen, or say why not and keep what is shown."""
        asked = replace(
            self.question,
            encoder=self.encoder.value,
            label=self.scheduler.value,
            limit_s=self.limit.value,
            background_load=self.load.value,
            seed=int(self.seed.value),
        )
        refused = html.escape(" ".join(self._refused(asked)))
        alert = f'<p role="alert" style="color:{REFUSED};margin:0">{refused}</p>'
        self.message.value = alert if refused else ""
        if not refused and asked != self.question:
            self.question = asked
            self._show()

    def _refused(self, asked: Question) -> list[str]:
        """Why there is no answer, in sentences. A refused field says itself what to give."""
        board, told = SimulatedOrin(), []
        latency_s = board.expected_all(asked.task()).latency_s
        least_s, arm = float(latency_s.min()), in_words(board.space[int(latency_s.argmin())])
        too_fast = self.limit.value < least_s
        if too_fast and not self.limit.error:
            told.append(f"latency limit, s: {self.limit.value:g} — no arm is that fast.")
        if too_fast or self.limit.error:
            told.append(f"The fastest arm, {arm}, takes {least_s:.3g} s (simulated).")
        if told or self.load.error or self.seed.error:
            told.append("Shown below is the last good choice.")
        return told

    def _show(self) -> None:
        self._show_task()
        self.board.value = board_picture(self.question.task(), self.question.limit_s)

    def _show_task(self) -> None:
        self.table.value = _facts_table(self.question, self.task.value)
        self.learned.value = learned_picture(self.question, self.task.value)


def _choice(name: str, options: list[str], value: str) -> widgets.Dropdown:
    if value not in options:
        raise ValueError(f"{name} {value!r}: expected one of {', '.join(options)}")
    choice = widgets.Dropdown(
        options=options,
        value=value,
        description=name,
        style=WIDE,
        layout=widgets.Layout(width="26em"),
    )
    return classed(f"explorer-{name}", choice)
