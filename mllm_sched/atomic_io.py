"""Files that are either as they were or as they should be."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO
from uuid import uuid4


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half written, not even after a power cut.

    Of several writers at once the last one wins.
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)  # gives the room back


def locked(path: Path) -> IO[str] | None:
    """A file that one process at a time can hold, open; None if another one holds it.

    The system releases it when its holder ends, however that comes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
