"""The Grafana dashboard: the panels of ``panels.py`` in the form that Grafana imports.

``python -m mllm_sched.edge.dashboard > mllm_sched/edge/grafana.json`` writes the file anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mllm_sched.edge.families import DECISIONS
from mllm_sched.edge.panels import PANELS, Panel

WIDTH, HEIGHT, ACROSS = 8, 8, 3  # of a panel, and how many stand side by side
SCHEMA = 38  # of Grafana 10; later ones migrate it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it: data source and agents are chosen on the page."""
    return {
        "uid": "mllm-sched",
        "title": "mllm-sched",
        "description": "Edge agents that choose arms within a latency limit, and their front.",
        "tags": ["mllm-sched"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,  # the cross-hair is shared by all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "templating": {"list": _variables()},
        "panels": [{"id": number, **part} for number, part in enumerate(_parts(), start=1)],
    }


def as_text() -> str:
    """What ``grafana.json`` holds."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource"}
    agents = {
        **{"name": "instance", "label": "Agent", "type": "query", "datasource": SOURCE},
        **{"query": f"label_values({DECISIONS}, instance)", "refresh": 2, "sort": 1},
        **{"multi": True, "includeAll": True, "allValue": ".*"},
        "current": {"text": "All", "value": "$__all"},
    }
    return [{**source, "query": "prometheus"}, agents]


def _parts() -> Iterator[dict[str, Any]]:
    """Rows and their panels, from the top of the page to its end."""
    y = 0
    for title, panels in PANELS.items():
        place = {"x": 0, "y": y, "w": WIDTH * ACROSS, "h": 1}
        yield {"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        y += 1
        for position, panel in enumerate(panels):
            down, across = divmod(position, ACROSS)
            place = {"x": WIDTH * across, "y": y + HEIGHT * down, "w": WIDTH, "h": HEIGHT}
            yield {**_picture(panel), "gridPos": place}
        y += HEIGHT * -(-len(panels) // ACROSS)


def _picture(panel: Panel) -> dict[str, Any]:
    lines = {
        "fillOpacity": 40 if panel.stacked else 5,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "showPoints": "never",
    }
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": lines},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    print(as_text(), end="")
