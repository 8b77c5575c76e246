"""The explorer as a widget, without a browser."""

import re
from functools import cache

import pandas as pd
import pytest

from mllm_sched.apps import explorer as view
from mllm_sched.apps.explorer import Explorer
from mllm_sched.experiments.arm_landscape import pareto_front

SMALL = {"steps": 30, "n": 20}


# What one test has drawn, the next takes as it is.
LEARNED, BOARD = cache(view.learned_picture), cache(view.board_picture)


@pytest.fixture
def widget(monkeypatch):
    monkeypatch.setattr("mllm_sched.apps.explorer.learned_picture", LEARNED)
    monkeypatch.setattr("mllm_sched.apps.explorer.board_picture", BOARD)
    return Explorer(**SMALL)


def shown(widget):
    return widget.table.value, widget.learned.value, widget.board.value


def test_it_shows_what_the_scheduler_chose_and_knows(widget):
    facts = view.facts(widget.question, 20)
    assert all(value in widget.table.value.replace("&#x27;", "'") for value in facts.values())
    assert facts["Safe set"].endswith("22 truly meet the limit")
    assert facts["Why"] == "least energy bound in the safe set"
    assert "simulated" in facts["It took"] and "simulated" in facts["Energy so far"]
    assert "Safe GP-UCB knows of the 60 arms after 20 tasks" in widget.learned.value


def test_another_task_changes_what_is_known_and_leaves_the_board(widget):
    table, picture, board = shown(widget)
    widget.task.value = 1
    assert widget.table.value != table and widget.learned.value != picture
    assert widget.board.value == board
    assert "trusted seed" in widget.table.value


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (lambda w: setattr(w.scheduler, "value", "UCB"), "board"),
        (lambda w: setattr(w.encoder, "value", "resnet-50"), None),
        (lambda w: setattr(w.limit.text, "value", "0.15"), None),
        (lambda w: setattr(w.load.text, "value", "0.5"), None),
    ],
)
def test_every_choice_changes_the_figures(widget, change, stays):
    before = shown(widget)
    change(widget)
    assert widget.message.value == ""
    assert widget.learned.value != before[1]
    assert (widget.board.value == before[2]) == (stays == "board")


@pytest.mark.parametrize("typed", ["0", "-1", "nan", "soon", "", "0.01"])
def test_an_absurd_limit_names_the_fastest_arm_and_the_last_view_stays(widget, typed):
    before, question = shown(widget), widget.question
    widget.limit.text.value = typed
    assert "DLA at MAX with 100 % load, takes 0.059 s (simulated)" in widget.message.value
    assert shown(widget) == before and widget.question == question
    widget.limit.text.value = "0.15"
    assert widget.message.value == "" and widget.question.limit_s == 0.15


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoder": "bert"}, "encoder 'bert': expected one of clip"),
        ({"scheduler": "best"}, "scheduler 'best': expected one of Safe GP-UCB"),
        ({"limit_s": 0.01}, "no arm can meet it"),
        ({"n": 31}, "n=31: expected a task from 1 to 30"),
    ],
)
def test_a_start_that_cannot_be_shown_is_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Explorer(**{**SMALL, **wrong})


def test_the_pareto_front_is_what_nothing_beats():
    board = pd.DataFrame({"latency_s": [1, 2, 3, 3, 1], "energy_j": [3, 2, 2, 1, 3]})
    assert pareto_front(board).tolist() == [True, True, False, True, True]
