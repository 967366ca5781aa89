"""`meshmint agent`: the renewing agent, its check, and its status.

What the agent needs beside the small client is imported here only when it is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from meshmint.cli.errors import DONE, FAILED, status_of
from meshmint.cli.view import Row, write_table
from meshmint.errors import ConfigurationError

if TYPE_CHECKING:
    from meshmint.agent.config import AgentConfig

__all__ = ["add_agent", "check_agent", "run_agent"]

_EXTRA = ("httpx", "jinja2", "prometheus_client", "pydantic", "rich", "yaml")

# Less than what Kubernetes and the systemd unit wait for; more than anything takes that is well.
_LAST_SECONDS = 20.0


def add_agent(parser: argparse.ArgumentParser) -> None:
    """Adds what can be said of the agent."""
    parser.add_argument(
        "action", nargs="?", choices=("status",), help="show how the agent fares, and end"
    )
    parser.add_argument(
        "-c",
        "--config",
        default=os.environ.get("MESHMINT_AGENT_CONFIG") or "/etc/meshmint/agent.yaml",
        metavar="FILE",
        help="its configuration (default: MESHMINT_AGENT_CONFIG, or /etc/meshmint/agent.yaml)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="get what is missing or due, write everything, and end",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="look at the configuration and all that it refers to, say what would be done, and end",
    )
    parser.add_argument("--json", action="store_true", help="with status: print JSON")


def check_agent(parsed: argparse.Namespace) -> str:
    """What does not go together; empty if everything does."""
    if sum((parsed.once, parsed.check, parsed.action == "status")) > 1:
        return "give only one of status, --once and --check"
    if parsed.json and parsed.action != "status":
        return "--json is for status"
    return ""


def run_agent(arguments: argparse.Namespace) -> int:
    """Does what was asked for; returns the exit status.

    Raises:
        MeshmintError: It cannot.
    """
    try:
        # The packages of the extra, all of them: one that is missing is told now, not in a week.
        for package in _EXTRA:
            __import__(package)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the agent needs the package {error.name}, which the client alone does not: "
            "install it with pip install 'meshmint[agent]'"
        ) from error
    from meshmint.agent.config import AgentConfig  # noqa: PLC0415 - only who asks for it has it

    path = Path(arguments.config).absolute()
    config = AgentConfig.load(path)
    if arguments.action == "status":
        return _status(config, as_json=arguments.json)
    if arguments.check:
        return _check(config, path)
    return _run(config, path, only_once=arguments.once)


def _run(config: AgentConfig, path: Path, *, only_once: bool) -> int:
    from meshmint.agent.app import Agent, OnceFailed  # noqa: PLC0415
    from meshmint.agent.limits import set_limits  # noqa: PLC0415
    from meshmint.agent.log import set_up_log  # noqa: PLC0415

    set_limits()
    set_up_log(config.log)

    async def work() -> None:
        agent = Agent(config, path, stops=_end_in_any_case)
        await (agent.once() if only_once else agent.run())

    try:
        asyncio.run(work())
    except OnceFailed as failed:
        return FAILED if failed.error is None else status_of(failed.error)
    return DONE


def _end_in_any_case() -> None:
    """Has the process end, even if a thread of it waits for a disk that hangs.

    All that the agent writes is made to be killed at any instant.
    """

    def give_up() -> None:
        text = "something hangs, perhaps a disk: the agent ends without waiting for it"
        print(f"error: {text}", file=sys.stderr, flush=True)
        os._exit(DONE)

    timer = threading.Timer(_LAST_SECONDS, give_up)
    timer.daemon = True
    timer.start()


def _check(config: AgentConfig, path: Path) -> int:
    from meshmint.agent.check import run_check  # noqa: PLC0415

    findings = run_check(config)
    rows: list[Row] = [
        (
            finding.place,
            [f"{'FAULT: ' if finding.is_fault else ''}{finding.text}"],
            "red" if finding.is_fault else "",
        )
        for finding in findings
    ]
    write_table([("file", [f"{path} can be read"], ""), *rows], sys.stdout)
    return FAILED if any(finding.is_fault for finding in findings) else DONE


def _status(config: AgentConfig, *, as_json: bool) -> int:
    from meshmint.agent.status import ask_for_status, write_status_table  # noqa: PLC0415

    status = ask_for_status(config)
    if as_json:
        print(status.model_dump_json(indent=2))
    else:
        write_status_table(status, datetime.now(UTC))
    return DONE if status.is_running else FAILED
