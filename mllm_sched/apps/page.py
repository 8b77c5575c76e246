"""Several applications on one page, each behind a tab."""

from __future__ import annotations

from collections.abc import Mapping

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
