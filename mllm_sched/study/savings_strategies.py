"""What a year of whole requests costs under each strategy. All of it is estimated.

Times come from ``strategy_costs``. Watts and joules per bit are assumptions, each with a default
and a range; ``PLAUSIBLE`` says where they come from. A request is one item of the mix and its
answer. Devices and server wait for free; a server without batching is dear, one that serves many
at once is several times cheaper. The latency limit is about encoding, and does not act here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import pandas as pd

from mllm_sched.devices.orin_model import calibrated_model
from mllm_sched.pipeline.work import read_work
from mllm_sched.study.savings import J_PER_KWH
from mllm_sched.study.savings_scenario import Scenario
from mllm_sched.study.strategy_costs import ITEMS, Cost, Encoded, Setting, modelled

STRATEGIES = {"All Edge": "all-edge", "All Remote": "all-remote", "Hybrid Edge": "hybrid"}
# The strategies' own items, and a 1080p image for the small CLIP, whose 49 patches are sent.
ENCODED = {
    item.encoder: item for item in (*ITEMS, Encoded("clip-vit-b32", 1080 * 1920 * 3, 49, 768))
}


@dataclass(frozen=True)
class Power:
    """Assumed power of what the calibrated board does not cover.

    Attributes
    ----------
    edge_llm_w
        Of the edge module while it runs the LLM.
    server_w
        Of the server's GPU by its data sheet.
    server_share
        Of that, while it works on a request.
    pue
        What the data centre draws over what its servers draw.
    network_j_per_bit
        Of a bit on its way, both directions.
    """

    edge_llm_w: float = 40.0
    server_w: float = 300.0
    server_share: float = 0.7
    pue: float = 1.2
    network_j_per_bit: float = 1e-6

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 1.0 if each.name == "pue" else 0.0
            if not least <= value < math.inf:
                raise ValueError(f"{each.name}={value}: give a number, {least:g} or more")


# Assumed ranges. Edge: well above idle, at most the 60 W of MAXN. Server: the data sheet of an
# A100 80GB PCIe says 300 W; decoding leaves its arithmetic idle. PUE: a new hall to an old one.
# Network: 0.06 kWh/GB in 2015, fixed lines, halving every two years (Aslan et al., J. Ind. Ecol.
# 2018) is 2.7e-5 J/bit then and 1e-6 ten years later; what one more bit adds is less than either.
PLAUSIBLE = {
    "edge_llm_w": (25.0, 60.0),
    "server_w": (300.0, 300.0),
    "server_share": (0.4, 1.0),
    "pue": (1.05, 1.6),
    "network_j_per_bit": (1e-7, 2.7e-5),
}


def request_j(
    strategy: str, encoder: str, power: Power = Power(), setting: Setting = Setting()
) -> dict[str, float]:
    """Joules of one request by where they are spent: ``edge``, ``server`` and ``network``.

    Parameters
    ----------
    strategy
        ``all-edge``, ``all-remote`` or ``hybrid``.
    encoder
        Of its one item, among ``ENCODED``.
    setting
        Link, wire, LLM, and the component and power level of the board; its items do not count.

    Raises
    ------
    ValueError
        For an unknown strategy or encoder.
    """
    if encoder not in ENCODED:
        raise ValueError(f"encoder {encoder!r}: expected one of {', '.join(ENCODED)}")
    cost = modelled(strategy, replace(setting, items=[ENCODED[encoder]]))
    edge_j = 0.0 if strategy == "all-remote" else _encode_j(encoder, setting)
    if strategy == "all-edge":
        edge_j += power.edge_llm_w * cost.llm_s
    server_w = power.server_w * power.server_share * power.pue
    network_j = power.network_j_per_bit * 8 * (cost.up_bytes + cost.down_bytes)
    return {"edge": edge_j, "server": server_w * _server_s(cost), "network": network_j}


def _encode_j(encoder: str, setting: Setting) -> float:
    """Joules of the edge module while it encodes, by the calibrated board."""
    work = read_work()[encoder]
    return calibrated_model().energy_j(work, setting.component, setting.power_w)


def _server_s(cost: Cost) -> float:
    """Seconds for which the server works on a request."""
    return {
        "all-edge": 0.0,
        "all-remote": cost.encode_s + cost.llm_s,
        "hybrid": cost.llm_s,
    }[cost.strategy]


def strategy_annual(
    scenario: Scenario, power: Power = Power(), setting: Setting = Setting()
) -> pd.DataFrame:
    """The bill, one row a strategy.

    Returns
    -------
    ``strategy``; ``edge_kwh``, ``server_kwh``, ``network_kwh`` and their sum ``energy_kwh``;
    ``low_kwh`` and ``high_kwh``, the least and the greatest sum within ``PLAUSIBLE``; ``money``
    and ``carbon_kg`` at the scenario's price and carbon intensity, wherever the energy is drawn.
    """
    least, most = (Power(**{key: ends[end] for key, ends in PLAUSIBLE.items()}) for end in (0, 1))
    rows = []
    for name, strategy in STRATEGIES.items():
        parts = _parts_kwh(scenario, strategy, power, setting)
        sums = [
            sum(_parts_kwh(scenario, strategy, other, setting).values())
            for other in (power, least, most)
        ]
        kwh = {f"{place}_kwh": value for place, value in parts.items()}
        named = dict(zip(("energy_kwh", "low_kwh", "high_kwh"), sums, strict=True))
        rows.append({"strategy": name, **kwh, **named})
    table = pd.DataFrame(rows)
    return table.assign(
        money=scenario.price_per_kwh * table["energy_kwh"],
        carbon_kg=scenario.gco2_per_kwh / 1000 * table["energy_kwh"],
    )


def _parts_kwh(
    scenario: Scenario, strategy: str, power: Power, setting: Setting
) -> dict[str, float]:
    parts = {"edge": 0.0, "server": 0.0, "network": 0.0}
    for encoder in scenario.mix:
        requests = scenario.devices * scenario.tasks(encoder)
        for place, joules in request_j(strategy, encoder, power, setting).items():
            parts[place] += requests * joules / J_PER_KWH
    return parts
