import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from mllm_sched.devices import open_device
from mllm_sched.experiments import plots
from mllm_sched.experiments.lineup import full_power_arms, paper_lineup
from mllm_sched.experiments.metrics import curves, per_run, summarise
from mllm_sched.experiments.provenance import as_png, as_svg
from mllm_sched.experiments.runner import sweep
from mllm_sched.tasks import Task

mpl.use("Agg")
TASK = Task("image", "clip-vit-l14-336")
LIMITS = {"latency_s": 0.2}


@pytest.fixture(scope="module")
def table():
    trusted = full_power_arms(open_device("agx-orin-sim").space)
    rules = paper_lineup()
    return sweep(rules, "agx-orin-sim", TASK, 300, 2, limits=LIMITS, trusted=trusted, n_jobs=1)


@pytest.fixture(autouse=True)
def style():
    plots.use_style()
    yield
    plt.close("all")


def drawn(table, name):
    if name == "frontier":
        summary = summarise(per_run(table, LIMITS))
        return plots.frontier(summary, evidence="simulated", title="Both")
    return energy(table)


def energy(table, ax=None):
    looks = {"title": "Energy per task", "ylabel": "energy, J", "log": True}
    means = curves(table, table["energy_j"])
    return plots.over_tasks(means, evidence="simulated", ax=ax, **looks)


FIGURES = ["energy", "frontier"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_its_numbers_are_and_names_every_scheduler(table, name):
    ax = drawn(table, name)
    assert ax.get_title().endswith("(simulated)") and ax.get_xlabel() and ax.get_ylabel()
    texts = {text.get_text() for text in ax.figure.findobj(mpl.text.Text)}
    expected = {rule.label for rule in paper_lineup()}
    assert expected <= texts


@pytest.mark.parametrize("name", FIGURES[:-1])  # the last one: see below
def test_the_same_figure_is_the_same_file(table, name):
    first, second = (as_svg(drawn(table, name).figure) for _ in range(2))
    assert first == second and b"<dc:date>" not in first


@pytest.mark.parametrize("write", [as_svg, as_png])
def test_a_file_tells_no_date_and_no_version_and_is_the_same_again(table, write):
    drawings = [write(drawn(table, "frontier").figure) for _ in range(2)]
    assert drawings[0] == drawings[1]
    assert mpl.__version__.encode() not in drawings[0] and b"Matplotlib" not in drawings[0]


def test_rounding_beyond_a_thousandth_of_a_point_leaves_a_figure_as_it_is():
    """Markers and clips, which Matplotlib names after a digest of their coordinates, too."""
    files = []
    for noise in (0.0, 1e-9, 1e-2):
        ax = plt.figure().subplots()
        ax.errorbar([1, 2], [3.17, 4.3 + noise], yerr=0.131 * (1 + noise), fmt="o", label="0.12345")
        ax.legend()
        files.append(as_svg(ax.figure))
    assert files[0] == files[1] != files[2]
    assert b">0.12345</text>" in files[0]  # text is not rounded


def test_names_of_shapes_are_found_where_they_are_used(table):
    text = as_svg(drawn(table, "energy").figure).decode()
    names = set(re.findall(r'id="(shape\d+)"', text))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert names and {a or b for a, b in used} <= names


def test_a_legend_is_in_the_order_of_the_lines_ends(table):
    ax = drawn(table, "energy")
    ends = {line.get_label(): line.get_ydata()[-1] for line in ax.get_lines()}
    shown = [ends[text.get_text()] for text in ax.get_legend().get_texts()]
    assert shown == sorted(shown, reverse=True)


def test_a_variant_has_the_colour_of_its_rule_and_is_dashed(table):
    lines = {line.get_label(): line for line in drawn(table, "energy").get_lines()}
    plain, penalised = lines["UCB"], lines["UCB + penalty"]
    assert plain.get_color() == penalised.get_color() == plots.SCHEDULER_COLOURS["UCB"]
    assert plain.get_linestyle() != penalised.get_linestyle()


def test_names_of_neighbouring_points_do_not_touch(table):
    ax = drawn(table, "frontier")
    ax.figure.canvas.draw()
    labels = {rule.label for rule in paper_lineup()}
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in labels]
    assert len(boxes) == len(labels)
    for i, box in enumerate(boxes):
        assert not any(box.shrunk(0.95, 0.8).overlaps(other) for other in boxes[:i])


def test_a_plot_draws_into_given_axes_and_runs_nothing(table):
    ax = plt.subplots()[1]
    assert energy(table, ax) is ax
