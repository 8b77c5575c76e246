"""Who chooses the arm."""

from mllm_sched.schedulers.base import Scheduler
from mllm_sched.schedulers.decision import Decision
from mllm_sched.schedulers.kernels import Hyperparameters, fit_hyperparameters
from mllm_sched.schedulers.registry import make_scheduler, scheduler_names

__all__ = [
    "Decision",
    "Hyperparameters",
    "Scheduler",
    "fit_hyperparameters",
    "make_scheduler",
    "scheduler_names",
]
