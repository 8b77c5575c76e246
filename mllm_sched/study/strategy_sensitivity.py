"""What hybrid's advantage hangs on: one choice changed at a time, and where the claim holds.

Hybrid's time is taken over that of the quicker of All Edge and All Remote: ``ratio``. The paper's
is 2500 / 7500. A saving of four fifths of the paper's is a ratio of 0.47.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from mllm_sched.study.strategy_costs import (
    INPUTS,
    ITEMS,
    Setting,
    items_as,
    modelled,
    ratio,
    sent_s,
)

HOLDS = 0.47
LEAST_MBIT_S, MOST_MBIT_S = 1e-3, 1e6  # where rates are looked for
MOST_TOKENS = 1000
LARGE: dict[str, Any] = {"parameters": 13.0e9, "width": 5120}  # Vicuna-13B, that of LLaVA-1.5-13B


def variants(base: Setting) -> Iterator[tuple[str, Setting]]:
    """What is changed, and the setting with it."""

    def other(**changes: Any) -> Setting:
        return replace(base, **changes)

    yield "as in the claim", base
    for mbit_s in (1.0, 5.0, 20.0, 100.0):
        yield f"link of {mbit_s:g} Mbit/s", other(mbit_s=mbit_s)
    for tokens in (16, 256):
        language = replace(base.language, answer_tokens=tokens)
        yield f"answers of {tokens} tokens", other(language=language)
    yield "cut behind the projector", other(cut="projector")
    kept = [item.encoder for item in base.items]
    for form in INPUTS[1:]:
        items = tuple(item for item in items_as(form) if item.encoder in kept)
        yield f"input {form}", other(items=items)
    for item, name in zip(ITEMS, ("image", "sound", "video"), strict=True):
        mine = tuple(own for own in base.items if own.encoder == item.encoder)
        yield f"the {name} alone", other(items=mine or (item,))
    yield "server encodes in float32", other(server_encodes="float32")
    yield "three edges", other(edges=3)
    yield "encoders on the DLA", other(component="dla")
    yield "an LLM of 13 billion weights", other(language=replace(base.language, **LARGE))
    slow = {name: getattr(base.server, name) / 2 for name in ("compute_share", "memory_share")}
    yield "server at half the assumed shares", other(server=replace(base.server, **slow))


def sensitivity(base: Setting = Setting()) -> pd.DataFrame:
    """The strategies with one choice changed at a time; hybrid in both types on the wire.

    Returns
    -------
    Columns ``choice``; ``all_edge_ms``, ``all_remote_ms``, ``float16_ms``, ``int8_ms`` in total;
    ``float16_ratio``, ``int8_ratio``, hybrid's time over that of the quicker other strategy.
    """
    rows = []
    for choice, setting in variants(base):
        float16, int8 = (replace(setting, wire=wire) for wire in ("float16", "int8"))
        priced = [modelled(name, setting) for name in ("all-edge", "all-remote")]
        priced += [modelled("hybrid", narrow) for narrow in (float16, int8)]
        totals = [1000 * cost.total_s for cost in priced]
        rows.append((choice, *totals, ratio(float16), ratio(int8)))
    names = ["all_edge_ms", "all_remote_ms", "float16_ms", "int8_ms"]
    return pd.DataFrame(rows, columns=["choice", *names, "float16_ratio", "int8_ratio"])


def holding_rates(setting: Setting, at_most: float = HOLDS) -> tuple[float, float]:
    """The link rates in Mbit/s between which hybrid's ratio is at most so much.

    The ratio falls with the rate while All Edge is the quicker other, and is monotone beyond; so
    it is least where the two others take the same time, or at an end.

    Returns
    -------
    The least and the greatest rate, solved for; NaN twice if there is none.
    """

    def above(log_rate: float) -> float:
        return ratio(replace(setting, mbit_s=10**log_rate)) - at_most

    ends = np.log10([LEAST_MBIT_S, MOST_MBIT_S])
    best = min((_tie(setting, *ends), *ends), key=above)
    if above(best) > 0:
        return float("nan"), float("nan")
    low, high = (end if above(end) <= 0 else brentq(above, *sorted((end, best))) for end in ends)
    return float(10**low), float(10**high)


def _tie(setting: Setting, low: float, high: float) -> float:
    """The log rate at which All Remote takes as long as All Edge; an end if it never does."""

    def behind(log_rate: float) -> float:
        there = replace(setting, mbit_s=10**log_rate)
        return modelled("all-remote", there).total_s - modelled("all-edge", there).total_s

    if behind(low) <= 0 or behind(high) >= 0:
        return low if behind(low) <= 0 else high
    return float(brentq(behind, low, high))


def holding_tokens(setting: Setting, at_most: float = HOLDS) -> tuple[float, float]:
    """The shortest and the longest answer with a ratio of at most so much, of up to 1000 tokens.

    NaN twice if there is none.
    """
    language = setting.language
    lengths = {
        tokens: replace(setting, language=replace(language, answer_tokens=tokens))
        for tokens in range(1, MOST_TOKENS + 1)
    }
    held = [tokens for tokens, there in lengths.items() if ratio(there) <= at_most]
    return (held[0], held[-1]) if held else (float("nan"), float("nan"))


def where_it_holds(base: Setting = Setting()) -> pd.DataFrame:
    """By the type on the wire: between which link rates, and which lengths of the answer.

    Returns
    -------
    Columns ``wire``, ``from_mbit_s``, ``to_mbit_s``, ``from_tokens``, ``to_tokens``; NaN where the
    claim holds nowhere.
    """
    rows = []
    for wire in ("float16", "int8"):
        setting = replace(base, wire=wire)
        rows.append((wire, *holding_rates(setting), *holding_tokens(setting)))
    columns = ["wire", "from_mbit_s", "to_mbit_s", "from_tokens", "to_tokens"]
    return pd.DataFrame(rows, columns=columns)


def claim_numbers(base: Setting = Setting()) -> pd.DataFrame:
    """What the claim is judged by, as rows of a ``claims.csv``: ratios, and rates in Mbit/s.

    Parameters
    ----------
    base
        The case of the claim; both types on the wire are priced.
    """
    changed = sensitivity(base).set_index("choice")
    case, resized = changed.loc["as in the claim"], f"input {INPUTS[1]}"
    low, high = holding_rates(replace(base, wire="int8"))
    rows = {
        "float16 against raw": case["float16_ratio"],
        "int8 against raw": case["int8_ratio"],
        "float16 against resized": changed.loc[resized, "float16_ratio"],
        "int8 against resized": changed.loc[resized, "int8_ratio"],
        "int8 against compressed": changed.loc["input compressed", "int8_ratio"],
        "int8, 16 tokens": changed.loc["answers of 16 tokens", "int8_ratio"],
        "int8, 256 tokens": changed.loc["answers of 256 tokens", "int8_ratio"],
        "float16, the image alone": changed.loc["the image alone", "float16_ratio"],
        "int8 behind the projector": changed.loc["cut behind the projector", "int8_ratio"],
        "int8 holds from, Mbit/s": low,
        "int8 holds to, Mbit/s": high,
        **_stages(base),
    }
    found = pd.DataFrame({"key": list(rows), "value": list(rows.values())})
    return found.assign(low=float("nan"), high=float("nan"), n=1, evidence="simulated")


def _stages(base: Setting) -> dict[str, float]:
    """Stage by stage: what the strategies take against each other."""
    edge, remote = modelled("all-edge", base), modelled("all-remote", base)
    halves = {
        "transmission, float16": replace(base, wire="float16"),
        "transmission, int8": replace(base, wire="int8"),
    }
    alone = dict(variants(base))["the image alone"]
    image = modelled("hybrid", replace(alone, wire="float16")).transmission_s
    one, three = (modelled("hybrid", replace(base, edges=edges)) for edges in (1, 3))
    return {
        **{
            key: modelled("hybrid", half).transmission_s / remote.transmission_s
            for key, half in halves.items()
        },
        "transmission, the image alone": image / modelled("all-remote", alone).transmission_s,
        "encoding, three edges": three.encode_s / edge.encode_s,
        "encoding, one edge": one.encode_s / edge.encode_s,
        "LLM on the server": remote.llm_s / edge.llm_s,
        "All Edge over All Remote": edge.total_s / remote.total_s,
    }


def region(setting: Setting, rates_mbit_s: Sequence[float], gains: Sequence[float]) -> pd.DataFrame:
    """Hybrid's ratio over link rates, and over how many times smaller features are than inputs.

    Returns
    -------
    Columns ``mbit_s``, ``gain`` and ``ratio``.
    """
    hybrid = modelled("hybrid", setting)
    sent = sum(item.input_bytes for item in setting.items)
    rows = []
    for mbit_s in rates_mbit_s:
        there = replace(setting, mbit_s=mbit_s)
        others = min(modelled(name, there).total_s for name in ("all-edge", "all-remote"))
        for gain in gains:
            sending_s = sent_s(there, sent / gain + hybrid.down_bytes)
            rows.append((mbit_s, gain, (sending_s + hybrid.encode_s + hybrid.llm_s) / others))
    return pd.DataFrame(rows, columns=["mbit_s", "gain", "ratio"])


def region_of(
    base: Setting, form: str, rates_mbit_s: Sequence[float], gains: Sequence[float]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The ``region`` for a form of the input, and where the features lie in it, by wire type."""
    setting = replace(base, items=items_as(form))
    sent = sum(item.input_bytes for item in setting.items)
    marks = {
        wire: sent / modelled("hybrid", replace(setting, wire=wire)).up_bytes
        for wire in ("float16", "int8")
    }
    return region(setting, rates_mbit_s, gains), marks
