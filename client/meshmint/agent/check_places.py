"""What `--check` finds at the places that certificates go to; changes nothing.

Outputs, templates, reactions and sockets: whether directories, users, programs and files
are there, and whether the agent may use them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from meshmint.agent.config import AgentConfig
from meshmint.agent.finding import Finding
from meshmint.agent.outputs import (
    Output,
    OutputError,
    OutputSettings,
    Placement,
    TemplateOutput,
)
from meshmint.agent.outputs.directories import DirectoryMissing, open_directory
from meshmint.agent.outputs.owners import group_number, user_number
from meshmint.agent.outputs.settings import SetOutput
from meshmint.agent.outputs.stores import read_password
from meshmint.agent.reactions import CommandReaction, HttpReaction, Reaction
from meshmint.agent.sockets import SocketSettings

__all__ = ["check_places"]


def check_places(config: AgentConfig) -> Iterator[Finding]:
    """Everything that is found, in the order of the configuration."""
    for certificate in config.certificates:
        place = f"certificates[{certificate.name}]"
        for output in certificate.outputs:
            yield _output(f"{place}.outputs", output)
        yield from _reactions(f"{place}.after_change", certificate.after_change)
    for template in config.templates:
        yield _output("templates", template)
        yield from _reactions("templates.after_change", template.after_change)
    for socket in config.sockets:
        yield _socket(socket)


def _output(place: str, output: OutputSettings | TemplateOutput) -> Finding:
    made = Output(output)
    path, directory = made.path, made.directory
    try:
        owner = user_number(output.owner, path)
        placement = Placement(
            group=group_number(output.group, path),
            owners=frozenset() if owner is None else frozenset({owner}),
            others_may_write=output.others_may_write,
        )
        _check_what_is_read(output)
        try:
            with open_directory(directory, placement, make=False):
                _refuse_unless_writable(directory)
        except DirectoryMissing:
            parent = next(above for above in directory.parents if above.exists())
            _refuse_unless_writable(parent)
            return Finding(place, f"{path} would be written; {directory} would be made")
    except OutputError as error:
        return Finding(place, str(error), is_fault=True)
    return Finding(place, f"{path} would be written")


def _check_what_is_read(output: OutputSettings | TemplateOutput) -> None:
    if isinstance(output, TemplateOutput):
        where = output.source or output.destination
        try:
            text = output.template if output.source is None else output.source.read_text("utf-8")
            ImmutableSandboxedEnvironment().parse(text or "")
        except TemplateSyntaxError as error:
            told = f"line {error.lineno} is no template: {error.message}"
            raise OutputError(where, told) from error
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(where, f"cannot be read: {type(error).__name__}") from error
    elif isinstance(output, SetOutput) and (password := getattr(output, "password", None)):
        read_password(password)


def _refuse_unless_writable(directory: Path) -> None:
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(
            directory, "the agent may not write there: run it as a user who may, or change that"
        )


def _reactions(place: str, reactions: tuple[Reaction, ...]) -> Iterator[Finding]:
    for reaction in reactions:
        fault = ""
        if isinstance(reaction, CommandReaction):
            if shutil.which(reaction.command[0]) is None:
                fault = "there is no such program, or it cannot be run: check its path"
        elif isinstance(reaction, HttpReaction):
            files = [*reaction.header_files.values(), *filter(None, [reaction.ca_file])]
            unreadable = [file for file in files if not os.access(file, os.R_OK)]
            if unreadable:
                fault = f"{unreadable[0]} cannot be read: make it, or let the agent read it"
        told = f"{reaction}: {fault}" if fault else f"{reaction} would follow a change"
        yield Finding(place, told, is_fault=bool(fault))


def _socket(socket: SocketSettings) -> Finding:
    directory = Path(socket.path).parent
    if not directory.is_dir():
        fault = f"the directory {directory} is missing: make it"
    elif not os.access(directory, os.W_OK | os.X_OK):
        fault = f"the agent may not write to {directory}: run it as a user who may"
    else:
        told = f"{socket.path} would serve {' and '.join(socket.protocols)}"
        return Finding("sockets", told)
    return Finding("sockets", f"{socket.path}: {fault}", is_fault=True)
