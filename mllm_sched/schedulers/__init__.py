"""Who chooses the arm."""

from typing import TYPE_CHECKING, Any

from mllm_sched.extras import require
from mllm_sched.schedulers.base import Decision, Scheduler
from mllm_sched.schedulers.gp import Hyperparameters
from mllm_sched.schedulers.registry import make_scheduler, scheduler_names

if TYPE_CHECKING:
    from mllm_sched.schedulers.hyperparameter_fit import fit_hyperparameters

__all__ = [
    "Decision",
    "Hyperparameters",
    "Scheduler",
    "fit_hyperparameters",
    "make_scheduler",
    "scheduler_names",
]


def __getattr__(name: str) -> Any:
    """``fit_hyperparameters`` when it is first wanted: it alone needs PyTorch."""
    if name == "fit_hyperparameters":
        require("gpytorch", "torch")
        from mllm_sched.schedulers.hyperparameter_fit import fit_hyperparameters

        return fit_hyperparameters
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
