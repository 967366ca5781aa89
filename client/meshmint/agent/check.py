"""`meshmint agent --check`: looks at all that the configuration refers to, and changes nothing.

It says what the agent would do, and everything that would keep it from doing so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from meshmint.agent.auth import token_expiry
from meshmint.agent.check_places import check_places
from meshmint.agent.config import AgentConfig, CertificateSettings
from meshmint.agent.connection import Connection
from meshmint.agent.finding import Finding
from meshmint.agent.kept import Unusable
from meshmint.agent.plan import renewal_time
from meshmint.agent.state import StateDirectory
from meshmint.errors import MeshmintError
from meshmint.spans import span
from meshmint.tokens import Tokens

__all__ = ["check", "run_check"]


async def check(config: AgentConfig, now: datetime | None = None) -> AsyncIterator[Finding]:
    """Looks at everything."""
    moment = now or datetime.now(UTC)
    connection = Connection(config.server, config.auth)
    try:
        yield await _server(connection, config)
        yield await _token(connection, moment)
        state = StateDirectory(config.state_dir)
        yield _state(state)
        for settings in config.certificates:
            yield _certificate(settings, state, moment)
        for finding in check_places(config):
            yield finding
    finally:
        await connection.close()


async def _server(connection: Connection, config: AgentConfig) -> Finding:
    try:
        client = await connection.client()
        chain = await client.get_chain()
    except MeshmintError as error:
        return Finding("server", str(error), is_fault=True)
    return Finding(
        "server",
        f"{config.server.address} answers: trust domain {chain.trust_domain}, "
        f"issuer {chain.issuer} until {chain.not_after:%Y-%m-%d %H:%M} UTC",
    )


async def _token(connection: Connection, now: datetime) -> Finding:
    try:
        token = await Tokens.of(connection.token_source()).get_async() or ""
    except MeshmintError as error:
        return Finding("auth", str(error), is_fault=True)
    expiry = token_expiry(token)
    if expiry is None:
        return Finding("auth", "there is a token")
    if expiry <= now:
        return Finding(
            "auth", f"the token expired {span(now - expiry)} ago: have it replaced", is_fault=True
        )
    return Finding("auth", f"there is a token, which expires in {span(expiry - now)}")


def _state(state: StateDirectory) -> Finding:
    try:
        state.check()
    except MeshmintError as error:
        return Finding("state_dir", error.message, is_fault=True)
    if state.path.exists():
        if not os.access(state.path, os.W_OK | os.X_OK):
            return Finding("state_dir", f"{state.path} cannot be written", is_fault=True)
        used = ": an agent works in it now" if state.is_locked() else ""
        return Finding("state_dir", f"{state.path} is there{used}")
    parent = next(path for path in state.path.parents if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            "state_dir",
            f"{state.path} is missing, and cannot be made in {parent}: make it, mode 0700",
            is_fault=True,
        )
    return Finding("state_dir", f"{state.path} would be made")


def _certificate(settings: CertificateSettings, state: StateDirectory, now: datetime) -> Finding:
    place = f"certificates[{settings.name}]"
    maker = "the service" if settings.key_from == "service" else "the agent"
    asked = (
        f"a new one would be asked for: role {settings.role or '(the one that fits)'}, "
        f"{settings.key} key made by {maker}"
    )
    try:
        kept = state.load(settings.name)
    except Unusable as error:
        return Finding(place, f"the kept one cannot be used ({error}); {asked}")
    if kept is None or kept.wanted != settings.wanted() or kept.is_expired(now):
        why = (
            ""
            if kept is None
            else "the kept one has expired; "
            if kept.is_expired(now)
            else "the kept one was asked for otherwise; "
        )
        return Finding(place, f"{why}{asked}")
    due = renewal_time(kept.validity(now), settings.renewal, 0.5)
    when = f"renewed in about {span(due - now)}" if due > now else "renewed at once"
    return Finding(
        place,
        f"{kept.spiffe_id or kept.serial_number} is kept, for {span(kept.not_after - now)}; "
        f"it would be {when}",
    )


def run_check(config: AgentConfig) -> list[Finding]:
    """Everything that `check` finds."""

    async def gather() -> list[Finding]:
        return [finding async for finding in check(config)]

    return asyncio.run(gather())
