"""Number fields that refuse an absurd input politely: a message appears, the last good value stays.

``parse`` holds the rule. A ``NumberField`` is a text and a slider that follow each other, with the
message below. ``page`` puts several applications behind tabs.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets


class Page(widgets.Tab):
    """Tabs with titles.

    Parameters
    ----------
    parts
        Widgets by title.
    """

    def __init__(self, parts: Mapping[str, widgets.Widget]) -> None:
        super().__init__(list(parts.values()), titles=list(parts))
        self.add_class("page")

    def __repr__(self) -> str:
        """What a page shows that runs no widgets."""
        names = " and ".join(title.lower() for title in self.titles)
        return f"The {names}: open this notebook in JupyterLab, or call make app"


REFUSED = "#b2182b"  # colour of what refuses an input


@dataclass(frozen=True)
class Allowed:
    """What a field takes: numbers above ``above``, from ``least`` to ``most``; whole ones only."""

    above: float | None = None
    least: float | None = None
    most: float | None = None
    whole: bool = False

    def said(self) -> str:
        """In words.

        Examples
        --------
        >>> Allowed(above=0).said()
        'a number above 0'
        >>> Allowed(least=1, most=1e6, whole=True).said()
        'a whole number from 1 to 1000000'
        """
        kind = "a whole number" if self.whole else "a number"
        if self.above is not None:
            kind += f" above {in_digits(self.above)}"
        if self.least is not None and self.most is not None:
            return f"{kind} from {in_digits(self.least)} to {in_digits(self.most)}"
        if self.least is not None:
            return f"{kind}, {in_digits(self.least)} or more"
        return kind if self.most is None else f"{kind}, at most {in_digits(self.most)}"

    def holds(self, value: float) -> bool:
        """Whether a value is allowed; infinities and NaN never are."""
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (not self.whole or value == int(value))
        )


def parse(name: str, text: str, allowed: Allowed) -> float:
    """The number in a text.

    Raises
    ------
    ValueError
        If it is none, or not an allowed one; the message names the field, what stands there and
        what to give.

    Examples
    --------
    >>> parse("tasks per day", " 1e3 ", Allowed(above=0))
    1000.0
    >>> parse("tasks per day", "0", Allowed(above=0))
    Traceback (most recent call last):
    ValueError: tasks per day: 0 — give a number above 0
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not allowed.holds(value):
        shown = text.strip() or "empty"
        raise ValueError(f"{name}: {shown} — give {allowed.said()}")
    return value


class NumberField:
    """A text, a slider, and a message when the text is refused.

    Parameters
    ----------
    name
        What stands before it, and in its messages.
    value
        At first.
    allowed
        What may be typed.
    slider
        Least and greatest value of the slider. A typed value may lie beyond them.
    log
        Whether the slider is logarithmic; both its ends are then above 0.
    css
        Class of the whole; its text, slider and message have ``CSS-text`` and so on.

    Attributes
    ----------
    widget
        To be shown.
    value
        The last good one.
    error
        Why the present text is refused; empty if it is not.
    """

    def __init__(
        self,
        name: str,
        value: float,
        allowed: Allowed,
        slider: tuple[float, float],
        *,
        log: bool = False,
        css: str = "field",
    ) -> None:
        self.name, self.allowed, self.value, self.error = name, allowed, float(value), ""
        self._ends = slider
        self._followers: list[Callable[[], None]] = []
        self._following = False  # one of text and slider is being set to follow the other
        wide = {"description_width": "12em"}
        self.text = widgets.Text(
            in_digits(value),
            description=name,
            continuous_update=False,  # 0.25 is not asked for while 0.2 is typed
            style=wide,
            layout=widgets.Layout(width="20em"),
        )
        self.slider = _slider(value, slider, log, allowed.whole)
        self.message = widgets.HTML(style={"text_color": REFUSED})
        for part, end in ((self.text, "text"), (self.slider, "slider"), (self.message, "message")):
            part.add_class(f"{css}-{end}")
        self.message.add_class("field-message")
        self.widget = widgets.VBox([widgets.HBox([self.text, self.slider]), self.message])
        self.widget.add_class(css)
        self.text.observe(self._typed, "value")
        self.slider.observe(self._slid, "value")

    def on_change(self, follower: Callable[[], None]) -> None:
        """Call a function after every change, good or refused."""
        self._followers.append(follower)

    def _typed(self, change: dict[str, Any]) -> None:
        try:
            self.value = parse(self.name, change["new"], self.allowed)
            self.error = ""
        except ValueError as error:
            self.error = str(error)
        self.message.value = html.escape(self.error)
        if not self.error and not self._following:
            self._follow(self.slider, self._place())
        for follower in self._followers:
            follower()

    def _slid(self, change: dict[str, Any]) -> None:
        if not self._following and not self._rounded(change["new"]):
            value = round(change["new"]) if self.allowed.whole else change["new"]
            self._follow(self.text, _three_digits(value))

    def _place(self) -> float:
        """Where the slider stands for the value, which may lie beyond its ends."""
        return min(max(self.value, self._ends[0]), self._ends[1])

    def _rounded(self, slid: float) -> bool:
        """Whether a slider's value is what the browser makes of ours: it rounds to whole steps."""
        log, step = hasattr(self.slider, "base"), self.slider.step
        places = [math.log10(at) if log else at for at in (slid, self._place())]
        return abs(places[0] - places[1]) < 0.6 * step

    def _follow(self, part: Any, value: Any) -> None:
        self._following = True
        try:
            part.value = value
        finally:
            self._following = False


def in_digits(value: float) -> str:
    """A number as someone would type it, without an exponent as far as that is readable.

    Examples
    --------
    >>> in_digits(1e6), in_digits(0.25)
    ('1000000', '0.25')
    """
    return f"{value:.12g}"


def _three_digits(value: float) -> str:
    """A slider's value as someone would type it.

    >>> _three_digits(123456.7), _three_digits(0.25)
    ('123000', '0.25')
    """
    return in_digits(float(f"{value:.3g}"))


def _slider(value: float, ends: tuple[float, float], log: bool, whole: bool) -> Any:
    low, high = ends
    place = {"value": min(max(value, low), high), "readout": False}
    if log:
        powers = {"min": math.log10(low), "max": math.log10(high), "step": 0.01}
        return widgets.FloatLogSlider(**place, **powers)
    step = 1.0 if whole else (high - low) / 100
    return widgets.FloatSlider(**place, min=low, max=high, step=step)
