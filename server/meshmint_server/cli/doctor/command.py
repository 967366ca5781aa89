"""The command: what was found, for people or for programs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import typer

from meshmint_server.cli.doctor.checkup import examine
from meshmint_server.cli.doctor.finding import Finding, Level
from meshmint_server.cli.terminal import out

__all__ = ["doctor"]

_STYLES = {Level.OK: "good", Level.WARNING: "careful", Level.ERROR: "bad"}
_LEVEL_WIDTH = max(map(len, Level)) + 2


def doctor(
    *,
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Checks an installation, and says what is wrong and what to do.

    Configuration, permissions, store, clocks, issuers, a real signature with every
    key, authenticators, roles, TLS. It changes nothing, and may run beside a service.
    Exit status: 0 no error (there may be warnings), 1 errors, 2 wrong command line.
    """
    # What the rooms would log is in the findings, and standard output is theirs.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    findings = asyncio.run(_collect(config))
    counts = Counter(finding.level for finding in findings)
    if as_json:
        out.print(_json(findings, counts), markup=False)
    else:
        _show(findings, counts)
    raise typer.Exit(1 if counts[Level.ERROR] else 0)


async def _collect(path: Path) -> list[Finding]:
    return [finding async for finding in examine(path)]


def _json(findings: Sequence[Finding], counts: Counter[Level]) -> str:
    return json.dumps(
        {
            "findings": [asdict(finding) for finding in findings],
            "summary": {
                "ok": counts[Level.OK],
                "warnings": counts[Level.WARNING],
                "errors": counts[Level.ERROR],
            },
        },
        indent=2,
    )


def _show(findings: Sequence[Finding], counts: Counter[Level]) -> None:
    width = max(len(finding.subject) for finding in findings) + 2
    indent = " " * (_LEVEL_WIDTH + width)
    for finding in findings:
        out.print(f"[{_STYLES[finding.level]}]{finding.level:<{_LEVEL_WIDTH}}[/]", end="")
        message = _printable(finding.message).replace("\n", f"\n{indent}")
        out.print(f"{_printable(finding.subject):<{width}}{message}", markup=False)
        if finding.advice:
            out.print(f"{indent}{_printable(finding.advice)}", markup=False, style="dim")
    errors, warnings = counts[Level.ERROR], counts[Level.WARNING]
    style = _STYLES[Level.ERROR if errors else Level.WARNING if warnings else Level.OK]
    out.print(f"[{style}]errors: {errors}, warnings: {warnings}, ok: {counts[Level.OK]}[/]")


def _printable(text: str) -> str:
    """Names come from stores and certificates: no control character reaches the terminal."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )
