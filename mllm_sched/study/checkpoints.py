"""Finished jobs of a long study on disk, so that an interrupted run loses minutes and not hours.

``make reproduce`` names a folder in the environment's MLLM_SCHED_CHECKPOINTS, one for everything
that its notebook depends on; ``study/records.py`` says what that is. Without it nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib

from mllm_sched.files import write_whole

ENVIRONMENT = "MLLM_SCHED_CHECKPOINTS"
OLD_S = 14 * 24 * 3600.0  # a run that nobody went on with for two weeks is given up
MISSING = object()  # of a job that is not on disk; None may be a result


class Checkpoints:
    """Results of jobs by a digest of the function and its arguments.

    Parameters
    ----------
    folder
        Made when the first result is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def from_environment() -> Checkpoints | None:
        """Those that ``make reproduce`` asked for, or none."""
        folder = os.environ.get(ENVIRONMENT)
        return Checkpoints(Path(folder)) if folder else None

    def load(self, function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
        """The result of a job, or ``MISSING``, also if its file is damaged."""
        try:
            content = self._file(function, job).read_bytes()
        except (FileNotFoundError, pickle.PicklingError):
            return MISSING
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            return MISSING
        return pickle.loads(zlib.decompress(body))

    def save(self, function: Callable[..., Any], job: tuple[Any, ...], result: Any) -> None:
        """Keep a result; a job whose arguments have no digest is left out, and run again."""
        try:
            file = self._file(function, job)
        except pickle.PicklingError:
            return
        body = zlib.compress(pickle.dumps(result), level=1)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, hashlib.sha256(body).digest() + body)

    def _file(self, function: Callable[..., Any], job: tuple[Any, ...]) -> Path:
        named = (function.__module__, function.__qualname__, job)
        return self.folder / joblib.hash(named, hash_name="sha1")


def remove_old(parent: Path) -> None:
    """Remove the folders beneath ``parent`` to which nothing was added for two weeks."""
    for folder in parent.iterdir() if parent.exists() else ():
        if time.time() - folder.stat().st_mtime > OLD_S:
            shutil.rmtree(folder)
