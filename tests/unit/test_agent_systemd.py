"""The agent speaks to systemd over the socket that it is given, and only then."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from meshmint.agent.systemd import Notifier


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, str]]:
    with (
        tempfile.TemporaryDirectory(prefix="mmn") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found,
    ):
        path = str(Path(directory) / "notify")
        found.bind(path)
        found.settimeout(10)
        yield found, path


def test_each_message_reaches_systemd(listening: tuple[socket.socket, str]) -> None:
    found, path = listening
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready()
    assert found.recv(1000) == b"READY=1"
    notifier.stopping()
    assert found.recv(1000) == b"STOPPING=1"
    notifier.alive()
    assert found.recv(1000) == b"WATCHDOG=1"
    notifier.reloading()
    assert found.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_a_status_stays_one_line_of_its_own(listening: tuple[socket.socket, str]) -> None:
    found, path = listening
    Notifier({"NOTIFY_SOCKET": path}).status("web: bad\nREADY=1")
    assert found.recv(1000) == b"STATUS=web: bad READY=1"


def test_an_abstract_socket_works_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind("")  # the kernel chooses an abstract name
        found.settimeout(10)
        name = found.getsockname()[1:].decode()
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert found.recv(1000) == b"READY=1"


def test_without_systemd_or_its_socket_nothing_is_said_and_nothing_fails() -> None:
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).ready()


def test_the_watchdog_gets_two_signs_of_life_within_its_time() -> None:
    asked = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}
    assert Notifier(asked).watchdog_pause == 15
    assert Notifier({**asked, "WATCHDOG_PID": "12"}, pid=12).watchdog_pause == 15
    assert Notifier({**asked, "WATCHDOG_PID": "13"}, pid=12).watchdog_pause is None
    assert Notifier({**asked, "WATCHDOG_USEC": "soon"}).watchdog_pause is None
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_pause is None
