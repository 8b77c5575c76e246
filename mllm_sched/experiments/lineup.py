"""The schedulers of a comparison, and what each knows before its first task."""

from __future__ import annotations

from mllm_sched.devices import Device, KnownDevice
from mllm_sched.devices.base import full_power_arms as full_power_arms
from mllm_sched.devices.base import trusted_arms as trusted_arms
from mllm_sched.experiments.hyperparameters import all_tasks as all_tasks
from mllm_sched.experiments.hyperparameters import transferred as transferred
from mllm_sched.experiments.runner import Rule
from mllm_sched.schedulers import Hyperparameters
from mllm_sched.tasks import Task

OURS = "Safe GP-UCB"  # the paper's rule; figures draw it above the others
SAFE, ADAPTIVE = Rule(OURS, "safe-gp-ucb"), Rule("Adaptive safe GP", "adaptive-safe-gp")
PENALTY = 1.0  # a task beyond the limit counts as e times its energy; see DEVIATIONS.md


def paper_lineup(hyperparameters: dict[str, Hyperparameters] | None = None) -> list[Rule]:
    """The paper's scheduler, its baselines, and the references on either side.

    The baselines come twice, because the paper does not say which it compares to: minimising energy
    alone, and with a penalty beyond the limit.
    """
    fitted = {"hyperparameters": hyperparameters} if hyperparameters else {}
    penalty = {"penalty": PENALTY}
    return [
        Rule("Oracle", "oracle"),
        Rule(OURS, "safe-gp-ucb", fitted),
        Rule("UCB", "ucb"),
        Rule("UCB + penalty", "ucb", penalty),
        Rule("Thompson", "thompson"),
        Rule("Thompson + penalty", "thompson", penalty),
        Rule("Epsilon-greedy", "epsilon-greedy"),
        Rule("Epsilon-greedy + penalty", "epsilon-greedy", penalty),
        Rule("Fixed at full power", "fixed"),
        Rule("Random", "random"),
    ]


def fitted_lineup(device: KnownDevice, task: Task) -> list[Rule]:
    """The paper's line-up with hyperparameters for this device, and the adaptive rule."""
    rules = paper_lineup(transferred(device, task, all_tasks()))
    return [*rules[:2], ADAPTIVE, *rules[2:]]


def task_for(device: Device, encoder: str = "", or_first: bool = False) -> Task:
    """A task for an encoder that the device holds; without a name, for its first.

    With ``or_first`` an unknown name means the first, too; otherwise it raises ValueError.
    """
    held = device.modalities
    if not encoder or (or_first and encoder not in held):
        encoder = next(iter(held))
    if encoder not in held:
        raise ValueError(f"encoder {encoder!r}: {device.name} holds {', '.join(held)}")
    return Task(held[encoder], encoder)
