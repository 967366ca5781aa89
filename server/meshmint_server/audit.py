"""One structured line per decision, granted or refused.

Holds what an auditor asks for, and never a token, a CSR or a key: callers of
this module pass names, not credentials. SPIFFE IDs belong here and never into a
metric label.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TextIO

import structlog

from meshmint_server.errors import MeshmintError, Violation

__all__ = ["AuditLog", "Origin", "configure_logging", "utc_text"]

# A caller chooses how many names are refused and what the role is called: neither may
# fill the log.
_MOST_VIOLATIONS = 50
_LONGEST_TEXT = 512

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        request_id: Id of the RPC, made by the server; also in the reply's metadata.
        rpc: Method, such as ``CertificateService/Sign``.
        peer: Network address of the caller.
        actor: Who asked in the caller's name, as its authenticator names it; None: the
            caller itself.
    """

    request_id: str
    rpc: str
    peer: str
    actor: str | None = None


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second, as certificates have it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def configure_logging(
    log_format: LogFormat = "json", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Sends every log line of this process to one stream, as JSON or for people."""
    numeric = {"debug": 10, "info": 20, "warning": 30, "error": 40}[level]
    out = stream or sys.stdout
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(_to_json)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=out.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    # Libraries that log by the standard library say only what an operator must know.
    logging.basicConfig(level=max(numeric, logging.WARNING), stream=sys.stderr, force=True)


# Made once: `json.dumps` with arguments makes one for every line.
_encoder = json.JSONEncoder(default=str)


def _to_json(event: object, **_: object) -> str:
    return _encoder.encode(event)


class AuditLog:
    """Writes the decision lines."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("audit")

    def granted(
        self,
        origin: Origin,
        *,
        caller: str,
        authenticator: str,
        role: str,
        spiffe_id: str | None,
        names: Sequence[str],
        serial: str,
        issuer: str,
        not_after: datetime,
    ) -> None:
        """A certificate was recorded and is about to be handed out."""
        self._log.info(
            "certificate issued",
            **_common(origin, "granted"),
            caller=caller,
            authenticator=authenticator,
            role=role,
            spiffe_id=spiffe_id,
            names=list(names),
            serial=serial,
            issuer=issuer,
            not_after=utc_text(not_after),
        )

    def jwt_svid_granted(
        self,
        origin: Origin,
        *,
        caller: str,
        authenticator: str,
        role: str,
        spiffe_id: str,
        audiences: Sequence[str],
        jwt_id: str,
        key: str,
        expires_at: datetime,
    ) -> None:
        """A JWT-SVID was signed and is about to be handed out. The token itself is nowhere."""
        self._log.info(
            "JWT-SVID issued",
            **_common(origin, "granted"),
            caller=caller,
            authenticator=authenticator,
            role=role,
            spiffe_id=spiffe_id,
            audiences=list(audiences),
            jti=jwt_id,
            key=key,
            expires_at=utc_text(expires_at),
        )

    def repeated(
        self,
        origin: Origin,
        *,
        caller: str,
        authenticator: str,
        role: str,
        serial: str,
        issuer: str,
    ) -> None:
        """A certificate that was recorded before is about to be handed out again."""
        self._log.info(
            "reply repeated",
            **_common(origin, "granted"),
            caller=caller,
            authenticator=authenticator,
            role=role,
            serial=serial,
            issuer=issuer,
        )

    def refused(
        self,
        origin: Origin,
        error: MeshmintError,
        *,
        caller: str | None = None,
        authenticator: str | None = None,
        role: str | None = None,
        serial: str | None = None,
    ) -> None:
        """A request was refused; reason and violations are those that the caller is told."""
        self._log.warning(
            "request refused",
            **_common(origin, "refused"),
            caller=caller,
            authenticator=authenticator,
            role=None if role is None else _shortened(role),
            serial=serial,
            reason=error.reason,
            message=_shortened(error.message),
            violations=_first(error.violations),
        )

    def revoked(
        self,
        origin: Origin,
        *,
        caller: str,
        authenticator: str,
        serial: str,
        issuer: str,
        reason: str,
        already_revoked: bool,
    ) -> None:
        """A certificate is revoked on record; the reason is that of the first time."""
        self._log.info(
            "certificate revoked",
            **_common(origin, "granted"),
            caller=caller,
            authenticator=authenticator,
            serial=serial,
            issuer=issuer,
            reason=reason,
            already_revoked=already_revoked,
        )

    def administered(self, origin: Origin, *, caller: str, authenticator: str, change: str) -> None:
        """An operator changed something."""
        self._log.info(
            "administration",
            **_common(origin, "granted"),
            caller=caller,
            authenticator=authenticator,
            change=change,
        )


def _common(origin: Origin, decision: Literal["granted", "refused"]) -> dict[str, str]:
    """What every audit line has, in this order."""
    common = {
        "type": "audit",
        "decision": decision,
        "request_id": origin.request_id,
        "rpc": origin.rpc,
        "peer": origin.peer,
    }
    if origin.actor is not None:
        common["actor"] = origin.actor
    return common


def _first(violations: Sequence[Violation]) -> list[str]:
    shown = [_shortened(f"{v.field}: {v.description}") for v in violations[:_MOST_VIOLATIONS]]
    left_out = len(violations) - len(shown)
    return [*shown, f"and {left_out} more"] if left_out else shown


def _shortened(text: str) -> str:
    if not text.isprintable():
        # In the form for people, control characters would reach the terminal.
        text = ascii(text)[1:-1]
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
