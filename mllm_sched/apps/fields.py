"""Number fields that refuse an absurd input: a message appears, the last good value stays."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

REFUSED = "#b2182b"  # colour of what refuses an input
WIDE = {"description_width": "12em"}
Wanted = tuple[str, Callable[[float], bool]]  # in words, and as a test of a finite number
ABOVE_0: Wanted = ("a number above 0", lambda value: value > 0)
FROM_0: Wanted = ("a number, 0 or more", lambda value: value >= 0)


class NumberField(widgets.VBox):
    """A text and a slider that follow each other, and below them why a text is refused.

    ``wanted`` and ``allowed`` say in words and as a test of a finite number what may be typed.
    ``ends`` are those of the slider; a typed value may lie beyond them. ``css`` is the class of the
    whole; its text, slider and message have ``CSS-text`` and so on.

    ``value`` is the last good value, ``error`` why the present text is refused (else empty), and
    ``on_change`` is called after every change, good or refused.
    """

    def __init__(
        self,
        name: str,
        value: float,
        wanted: str,
        allowed: Callable[[float], bool],
        ends: tuple[float, float],
        *,
        log: bool = False,
        whole: bool = False,
        css: str = "field",
    ) -> None:
        self.name, self.value, self.error = name, float(value), ""
        self.on_change: Callable[[], None] = lambda: None
        self._wanted, self._allowed, self._log, self._whole = wanted, allowed, log, whole
        self._ends = low, high = ends
        self._following = False  # one of text and slider is being set to follow the other
        self.text = widgets.Text(
            f"{value:.12g}",
            description=name,
            continuous_update=False,  # 0.25 is not asked for while 0.2 is typed
            style=WIDE,
            layout=widgets.Layout(width="20em"),
        )
        place = {"value": self._place(), "readout": False}
        if log:
            powers = {"min": math.log10(low), "max": math.log10(high), "step": 0.01}
            self.slider: Any = widgets.FloatLogSlider(**place, **powers)
        else:
            step = 1.0 if whole else (high - low) / 100
            self.slider = widgets.FloatSlider(**place, min=low, max=high, step=step)
        self.message = widgets.HTML(style={"text_color": REFUSED})
        for part in ("text", "slider", "message"):
            getattr(self, part).add_class(f"{css}-{part}")
        super().__init__([widgets.HBox([self.text, self.slider]), self.message])
        self.add_class(css)
        self.text.observe(self._typed, "value")
        self.slider.observe(self._slid, "value")

    def _typed(self, change: dict[str, Any]) -> None:
        text = change["new"].strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and self._allowed(value):
            self.value, self.error = value, ""
            if not self._following:
                self._follow(self.slider, self._place())
        else:
            self.error = f"{self.name}: {text or 'empty'} — give {self._wanted}"
        self.message.value = html.escape(self.error)
        self.on_change()

    def _slid(self, change: dict[str, Any]) -> None:
        if not self._following and not self._rounded(change["new"]):
            value = round(change["new"]) if self._whole else change["new"]
            self._follow(self.text, f"{float(f'{value:.3g}'):.12g}")

    def _place(self) -> float:
        return min(max(self.value, self._ends[0]), self._ends[1])

    def _rounded(self, slid: float) -> bool:
        # Whether it is what a browser makes of our value: it rounds to whole steps.
        places = [math.log10(at) if self._log else at for at in (slid, self._place())]
        return bool(abs(places[0] - places[1]) < 0.6 * self.slider.step)

    def _follow(self, part: Any, value: Any) -> None:
        self._following = True
        try:
            part.value = value
        finally:
            self._following = False


def classed(css: str, widget: Any) -> Any:
    """The widget, with a class for browser tests."""
    widget.add_class(css)
    return widget
