"""The status table holds what a person needs, in any terminal, and nothing that could steer it."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from meshmint.agent.condition import Conditions
from meshmint.agent.status import AgentStatus, CertificateStatus, write_status_table

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)
ERROR = "PERMISSION_DENIED: there is no such role, or it is not for this caller"


class Terminal(io.StringIO):
    """Takes text as a terminal does."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_an_agent_that_has_not_begun_yet_is_not_ready() -> None:
    conditions = Conditions()
    assert conditions.why_not_ready(NOW)
    conditions.arrange(["web"], ["template /x"])
    assert set(conditions.why_not_ready(NOW)) == {"web", "template /x"}
    conditions.by_name["web"].end = NOW + timedelta(hours=1)
    conditions.by_name["web"].delivered = conditions.templates["template /x"].delivered = True
    assert not conditions.why_not_ready(NOW)
    assert "has expired" in conditions.why_not_ready(NOW + timedelta(hours=1))["web"]
    conditions.sockets = {"/x.sock": "it is not served yet"}
    assert set(conditions.why_not_ready(NOW)) == {"/x.sock"}


def certificate(left: timedelta | None, **fields: Any) -> CertificateStatus:
    return CertificateStatus(
        **{
            "name": "web",
            "spiffe_id": "spiffe://example.org/web",
            "serial_number": "6b0761deece7",
            "start": None if left is None else NOW + left - timedelta(hours=1),
            "end": None if left is None else NOW + left,
            "renewal": NOW + timedelta(minutes=21),
            "renewals": 1,
            "failures": 0,
            "last_error": "",
            "delivered": True,
            "delivery_error": "",
            "reaction_error": "",
            **fields,
        }
    )


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, *certificates: CertificateStatus) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    status = AgentStatus(
        as_of=NOW,
        pid=812,
        is_running=True,
        server="meshmint.example.org:8443",
        trust_domain="example.org",
        bundles={},
        bundle_error="",
        certificates=certificates,
        problems={},
    )
    write_status_table(status, NOW, terminal)
    return terminal.getvalue()


@pytest.mark.parametrize("columns", [60, 80, 150, 250])
def test_the_last_error_is_shown_in_any_width(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    text = shown(monkeypatch, columns, certificate(timedelta(minutes=9), last_error=ERROR))
    assert "PERMISSION_DENIED" in text
    plain = "".join(text.split())
    assert all(word in plain for word in ("nosuchrole", "9m"))


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (timedelta(minutes=60), "████████████ 1h"),
        (timedelta(minutes=30), "██████░░░░░░ 30m"),
        (timedelta(seconds=30), "░░░░░░░░░░░░ 30s"),
        (timedelta(minutes=-3), "expired 3m ago"),
        (None, "none yet"),
    ],
)
def test_what_is_left_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, left: timedelta | None, expected: str
) -> None:
    assert expected in shown(monkeypatch, 200, certificate(left))


def test_what_strangers_wrote_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile = certificate(
        timedelta(minutes=5),
        spiffe_id="spiffe://x/\x1b]0;owned\x07",
        last_error="[bold]no\x1b[2Jmarkup[/bold]",
    )
    text = shown(monkeypatch, 250, hostile)
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "[bold]no\\x1b[2Jmarkup[/bold]" in text
