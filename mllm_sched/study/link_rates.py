"""Over which link rates features reach the LLM sooner, for the encoders that are priced.

Image, audio and video each have the times of their own encoder on either side; see (1) in
``break_even``. The delay of the link is the same for both, and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from mllm_sched.study.accelerators import PRECISIONS
from mllm_sched.study.break_even import break_even
from mllm_sched.study.strategy_costs import (
    CUTS,
    INPUTS,
    ITEMS,
    Encoded,
    Setting,
    edge_s,
    items_as,
    server_s,
)

WIRES = ("float16", "int8")
# What the forms of ``items_as`` are called, by item; sound and video are raw as they are seen.
FORMS = {
    "image": ("raw, 1080p", "raw, 336 x 336", "JPEG, 1080p"),
    "audio": ("raw, 16 kHz", None, "Opus"),
    "video": ("raw, 224 x 224", None, "JPEG, each frame"),
}


def forms() -> Iterator[tuple[str, str, Encoded]]:
    """Every item in every form: modality, name of the form, and the item."""
    for place, (modality, names) in enumerate(FORMS.items()):
        for name, form in zip(names, INPUTS, strict=True):
            if name is not None:
                yield modality, name, items_as(form)[place]


def break_even_rates(setting: Setting = Setting()) -> pd.DataFrame:
    """Where features win, for every item, form of the input, cut and type on the wire.

    Returns
    -------
    Columns ``item``, ``form``, ``cut``, ``wire``, ``server_encodes``; ``edge_ms`` and
    ``server_ms``, which its encoder takes; ``input_bytes``, ``feature_bytes``; ``wins``: in words,
    and ``mbit_s``: the rate in question.
    """
    rows = []
    for precision in PRECISIONS:
        for modality, form, item in forms():
            for cut in CUTS:
                for wire in WIRES:
                    here = replace(setting, server_encodes=precision, cut=cut, wire=wire)
                    sizes = item.input_bytes, here.feature_bytes(item)
                    times = edge_s(here, item), server_s(here, item)
                    found = break_even(sizes[1], sizes[0], *times)
                    named = (modality, form, cut, wire, precision)
                    in_ms = (1000 * seconds for seconds in times)
                    rows.append((*named, *in_ms, *sizes, str(found), found.mbit_s))
    columns = ["item", "form", "cut", "wire", "server_encodes", "edge_ms", "server_ms"]
    columns += ["input_bytes", "feature_bytes", "wins", "mbit_s"]
    return pd.DataFrame(rows, columns=columns)


def in_words(rates: pd.DataFrame, server_encodes: str = "float16") -> pd.DataFrame:
    """Of ``break_even_rates``: rows are items and forms, columns the cut and the type."""
    chosen = rates[rates["server_encodes"] == server_encodes]
    cuts = {"encoder": "before the projector", "projector": "behind it"}
    table = chosen.assign(cut=chosen["cut"].map(cuts)).pivot(
        index=["item", "form"], columns=["cut", "wire"], values="wins"
    )
    order = pd.MultiIndex.from_product([cuts.values(), WIRES], names=["cut", "wire"])
    rows = pd.MultiIndex.from_tuples(
        list(chosen[["item", "form"]].drop_duplicates().itertuples(index=False, name=None)),
        names=["item", "form"],
    )
    return table.reindex(index=rows, columns=order)


def curves(rates_mbit_s: Sequence[float], setting: Setting = Setting()) -> pd.DataFrame:
    """How long features take to be there, over what their input takes to be encoded there.

    Returns
    -------
    Columns ``item``, ``form``, ``wire``, ``mbit_s``, ``ratio``; below 1 features win. The cut is
    that of the setting.
    """
    rows = []
    for modality, form, item in forms():
        for wire in WIRES:
            here = replace(setting, wire=wire)
            sent = here.feature_bytes(item), item.input_bytes
            for mbit_s in rates_mbit_s:
                ours_s, theirs_s = (8 * number / (mbit_s * 1e6) for number in sent)
                ratio = (ours_s + edge_s(here, item)) / (theirs_s + server_s(here, item))
                rows.append((modality, form, wire, mbit_s, ratio))
    return pd.DataFrame(rows, columns=["item", "form", "wire", "mbit_s", "ratio"])


def priced() -> pd.DataFrame:
    """Encoding times of the items on either side, in milliseconds."""
    setting = Setting()
    full = replace(setting, server_encodes="float32")
    rows = [
        (item.encoder, edge_s(setting, item), server_s(setting, item), server_s(full, item))
        for item in ITEMS
    ]
    names = ["edge, float32", "server, float16", "server, float32"]
    return pd.DataFrame(rows, columns=["encoder", *names]).set_index("encoder") * 1000
