"""The agent's log: structured lines on stderr.

What is given as a field must be fit for everybody's eyes: no token, no key, ever.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from meshmint.agent.config import LogSettings

__all__ = ["Log", "set_up_log"]

_LOGGER = logging.getLogger("meshmint.agent")
_FIELDS = "meshmint_fields"


class Log:
    """Writes events with fields.

    Args:
        fields: What every line of it carries.
    """

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def bind(self, **fields: object) -> Log:
        """The same with more fields."""
        return Log(**{**self._fields, **fields})

    def debug(self, event: str, **fields: object) -> None:
        """For who looks for a fault."""
        self.write(logging.DEBUG, event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """What goes as it should."""
        self.write(logging.INFO, event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """What somebody should look at in working hours."""
        self.write(logging.WARNING, event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """What somebody should look at now."""
        self.write(logging.ERROR, event, **fields)

    def critical(self, event: str, **fields: object) -> None:
        """What fails users now, or in a moment."""
        self.write(logging.CRITICAL, event, **fields)

    def write(self, level: int, event: str, **fields: object) -> None:
        """At a level of the standard library."""
        _LOGGER.log(level, "%s", event, extra={_FIELDS: {**self._fields, **fields}})

    def bug(self, event: str, **fields: object) -> None:
        """An exception that nobody expected, with its traceback; within an except clause.

        A traceback shows code, and never the values that it worked with.
        """
        _LOGGER.error("%s", event, exc_info=True, extra={_FIELDS: {**self._fields, **fields}})


def set_up_log(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Directs the agent's lines; may be called again after a change of settings."""
    where = stream or sys.stderr
    is_for_people = settings.format == "console" or (settings.format == "auto" and where.isatty())
    handler = logging.StreamHandler(where)
    handler.setFormatter(_ConsoleFormatter() if is_for_people else _JsonFormatter())
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(settings.level.upper())
    _LOGGER.propagate = False


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return found


def _time(record: logging.LogRecord) -> str:
    return _rfc3339(datetime.fromtimestamp(record.created, UTC), "milliseconds")


def _rfc3339(moment: datetime, timespec: str) -> str:
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def _text(value: object) -> str:
    return _rfc3339(value, "seconds") if isinstance(value, datetime) else str(value)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_text)


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = " ".join(f"{name}={_shown(value)}" for name, value in _fields(record).items())
        text = f"{_time(record)} {record.levelname.lower():8} {record.getMessage()}"
        text = f"{text}  {told}" if told else text
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _shown(value: object) -> str:
    # Control characters of strangers never reach the terminal.
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in _text(value))
    return f'"{text}"' if " " in text else text
