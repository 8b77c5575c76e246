"""Figures as files: the same figure is the same file, on any processor."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 120
MOVED = 0.05  # points, which no eye sees
STEADY: dict[Any, Any] = {"svg.hashsalt": "mllm-sched", "svg.fonttype": "none"}

TAG = re.compile(r"<[^>]*>")
LONG_NUMBER = re.compile(r"\d+\.\d{4,}")
NUMBER = re.compile(r"(-?\d+\.?\d*)")
NAME = re.compile(r'\bid="(\w*[0-9a-f]{10})"')  # as Matplotlib makes them, from a digest


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG, coordinates in thousandths of a point.

    Beyond them there is rounding, which differs between processors. Matplotlib names shapes after
    a digest of their coordinates; here they are numbered.
    """
    import matplotlib as mpl  # whoever has a figure has it loaded

    file = BytesIO()
    nobody = {"Date": None, "Creator": None}
    with mpl.rc_context(STEADY):
        figure.savefig(file, format="svg", metadata=nobody, bbox_inches="tight")
    text = TAG.sub(lambda tag: LONG_NUMBER.sub(_rounded, tag[0]), file.getvalue().decode())
    places = {name: f"shape{place}" for place, name in enumerate(dict.fromkeys(NAME.findall(text)))}
    if places:
        known = re.compile(rf'(?<=["#])({"|".join(places)})(?=[")])')
        text = known.sub(lambda found: places[found[1]], text)
    return text.encode()


def same_but_for_rounding(before: str, now: str) -> bool:
    """Whether two figures as SVG differ at most by 0.05 points in the numbers of their tags."""
    texts = [TAG.split(text) for text in (before, now)]
    tags = [NUMBER.split("".join(TAG.findall(text))) for text in (before, now)]
    if texts[0] != texts[1] or len(tags[0]) != len(tags[1]):
        return False
    pairs = list(zip(*tags, strict=True))  # words and numbers by turns
    return all(one == other for one, other in pairs[::2]) and all(
        one == other or abs(float(one) - float(other)) <= MOVED for one, other in pairs[1::2]
    )


def as_png(figure: Figure) -> bytes:
    """A figure as PNG, for where SVG is not shown; no version of a program is in it."""
    file = BytesIO()
    figure.savefig(
        file, format="png", dpi=PNG_DPI, metadata={"Software": None}, bbox_inches="tight"
    )
    return file.getvalue()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3f}".rstrip("0").rstrip(".")
