"""What `meshmint agent status` shows: a document that the agent gives, and the table made of it.

The document holds nothing secret. It may come from a file or over HTTP, so it is
checked like everything from outside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Self, TextIO

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from meshmint.agent.condition import Condition, Conditions
from meshmint.agent.config import AgentConfig
from meshmint.agent.holdings import Holdings
from meshmint.agent.kept import Unusable
from meshmint.agent.state import StateDirectory
from meshmint.errors import MeshmintError
from meshmint.spans import span

__all__ = ["AgentStatus", "CertificateStatus", "ask_for_status", "write_status_table"]

_BAR_WIDTH = 12
_WIDE = 140
_SECONDS = 5.0
_MAX_BYTES = 16 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class CertificateStatus(_Part):
    """One certificate."""

    name: str
    spiffe_id: str | None
    serial_number: str
    start: datetime | None
    end: datetime | None
    renewal: datetime | None
    renewals: int
    failures: int
    last_error: str
    delivered: bool
    delivery_error: str
    reaction_error: str

    @classmethod
    def of(cls, condition: Condition, reaction_error: str) -> Self:
        """As it is now."""
        fields = {name: getattr(condition, name, "") for name in cls.model_fields}
        return cls(**fields | {"reaction_error": reaction_error})

    @property
    def problem(self) -> str:
        """The last error of any kind."""
        return self.last_error or self.delivery_error or self.reaction_error


class BundleStatus(_Part):
    """One trust bundle."""

    sequence: int
    roots: int


class AgentStatus(_Part):
    """The whole agent."""

    as_of: datetime
    pid: int
    is_running: bool
    server: str
    trust_domain: str
    bundles: Mapping[str, BundleStatus]
    bundle_error: str
    certificates: tuple[CertificateStatus, ...]
    problems: Mapping[str, str]

    @classmethod
    def of(
        cls,
        conditions: Conditions,
        holdings: Holdings,
        *,
        server: str,
        now: datetime,
        is_running: bool = True,
    ) -> Self:
        """As it is now."""
        own, bundles = holdings.bundles
        reactions = conditions.reaction_errors()
        problems = {
            name: why
            for name, one in conditions.templates.items()
            if (why := one.delivery_error or reactions.get(name, ""))
        }
        return cls(
            as_of=now,
            pid=os.getpid(),
            is_running=is_running,
            server=server,
            trust_domain=own,
            bundles={
                name: BundleStatus(sequence=bundle.sequence, roots=len(bundle.roots))
                for name, bundle in bundles.items()
            },
            bundle_error=conditions.bundle_error,
            certificates=tuple(
                CertificateStatus.of(one, reactions.get(name, ""))
                for name, one in conditions.by_name.items()
            ),
            problems=problems | {path: why for path, why in conditions.sockets.items() if why},
        )


def ask_for_status(config: AgentConfig) -> AgentStatus:
    """Asks the running agent, or else reads what it wrote last.

    Raises:
        MeshmintError: Neither is there; the message says what to do.
    """
    why = ""
    if config.health is not None:
        try:
            answer = httpx.get(f"http://{config.health}/status", timeout=_SECONDS, trust_env=False)
            answer.raise_for_status()
            return AgentStatus.model_validate_json(answer.content[:_MAX_BYTES])
        except (httpx.HTTPError, ValidationError) as error:
            why = f"nobody tells at http://{config.health}/status ({_short(error)}); "
    state = StateDirectory(config.state_dir)
    try:
        kept = state.load_status()
        if kept is not None:
            status = AgentStatus.model_validate_json(kept)
            return status.model_copy(update={"is_running": state.is_locked()})
    except (Unusable, ValidationError) as error:
        why += f"{config.state_dir}/status.json cannot be read ({_short(error)}); "
    raise MeshmintError(
        f"{why}no agent has run with this configuration yet: start it with meshmint agent -c FILE",
        reason="AGENT_NOT_RUNNING",
    )


def _short(error: Exception) -> str:
    return type(error).__name__ if isinstance(error, ValidationError) else str(error)


def write_status_table(status: AgentStatus, now: datetime, stream: TextIO | None = None) -> None:
    """Writes the table, as wide as the terminal is."""
    where = stream or sys.stdout
    # Nothing is wrapped in a file: what reads it does not expect that.
    console = Console(file=where, highlight=False, width=None if where.isatty() else 240)
    plain = not _can_show(where, "█░●")
    state = "running" if status.is_running else "NOT RUNNING"
    head = Text.assemble(
        ("agent ", "dim"),
        (state, "green" if status.is_running else "bold red"),
        ("  process ", "dim"), str(status.pid),
        ("  server ", "dim"), _clean(status.server),
        ("  trust domain ", "dim"), _clean(status.trust_domain or "(not known yet)"),
    )  # fmt: skip
    console.print(head)
    if not status.is_running:
        console.print(Text(f"as of {status.as_of:%Y-%m-%d %H:%M:%S} UTC", "dim"))
    if status.bundle_error:
        console.print(Text(f"trust bundle: {_clean(status.bundle_error)}", "red"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("NAME", no_wrap=True)
    table.add_column("SPIFFE ID", overflow="fold")
    table.add_column("SERIAL", overflow="fold", min_width=10)
    table.add_column("TIME LEFT", no_wrap=True)
    table.add_column("NEXT", no_wrap=True)
    # In a narrow terminal errors follow the table: a column of them would be one word wide.
    is_wide = console.width >= _WIDE
    if is_wide:
        table.add_column("LAST ERROR", overflow="fold")
    for one in status.certificates:
        bar, colour = _bar(one, now, plain=plain)
        cells = [
            Text(_clean(one.name), "bold"),
            Text(_clean(one.spiffe_id or "-")),
            Text(_clean(one.serial_number or "-")),
            Text(bar, colour),
            Text(_next(one, now)),
        ]
        if is_wide:
            cells.append(Text(_clean(one.problem or "-"), "red" if one.problem else "dim"))
        table.add_row(*cells)
    console.print(table)
    told = {} if is_wide else {one.name: one.problem for one in status.certificates if one.problem}
    for place, why in (told | dict(status.problems)).items():
        line = why if place.split(" ")[-1] in why and "/" in place else f"{place}: {why}"
        console.print(Text(_clean(line), "red"))


def _bar(one: CertificateStatus, now: datetime, *, plain: bool) -> tuple[str, str]:
    if one.start is None or one.end is None:
        return "none yet", "red"
    if now >= one.end:
        return f"expired {span(now - one.end)} ago", "bold red"
    whole = one.end - one.start
    share = min(1.0, max(0.0, (one.end - now) / whole)) if whole else 0.0
    filled = round(share * _BAR_WIDTH)
    full, empty = ("#", "-") if plain else ("█", "░")
    colour = "green" if share > 0.25 else "yellow" if share > 0.1 else "red"
    return f"{full * filled}{empty * (_BAR_WIDTH - filled)} {span(one.end - now)}", colour


def _next(one: CertificateStatus, now: datetime) -> str:
    if one.renewal is None:
        return "-"
    verb = "retry" if one.failures else "renew"
    return f"{verb} in {span(one.renewal - now)}" if one.renewal > now else f"{verb} now"


def _clean(text: str) -> str:
    # Names and errors may come from strangers: control characters never reach the terminal.
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
