"""Tells systemd how the agent fares (sd_notify(3)); says nothing where nobody asked."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]

_LONGEST_STATUS = 200


class Notifier:
    """The socket of NOTIFY_SOCKET.

    Args:
        environment: Where the variables stand.
        pid: This process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, pid: int | None = None) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._watchdog = 0.0
        asked = environment.get("WATCHDOG_PID")
        usec = environment.get("WATCHDOG_USEC", "")
        if usec.isdecimal() and asked in (None, "", str(os.getpid() if pid is None else pid)):
            self._watchdog = int(usec) / 1e6

    @property
    def watchdog_pause(self) -> float | None:
        """Seconds between two signs of life, half of what systemd waits; None if it does not."""
        return self._watchdog / 2 if self._address and self._watchdog else None

    def ready(self) -> None:
        """Every certificate is there."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        line = "".join(char if char.isprintable() else " " for char in text)
        self._send(f"STATUS={line[:_LONGEST_STATUS]}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # Whether anybody listens is no concern of ours.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.sendto(message.encode(), self._address)
