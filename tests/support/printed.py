"""Pages for operators, executed: their shell blocks run as they stand, at a terminal.

A block says in its first line where it is typed, such as ``# at the service``. What a
test cannot have as it is printed is replaced: a few paths, and the answers of people.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "blocks_of", "configuration_of", "type_lines"]

_FENCED = re.compile(r"^```(?P<language>[a-z]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^## (?P<title>.+)$", re.MULTILINE)
_PLACE = re.compile(r"# (?P<place>at [a-z ]+)\n")


@dataclass(frozen=True)
class Block:
    """Shell lines of a page.

    Attributes:
        section: Heading of the section that they stand in.
        place: Where they are typed, such as ``at the root``.
        lines: What is typed.
    """

    section: str
    place: str
    lines: str


def blocks_of(page: Path) -> Iterator[Block]:
    """Every shell block of a page, in its order; each says where it is typed."""
    text = page.read_text(encoding="utf-8")
    headings = [(found.start(), found["title"]) for found in _SECTION.finditer(text)]
    for fence in _FENCED.finditer(text):
        if fence["language"] in ("ini", "json", "text", "yaml"):
            continue
        place = _PLACE.match(fence["text"])
        assert place is not None, f"{page.name}: a block does not say where: {fence['text']}"
        section = [title for start, title in headings if start < fence.start()][-1]
        yield Block(section, place["place"], fence["text"])


def configuration_of(page: Path, language: str) -> str:
    """The one block of a page in a language that is not typed but saved."""
    (text,) = [
        fence["text"]
        for fence in _FENCED.finditer(page.read_text(encoding="utf-8"))
        if fence["language"] == language
    ]
    return text


def type_lines(
    lines: str,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    replaced: Mapping[str, object],
    answers: Mapping[str, str],
) -> str:
    """Types lines into a shell, and answers what programs ask.

    Args:
        lines: What is typed.
        cwd: Where the shell is.
        environment: Its environment; the commands of this Python come first on its PATH.
        replaced: What stands in the lines for what a test has in its place.
        answers: What people type when the terminal shows a question, such as ``pass phrase:``.

    Returns:
        What stood on the terminal. The first command that fails ends the lines, and the test.
    """
    for printed, here in replaced.items():
        lines = lines.replace(printed, str(here))
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    keyboard, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=cwd,
            env={**environment, "PATH": path},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        ) as shell:
            shown = _converse(keyboard, shell, answers)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert shell.returncode == 0, f"{lines}\n{shown}"
    return shown


def _converse(keyboard: int, shell: subprocess.Popen[bytes], answers: Mapping[str, str]) -> str:
    shown, unanswered = b"", b""
    # Our own end of the terminal stays open: what was written last is not lost with it.
    while True:
        if not select.select([keyboard], [], [], 0.05)[0]:
            if shell.poll() is not None:
                break
            continue
        piece = os.read(keyboard, 65536)
        shown += piece
        unanswered += piece
        for question, answer in answers.items():
            if unanswered.endswith(question.encode()):
                os.write(keyboard, answer.encode() + b"\n")
                unanswered = b""
    return shown.decode().replace("\r\n", "\n")
