"""What the dashboard shows: panels, and the queries behind them."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_sched.edge import families as known
from mllm_sched.edge.families import Family

HERE = '{instance=~"$instance"}'  # of the agents that are looked at


@dataclass(frozen=True)
class Panel:
    """One picture: queries by the legend of their lines, ``{{label}}`` filled in.

    Attributes
    ----------
    unit
        As Grafana names it: ``s``, ``joule``, ``percentunit``, ``short`` for a number.
    stacked
        Whether lines are shares of a whole.
    """

    title: str
    says: str
    unit: str
    queries: dict[str, str]
    stacked: bool = False


def now(family: Family, by: str, chosen: str = HERE, over: str = "sum") -> str:
    """A gauge as it is."""
    return f"{over} by ({by}) ({family}{chosen})"


def rate(name: Family | str, by: str, chosen: str = HERE) -> str:
    """Steps of a counter each second."""
    return f"sum by ({by}) (rate({name}{chosen}[$__rate_interval]))"


def share(part: Family | str, whole: Family | str, by: str) -> str:
    """Steps of one counter for each step of another."""
    return f"{rate(part, by)} / {rate(whole, by)}"


def mean(histogram: Family, by: str) -> str:
    """Of what a histogram observed."""
    return share(f"{histogram}_sum", f"{histogram}_count", by)


def quantiles(
    histogram: Family, *percents: int, says: str = "", chosen: str = HERE
) -> dict[str, str]:
    """Of what a histogram observed, by evidence."""
    inner = rate(f"{histogram}_bucket", "le, evidence", chosen)
    legend = f"{says}p%d, {{{{evidence}}}}"
    return {
        legend % percent: f"histogram_quantile({percent / 100}, {inner})" for percent in percents
    }


def increase(family: Family, by: str, chosen: str = HERE) -> str:
    """Steps of a counter within five minutes."""
    return f"sum by ({by}) (increase({family}{chosen}[5m]))"


PANELS: dict[str, list[Panel]] = {
    "Learning": [
        Panel(
            "Energy per task",
            "What the scheduler minimises: the mean of the tasks that were metered.",
            "joule",
            {"{{modality}}, {{evidence}}": mean(known.TASK_ENERGY, "modality, evidence")},
        ),
        Panel(
            "Latency of encoding and its limit",
            "Quantiles of one task's encoding; the limit is the scheduler's.",
            "s",
            {
                **quantiles(known.LATENCY, 50, 95, 99),
                "limit, {{instance}}": now(known.LIMIT, "instance"),
            },
        ),
        Panel(
            "Tasks above the limit",
            "Share of the measured tasks, and what the scheduler may spend.",
            "percentunit",
            {
                "{{evidence}}": share(known.VIOLATIONS, known.TASKS, "evidence"),
                "allowed, {{instance}}": now(known.VIOLATION_RATE, "instance"),
            },
        ),
        Panel(
            "Safe arms",
            "Arms certified to be within the limit, and whether none can be.",
            "short",
            {
                "{{instance}}, {{modality}}": now(known.SAFE_ARMS, "instance, modality"),
                "infeasible: {{instance}}, {{modality}}": now(
                    known.INFEASIBLE, "instance, modality"
                ),
            },
        ),
        Panel(
            "Arms chosen",
            "Decisions for each arm, stacked; arms that nobody chose are left out.",
            "ops",
            {"{{arm}}": f"{rate(known.CHOSEN, 'arm')} > 0"},
            stacked=True,
        ),
        Panel(
            "Power of encoding by arm",
            "Joules each second, stacked; arms that take none are left out.",
            "watt",
            {"{{arm}}, {{evidence}}": f"{rate(known.ENERGY, 'arm, evidence')} > 0"},
            stacked=True,
        ),
    ],
    "Users": [
        Panel(
            "Latency of answers",
            "From the request to the first token and to the end of the answer.",
            "s",
            {
                **quantiles(known.FIRST_TOKEN, 50, 95, says="first token "),
                **quantiles(known.ANSWER, 50, 95, 99),
            },
        ),
        Panel(
            "Tasks",
            "Decisions and measurements each second.",
            "ops",
            {
                "decided, {{modality}}": rate(known.DECISIONS, "modality"),
                "measured, {{modality}}, {{evidence}}": rate(known.TASKS, "modality, evidence"),
            },
        ),
        Panel(
            "Shed by reason",
            "Requests that were not served, stacked.",
            "ops",
            {"{{reason}}": rate(known.REFUSED, "reason")},
            stacked=True,
        ),
        Panel(
            "Queue",
            "Tasks that wait, and tasks being encoded or answered.",
            "short",
            {
                "waiting, {{instance}}": now(known.WAITING, "instance"),
                "running, {{instance}}": now(known.RUNNING, "instance"),
            },
        ),
        Panel(
            "Backlog",
            "Seconds of encoding that wait or run, as predicted.",
            "s",
            {"{{instance}}": now(known.BACKLOG, "instance")},
        ),
        Panel(
            "Failures",
            "Tasks whose encoding failed, by class, since each agent started.",
            "short",
            {"{{why}}": now(known.FAILED, "why")},
            stacked=True,
        ),
    ],
    "Health": [
        Panel(
            "Alarms",
            "Raised within five minutes, by kind.",
            "short",
            {"{{kind}}, {{instance}}": increase(known.ALARM, "kind, instance")},
        ),
        Panel(
            "Meter and journal",
            "1 while the energy meter reads and the journal takes writes.",
            "short",
            {
                "meter, {{instance}}": now(known.METER_UP, "instance", over="min"),
                "journal, {{instance}}": now(known.JOURNAL_UP, "instance", over="min"),
            },
        ),
        Panel(
            "Memory and journal",
            "Resident memory of the process, and the journal's size on disk.",
            "bytes",
            {
                "memory, {{instance}}": f"{known.MEMORY}{HERE}",
                "journal, {{instance}}": now(known.JOURNAL_BYTES, "instance"),
            },
        ),
    ],
    "Front": [
        Panel(
            "Tasks placed and moved",
            "Tasks sent to each agent, and taken from one that did not finish them.",
            "ops",
            {
                "to {{agent}}": rate(known.PLACED, "agent", ""),
                "from {{agent}}": rate(known.MOVED, "agent", ""),
            },
        ),
        Panel(
            "Agents",
            "That answer the front, and that do not.",
            "short",
            {"{{state}}": now(known.AGENTS, "state", "")},
            stacked=True,
        ),
        Panel(
            "Latency of answers through the front",
            "From the request to the end of the answer, agents that died included.",
            "s",
            quantiles(known.FRONT_ANSWER, 50, 95, 99, chosen=""),
        ),
        Panel(
            "Shed by the front",
            "Requests that no agent was asked for, by reason, stacked.",
            "ops",
            {"{{reason}}": rate(known.FRONT_REFUSED, "reason", "")},
            stacked=True,
        ),
    ],
}
"""By row of the dashboard."""
