"""A running system, watched from a notebook."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.request import urlopen

import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

Result = TypeVar("Result")


def while_running(
    work: Callable[[], Result], show: Callable[[], None], every_s: float = 2.0
) -> Result:
    """Do some work in a thread, and show how it stands every so many seconds, and at its end.

    Whatever the work raises is raised here.

    Examples
    --------
    >>> shown = []
    >>> while_running(lambda: 7, lambda: shown.append("shown")), shown
    (7, ['shown'])
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while True:
        thread.join(every_s)
        if not thread.is_alive():
            break
        show()
    if errors:
        raise errors[0]
    show()
    return results[0]


def scraped(address: str, wanted: Mapping[str, str]) -> pd.Series:
    """Metrics as Prometheus would scrape them now, summed over their labels.

    Parameters
    ----------
    address
        ``HOST:PORT`` of an agent's metrics.
    wanted
        What to call each sample, by its name.
    """
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    values = {
        called: sum(sample.value for sample in samples if sample.name == name)
        for name, called in wanted.items()
    }
    return pd.Series(values, name="value")
