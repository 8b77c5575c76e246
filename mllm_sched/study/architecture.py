"""The picture of the loop that the README shows."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

# name, what it holds, x, y; in units of the drawing
BOXES = {
    "task": ("Task", "modality, encoder,\nsize, deadline", 0.0, 1.0),
    "scheduler": ("Scheduler", "safe GP-UCB, UCB,\nThompson, $\\epsilon$-greedy", 2.2, 1.0),
    "device": ("Device", "simulated Orin, trace,\nthis machine", 4.4, 1.0),
    "measurement": ("Measurement", "latency, energy,\nevidence class", 6.6, 1.0),
    "table": ("Table", "one row per task,\nevery seed", 6.6, -0.45),
    "metrics": ("Metrics", "energy over oracle,\nviolations, regret", 4.4, -0.45),
    "figure": ("Figure", "SVG with\nprovenance", 2.2, -0.45),
    "claim": ("Claim", "paper beside ours,\nwith a verdict", 0.0, -0.45),
}
WIDTH, HEIGHT = 1.6, 0.8
SERVICE, REPORT = "#dbe9f6", "#e8e8e8"


def architecture(ax: Axes | None = None) -> Axes:
    """Draw one round trip: from a task to a measurement and back, and on to a claim."""
    ax = ax or plt.subplots(figsize=(9.5, 3.6), layout="constrained")[1]
    for position, (name, text, x, y) in enumerate(BOXES.values()):
        _box(ax, x, y, name, text, SERVICE if position < 4 else REPORT)
    for start, end, label in [
        ("task", "scheduler", "ask()"),
        ("scheduler", "device", "arm"),
        ("device", "measurement", "run()"),
        ("measurement", "table", ""),
        ("table", "metrics", ""),
        ("metrics", "figure", ""),
        ("figure", "claim", ""),
    ]:
        _arrow(ax, start, end, label)
    _feedback(ax)
    ax.set(xlim=(-1.0, 7.6), ylim=(-1.0, 2.15))
    ax.set_axis_off()
    return ax


def _box(ax: Axes, x: float, y: float, name: str, text: str, colour: str) -> None:
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    ax.add_patch(
        FancyBboxPatch(
            corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="0.3"
        )
    )
    ax.text(x, y + 0.22, name, ha="center", va="center", weight="bold", size=11)
    ax.text(x, y - 0.13, text, ha="center", va="center", size=8.5, linespacing=1.25)


def _arrow(ax: Axes, start: str, end: str, label: str) -> None:
    x0, y0, x1, y1 = *BOXES[start][2:], *BOXES[end][2:]
    dx = (x1 > x0) - (x1 < x0)
    dy = (y1 > y0) - (y1 < y0)
    tail = (x0 + dx * (WIDTH / 2 + 0.03), y0 + dy * (HEIGHT / 2 + 0.03))
    head = (x1 - dx * (WIDTH / 2 + 0.03), y1 - dy * (HEIGHT / 2 + 0.03))
    ax.annotate("", head, tail, arrowprops={"arrowstyle": "-|>", "color": "0.2", "lw": 1.4})
    ax.text((x0 + x1) / 2, y0 + 0.12, label, ha="center", size=9, family="monospace")


def _feedback(ax: Axes) -> None:
    start, end = BOXES["measurement"][2], BOXES["scheduler"][2]
    top = BOXES["task"][3] + HEIGHT / 2 + 0.03
    ax.annotate(
        "",
        (end, top),
        (start, top),
        arrowprops={
            "arrowstyle": "-|>",
            "color": "#c44e52",
            "lw": 1.6,
            "connectionstyle": "bar,fraction=0.1",
        },
    )
    ax.text(
        (start + end) / 2,
        top + 0.5,
        "tell(energy, latency)",
        ha="center",
        size=9,
        family="monospace",
        color="#c44e52",
    )
