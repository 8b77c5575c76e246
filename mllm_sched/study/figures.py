"""Figures as files: the same figure is the same file, on any processor."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 120
MOVED = 0.05  # points, which no eye sees
SHADE = 3  # levels of 255, of a picture within a figure
STEADY: dict[Any, Any] = {"svg.hashsalt": "mllm-sched", "svg.fonttype": "none"}

TAG = re.compile(r"<[^>]*>")
LONG_NUMBER = re.compile(r"\d+\.\d{4,}")
NUMBER = re.compile(r"(-?\d+\.?\d*)")
PICTURE = re.compile(r'(?<="data:image/png;base64,)[^"]*')
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
    """Whether two figures as SVG differ by no more than rounding.

    That is 0.05 points in the numbers of their tags, and 3 of 255 levels in their pictures.
    """
    pictures = [PICTURE.findall(text) for text in (before, now)]
    if len(pictures[0]) != len(pictures[1]) or not all(map(_alike, *pictures)):
        return False
    before, now = (PICTURE.sub("", text) for text in (before, now))
    texts = [TAG.split(text) for text in (before, now)]
    tags = [NUMBER.split("".join(TAG.findall(text))) for text in (before, now)]
    if texts[0] != texts[1] or len(tags[0]) != len(tags[1]):
        return False
    pairs = list(zip(*tags, strict=True))  # words and numbers by turns
    return all(one == other for one, other in pairs[::2]) and all(
        one == other or abs(float(one) - float(other)) <= MOVED for one, other in pairs[1::2]
    )


def _alike(before: str, now: str) -> bool:
    """Whether two pictures, as PNG in base 64, look the same."""
    if before == now:
        return True
    from matplotlib.image import imread

    one, other = (imread(BytesIO(base64.b64decode(text)), format="png") for text in (before, now))
    return one.shape == other.shape and bool(abs(one - other).max() <= (SHADE + 0.5) / 255)


def as_png(figure: Figure) -> bytes:
    """A figure as PNG, for where SVG is not shown; no version of a program is in it."""
    file = BytesIO()
    figure.savefig(
        file, format="png", dpi=PNG_DPI, metadata={"Software": None}, bbox_inches="tight"
    )
    return file.getvalue()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3f}".rstrip("0").rstrip(".")
