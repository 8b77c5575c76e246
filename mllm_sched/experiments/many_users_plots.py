"""Figures of notebook 09. A plot takes a table, returns its axes, and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, PercentFormatter

from mllm_sched.experiments.plots import OURS, scheduler_colour, titled

PERCENT = ("late", "shed", "beyond", "answered")
LOAD_PANELS = {
    "answered_hz": "answered per second",
    "answered": "answered in time",
    "late": "encoded in vain: late",
    "beyond": "encoded beyond the limit",
    "p95_s": "95 % of answers within, s",
    "energy_j": "energy per answer, J",
}
RULE_PANELS = {name: LOAD_PANELS[name] for name in ("answered", "beyond", "energy_j")}
CASE_COLOURS = ("#6a51a3", "#e6ab02", "#35978f", "#8c510a")  # none of a scheduler


def saturation(table: pd.DataFrame, *, evidence: str) -> Sequence[Axes]:
    """Answers per second over boards, a line for so many users, a panel for so many LLM servers.

    Dotted: what the scarcest of users, encoders and LLM servers allows.

    Parameters
    ----------
    table
        Of ``grid``, summarised.
    """
    panels = sorted(table["llm_servers"].unique())
    axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 4.2), sharey=True)[1]
    users = sorted(table["users"].unique())
    colours = mpl.colormaps["viridis"]
    for ax, servers in zip(axes, panels, strict=True):
        for place, people in enumerate(users):
            here = table[(table["llm_servers"] == servers) & (table["users"] == people)]
            colour = colours(0.9 * place / max(len(users) - 1, 1))
            _line(ax, here, "edges", "answered_hz", colour, f"{people:,}", "-")
            ax.plot(here["edges"], here["least_hz"], ":", color="0.2", lw=1.2, zorder=4)
        ax.set(xscale="log", yscale="log", xlabel="edge devices")
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        titled(ax, f"{servers} LLM server{'s' if servers > 1 else ''}", evidence)
    axes[0].set_ylabel("answered per second")
    axes[-1].legend(title="users", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return axes


def over_load(
    table: pd.DataFrame,
    *,
    evidence: str,
    panels: Mapping[str, str] = LOAD_PANELS,
    colours: Mapping[str, str] | None = None,
) -> Sequence[Axes]:
    """Quantities over load, a line a case.

    Parameters
    ----------
    table
        Of ``over_load``, summarised.
    panels
        Which quantities, and what their axes are called.
    colours
        Of the cases; by default those of the schedulers of that name, or else in turn.
    """
    rows = -(-len(panels) // 3)
    grid = plt.subplots(rows, 3, figsize=(13.5, 3.6 * rows), sharex=True)[1]
    axes, cases = list(grid.flat), list(dict.fromkeys(table["case"]))
    for ax, (name, label) in zip(axes, panels.items(), strict=True):
        for place, case in enumerate(cases):
            colour = (colours or {}).get(case, CASE_COLOURS[place % len(CASE_COLOURS)])
            dash = "--" if place % 2 and not colours else "-"
            _line(ax, table[table["case"] == case], "load", name, colour, case, dash)
        ax.axvline(1.0, color="0.3", ls=(0, (1, 2)), lw=1.2)
        _scale(ax, name)
        titled(ax, label[0].upper() + label[1:], evidence)
    for ax in axes[-3:]:
        ax.set_xlabel("asked over what can be done")
    axes[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return axes


def rules_over_load(table: pd.DataFrame, *, evidence: str) -> Sequence[Axes]:
    """The same for schedulers, in their colours."""
    colours = {name: scheduler_colour(name) for name in table["case"].unique()}
    return over_load(table, evidence=evidence, panels=RULE_PANELS, colours=colours)


def fairness(table: pd.DataFrame, *, evidence: str) -> Sequence[Axes]:
    """Jain's index, and how many tasks of light and heavy users are answered; a bar a queue.

    Parameters
    ----------
    table
        Summary of ``fairness_runs``.
    """
    axes = plt.subplots(1, 3, figsize=(13.5, 3.6))[1]
    heads = {"jain": "Jain's index", "light_answered": "Light users: answered in time"}
    heads["heavy_answered"] = "Heavy users: answered in time"
    people, queues = (list(dict.fromkeys(table[name])) for name in ("users", "queue"))
    for ax, (name, head) in zip(axes, heads.items(), strict=True):
        for shift, (queue, colour) in enumerate(zip(queues, CASE_COLOURS, strict=False)):
            bars = table[table["queue"] == queue].set_index("users").loc[people]
            error = [bars[name] - bars[f"{name}_low"], bars[f"{name}_high"] - bars[name]]
            places = [place + 0.27 * (shift - 1) for place in range(len(people))]
            ax.bar(places, bars[name], 0.25, yerr=error, capsize=3, color=colour, label=queue)
        ax.set_xticks(range(len(people)), people)
        ax.set(xlim=(-0.5, len(people) - 0.5), ylim=(0.0, 1.05))
        if name != "jain":
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        titled(ax, head, evidence)
    axes[-1].legend(title="queue", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return axes


def sharing(table: pd.DataFrame, *, evidence: str) -> Sequence[Axes]:
    """A board that joins, by how far boards lie apart; a line a start.

    Parameters
    ----------
    table
        Of ``joins``.
    """
    axes = plt.subplots(1, 2, figsize=(11.5, 4.0))[1]
    heads = {
        "energy_over_oracle": ("energy over the best arm's", "Energy of the first tasks"),
        "beyond": ("tasks beyond the limit", "Violations of the first tasks"),
    }
    for ax, (name, (label, head)) in zip(axes, heads.items(), strict=True):
        for start, colour in zip(dict.fromkeys(table["start"]), CASE_COLOURS, strict=False):
            _line(ax, table[table["start"] == start], "scatter", name, colour, start, "-")
        ax.set(xlabel="scatter between boards", ylabel=label)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        titled(ax, head, evidence)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    return axes


def _line(
    ax: Axes, table: pd.DataFrame, x: str, y: str, colour: object, label: str, dash: str
) -> None:
    width = 2.6 if label == OURS else 1.6
    ax.plot(table[x], table[y], dash, marker="o", ms=4, lw=width, color=colour, label=label)
    ax.fill_between(table[x], table[f"{y}_low"], table[f"{y}_high"], color=colour, alpha=0.18, lw=0)


def _scale(ax: Axes, name: str) -> None:
    if name in PERCENT:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        top = max(ax.get_ylim()[1], 0.1)
        ax.set_ylim(-0.02 * top, top)
    elif name == "energy_j":
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(bottom=0.0)
