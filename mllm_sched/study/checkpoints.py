"""Finished jobs of a long study on disk, so that an interrupted run loses minutes and not hours.

``make reproduce`` names a folder in the environment's MLLM_SCHED_CHECKPOINTS, one for everything
that its notebook depends on; ``study/records.py`` says what that is. Without it nothing is kept.

Results are pickled, and unpickling runs code: whoever can write into the folder is trusted. So a
folder of another owner is refused.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib

from mllm_sched.files import write_whole

ENVIRONMENT = "MLLM_SCHED_CHECKPOINTS"
OLD_S = 14 * 24 * 3600.0  # a run that nobody went on with for two weeks is given up
DIGEST = hashlib.sha256().digest_size
MISSING = object()  # of a job that is not on disk; None may be a result


class Checkpoints:
    """Results of jobs by a digest of the function and its arguments.

    Parameters
    ----------
    folder
        Made when the first result is kept.

    Raises
    ------
    PermissionError
        When the folder is another user's.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user: remove it, or name another")
        self.folder = folder

    @staticmethod
    def from_environment() -> Checkpoints | None:
        """Those that ``make reproduce`` asked for, or none."""
        folder = os.environ.get(ENVIRONMENT)
        return Checkpoints(Path(folder)) if folder else None

    def load(self, function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
        """The result of a job, or ``MISSING``, also if its file is damaged or another job's."""
        name = _name(function, job)
        try:
            content = (self.folder / name).read_bytes()
            body = content[DIGEST:]
            if _digest(name, body) != content[:DIGEST]:
                return MISSING
            return pickle.loads(zlib.decompress(body))
        except Exception:  # unpickling raises anything, a class that is gone among them
            return MISSING

    def save(self, function: Callable[..., Any], job: tuple[Any, ...], result: Any) -> None:
        """Keep a result; one that cannot be kept costs no more than to run its job again."""
        name = _name(function, job)
        if not name:
            return
        body = zlib.compress(pickle.dumps(result), level=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, _digest(name, body) + body)
        except OSError as error:
            warnings.warn(f"a finished job is not kept: {error}", stacklevel=2)


def _name(function: Callable[..., Any], job: tuple[Any, ...]) -> str:
    """Of the file of a job; empty if its arguments have no digest."""
    try:
        return str(joblib.hash((function.__module__, function.__qualname__, job), "sha1"))
    except (pickle.PicklingError, TypeError):  # the latter from locks, sockets and generators
        return ""


def _digest(name: str, body: bytes) -> bytes:
    """Of the name, too: the file of one job is no result of another."""
    return hashlib.sha256(name.encode() + body).digest()


def remove_old(parent: Path) -> None:
    """Remove the folders beneath ``parent`` to which nothing was added for two weeks."""
    for folder in parent.glob("*"):
        with suppress(FileNotFoundError):  # somebody else removed it
            old = time.time() - folder.lstat().st_mtime > OLD_S
            if old and folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
