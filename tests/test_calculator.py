import pytest

from mllm_sched import paths
from mllm_sched.apps.calculator import WHOLE, Calculator, calculator
from mllm_sched.apps.fields import ABOVE_0, NumberField
from mllm_sched.experiments import savings
from mllm_sched.experiments.savings import PlayedRuns


@pytest.fixture(scope="module")
def runs():
    return savings.read_runs(paths.COMMITTED / savings.RUNS)


@pytest.fixture
def drawn(runs):
    return Calculator(PlayedRuns(runs))


@pytest.fixture
def shown(runs, monkeypatch):
    """The same with a bill in the place of the figure of it, which takes its time to draw."""
    monkeypatch.setattr("mllm_sched.apps.calculator._drawn", lambda bill: bill.to_csv().encode())
    return Calculator(PlayedRuns(runs))


def result(shown):
    return shown.headline.value, shown.table.value, bytes(shown.figure.value)


def test_at_first_the_calculator_shows_a_saving_a_table_and_a_figure(drawn):
    assert "Safe GP-UCB takes" in drawn.headline.value and "(simulated)" in drawn.headline.value
    assert "Epsilon-greedy" in drawn.table.value and "All Remote" in drawn.strategies.value
    assert b"<svg" in bytes(drawn.figure.value) and "idle power" in drawn.notes.value
    assert drawn.message.value == ""


def test_a_changed_input_changes_the_table_and_the_headline(shown):
    fields, mix = shown.fields, shown.mix
    for widget, value in [
        (fields["tasks_per_day"].text, "250"),
        (fields["tasks_per_day"].slider, 150.0),
        (fields["devices"].text, "7"),
        (fields["price_per_kwh"].text, "0.5"),
        (fields["gco2_per_kwh"].text, "20"),
        (fields["days"].text, "30"),
        (mix["videomae-base"].text, "90"),
    ]:
        headline, table, _ = result(shown)
        widget.value = value
        assert shown.message.value == ""
        assert shown.headline.value != headline and shown.table.value != table


def test_the_headline_follows_who_is_compared(shown):
    shown.other.value = "Epsilon-greedy"
    assert "than Epsilon-greedy" in shown.headline.value
    shown.ours.value = "Adaptive safe GP"
    assert shown.headline.value.startswith("Adaptive safe GP")
    assert "saved by Adaptive safe GP" in shown.table.value


ABSURD = [
    ("tasks_per_day", "0", "tasks per day, a device: 0 — give a number above 0"),
    ("tasks_per_day", "", "tasks per day, a device: empty — give a number above 0"),
    ("tasks_per_day", "inf", "tasks per day, a device: inf — give a number above 0"),
    ("devices", "2.5", "devices: 2.5 — give a whole number, 1 or more"),
    ("price_per_kwh", "-1", "euro per kWh: -1 — give a number, 0 or more"),
    ("gco2_per_kwh", "nan", "g CO2e per kWh: nan — give a number, 0 or more"),
    ("days", "a year", "days: a year — give a number above 0"),
]


def test_an_absurd_input_is_refused_politely_and_the_last_good_result_stays(shown):
    for number, (name, text, said) in enumerate(ABSURD):
        before = result(shown)
        shown.fields[name].text.value = text
        assert shown.fields[name].message.value == said
        assert result(shown) == before
        shown.fields[name].text.value = str(3 + number)
        assert shown.fields[name].message.value == "" and result(shown) != before


def test_inputs_that_do_not_go_together_leave_the_last_good_result(shown):
    for widget, value, said in [
        (shown.limit, 0.05, "no arm encodes within 0.05 s"),
        (shown.fields["tasks_per_day"].text, "1e9", "h a day"),
        (shown.other, "Safe GP-UCB", "compared to itself"),
    ]:
        before, good, widget.value = result(shown), widget.value, value
        assert said in shown.message.value and "last good result" in shown.message.value
        assert result(shown) == before
        widget.value = good


def test_a_trusted_arm_beyond_the_limit_is_told(shown):
    for encoder in ("clip-vit-l14-336", "whisper-small"):
        shown.mix[encoder].text.value = "0"
    shown.limit.value = 0.05
    assert "videomae-base: trusted at the start, but beyond the limit" in shown.notes.value


def test_without_runs_it_says_what_to_call(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert "make reproduce NOTEBOOKS=10_savings" in calculator().value
    monkeypatch.undo()
    assert "Safe GP-UCB takes" in calculator().headline.value


def test_a_field_takes_a_value_beyond_its_slider_and_a_slider_whole_numbers():
    field = NumberField("devices", 1e6, *WHOLE, (1, 100), log=True, whole=True)
    assert field.text.value == "1000000"
    field.text.value = "5000"
    assert field.value == 5000 and field.slider.value == 100 and not field.error
    field.slider.value = 12.4
    assert field.value == 12 and field.text.value == "12"


@pytest.mark.parametrize(
    ("value", "ends", "log", "rounded"),
    [(365, (1, 3650), True, 363.08), (1e6, (1, 1e5), True, 99999.0), (0.333, (0, 1), False, 0.33)],
)
def test_a_browser_that_rounds_the_slider_does_not_change_the_value(value, ends, log, rounded):
    """As it does when the page opens: a slider knows whole steps alone."""
    field = NumberField("days", value, *ABOVE_0, ends, log=log)
    field.slider.value = rounded
    assert field.value == value and float(field.text.value) == value
    field.slider.value = ends[1] / 5
    assert field.value == ends[1] / 5
