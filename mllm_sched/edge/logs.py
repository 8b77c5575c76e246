"""Structured logs: one JSON object a line on stderr, without secrets.

``setup`` once, then ``say(log, "journal-full", free_bytes=0)``. Fields may hold what users send:
control characters are escaped, and long values cut.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any

from pythonjsonlogger.json import JsonFormatter

GONE = "[redacted]"
LONGEST = 2000  # characters of a text
MOST, DEEPEST = 100, 4  # entries of a list or mapping, and levels of them
_OWN = ("utc", "level", "logger", "event")

_SECRET_NAME = re.compile(
    r"token|secret|passw|authori[sz]ation|credential|cookie|(api|private)[_-]?key", re.IGNORECASE
)
# Texts: all behind a header's name, what follows "Bearer", and what a secret's name is set to.
_HEADER = re.compile(r"""(authori[sz]ation[\\"']*\s*[:=,]).*""", re.IGNORECASE | re.DOTALL)
_BEARER = re.compile(r"""\b(bearer)\b[\s:=]+[^\s"',;)\]}]+""", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""((?:token|secret|passw\w*|credential|cookie|(?:api|private)[_-]?key)[\\"']*\s*[:=]\s*)\S+""",
    re.IGNORECASE,
)


def setup(level: str = "info") -> None:
    """Log in JSON from now on, libraries and warnings too.

    The level is that of our own messages: ``debug``, ``info``, ``warning`` or ``error``. Those of
    libraries are logged from ``warning`` on.
    """
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mllm_sched").setLevel(level.upper())
    logging.captureWarnings(True)


def say(
    log: logging.Logger, event: str, level: str = "info", *, trace: bool = False, **fields: Any
) -> None:
    """Log an event of a constant name, such as ``agent-died``, and its details.

    ``trace``: with the traceback of the exception that is being handled.
    """
    number = logging.getLevelName(level.upper())
    log.log(number, event, exc_info=trace, extra={"fields": fields})


def redacted(value: Any, name: str = "", depth: int = 0) -> Any:
    """The value as JSON can hold it, cut to size, without what looks like a secret.

    A field whose ``name`` is that of a secret keeps numbers only, such as a count of tokens.

    Examples
    --------
    >>> redacted({"tokens": 12, "token": "abc", "why": "sent Authorization: Bearer abc"})
    {'tokens': 12, 'token': '[redacted]', 'why': 'sent Authorization: [redacted]'}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if name and _SECRET_NAME.search(name):
        return GONE
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if depth < DEEPEST and isinstance(value, Mapping):
        some = list(value.items())[:MOST]
        return {_text(key): redacted(held, _text(key), depth + 1) for key, held in some}
    if depth < DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [redacted(held, depth=depth + 1) for held in list(value)[:MOST]]
    return _text(value)


def _text(value: Any) -> str:
    """As text, cut to size before secrets are removed: a cut secret still follows its marker."""
    whole = str(value)
    text = whole[:LONGEST].replace("\x7f", "\ufffd")  # a control character that JSON leaves alone
    text = _HEADER.sub(rf"\1 {GONE}", text)
    text = _BEARER.sub(rf"\1 {GONE}", text)
    text = _ASSIGNED.sub(rf"\1{GONE}", text)
    return text if len(whole) <= LONGEST else f"{text}… of {len(whole)} characters"


class JsonLine(JsonFormatter):
    """Formats a record as one line; all that is not printable ASCII is escaped."""

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fields of a line; a message that ``say`` did not make is the event ``log``."""
        fields = getattr(record, "fields", None)
        said = {"message": record.message} if fields is None else fields
        utc = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["utc"] = utc.replace("+00:00", "Z")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["event"] = "log" if fields is None else record.message
        for key, value in {**said, **message_dict}.items():  # exc_info is in the latter
            log_data[f"{key}_" if key in _OWN else key] = value

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Without secrets, tracebacks included."""
        return {_text(key): redacted(value, str(key)) for key, value in log_data.items()}


class _Handler(logging.StreamHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Log that a message could not be written, without its contents."""
        error = sys.exc_info()[0]
        line = {"level": "error", "logger": record.name, "event": "log-failed"}
        line["why"] = error.__name__ if error else ""
        try:
            self.stream.write(f"{JsonLine().serialize_log_record(line)}{self.terminator}")
            self.flush()
        except (OSError, ValueError):  # stderr itself is closed
            return
