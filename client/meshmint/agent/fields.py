"""What the agent's settings are made of: durations, addresses, and the base of every section.

Nothing here reads a file or asks the system: settings are checked as text.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from meshmint.roles import duration_from_text

__all__ = ["AbsolutePath", "Duration", "LoopbackAddress", "LoopbackPort", "Section"]


class Section(BaseModel):
    """A part of the file: nothing unknown in it, and nothing changes afterwards."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        span = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        span = duration_from_text(f"{value:f}")
    elif isinstance(value, str):
        span = duration_from_text(value)
    else:
        raise ValueError("write a duration like 90s, 15m, 72h, 1h30m or 7d")
    if span <= timedelta():
        raise ValueError("a duration is more than nothing: write it like 90s, 15m, 72h or 7d")
    return span


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""Seconds as a number, or text such as ``1h30m``; always more than nothing."""


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("write the whole path, beginning with '/'")
    if "\0" in str(path):
        raise ValueError("a path has no zero byte")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
"""A path that means the same wherever the agent was started."""


@dataclass(frozen=True, slots=True)
class LoopbackAddress:
    """A TCP address that only this machine can reach.

    Attributes:
        host: The address, without brackets.
        port: The port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_TCP = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+|localhost)):(?P<port>[0-9]{1,5})")


def _loopback(value: object) -> LoopbackAddress:
    if isinstance(value, LoopbackAddress):
        return value
    match = _TCP.fullmatch(value) if isinstance(value, str) else None
    if match and 0 < int(match["port"]) < 65536:
        host = match["v6"] or match["v4"]
        host = "127.0.0.1" if host == "localhost" else host
        try:
            if ipaddress.ip_address(host).is_loopback:
                return LoopbackAddress(host, int(match["port"]))
        except ValueError:
            pass
    raise ValueError("write a loopback address with a port, such as 127.0.0.1:9911 or [::1]:9911")


LoopbackPort = Annotated[LoopbackAddress, BeforeValidator(_loopback)]
"""``127.0.0.1:9911``, ``[::1]:9911`` or ``localhost:9911``."""
