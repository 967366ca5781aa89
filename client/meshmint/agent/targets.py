"""What a change is written to, and what is done after it: outputs and reactions, made ready.

The one place that knows how the agent's outputs and reactions are made of settings.
Writing blocks: it is for a thread, and one at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshmint.agent.config import CertificateSettings, TemplateSettings
from meshmint.agent.identities import Identity, Picture
from meshmint.agent.outputs import Output, OutputError
from meshmint.agent.reactions import Change, Reaction, Reactor

__all__ = ["CertificateTargets", "Targets", "TemplateTargets", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """What came of one writing.

    Attributes:
        changed: Whether anything on the disk was changed.
        failures: What could not be written, and what to do.
        change: What reactions are to be told; None if nothing could be written.
        serial_number: That of the certificate; empty for a template.
    """

    changed: bool
    failures: tuple[str, ...]
    change: Change | None
    serial_number: str = ""


class Targets(Protocol):
    """Where something is delivered."""

    def part(self, picture: Picture) -> object:
        """What of the picture it is made of: as long as that is equal, it need not be written."""
        ...

    def write(self, picture: Picture) -> Written | None:
        """Writes what differs; None if there is nothing to write yet. Blocks."""
        ...

    def react(self, written: Written) -> None:
        """Has reactions follow; returns at once."""
        ...

    def close(self) -> None:
        """Lets other agents have the outputs, when the last writing is over. Blocks."""
        ...


class _Outputs:
    """Outputs that are held against other agents from the first writing on."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self.outputs = tuple(outputs)
        self._held: dict[int, contextlib.ExitStack] = {}
        self._turn = threading.Lock()
        self._is_closed = False

    def write(
        self, write: Callable[[Output], bool]
    ) -> tuple[bool, tuple[str, ...], tuple[Output, ...]]:
        """Writes each; one that fails fails alone."""
        changed, failures, done = False, [], []
        with self._turn:
            for index, output in enumerate(self.outputs):
                if self._is_closed:
                    break
                try:
                    if index not in self._held:
                        with contextlib.ExitStack() as stack:
                            stack.enter_context(output.lock())
                            self._held[index] = stack.pop_all()
                    changed |= write(output)
                    done.append(output)
                except OutputError as error:
                    # What went away may come back as something else: it is locked anew.
                    if held := self._held.pop(index, None):
                        held.close()
                    failures.append(str(error))
        return changed, tuple(failures), tuple(done)

    def close(self) -> None:
        """Lets go of all of them."""
        with self._turn:
            self._is_closed = True
            while self._held:
                self._held.popitem()[1].close()


class CertificateTargets:
    """The outputs and reactions of one certificate.

    Args:
        settings: The certificate's.
        reactor: Sees to the reactions.
    """

    def __init__(self, settings: CertificateSettings, reactor: Reactor) -> None:
        self._name = settings.name
        self._outputs = _Outputs([Output(one) for one in settings.outputs])
        self._reactions: tuple[Reaction, ...] = settings.after_change
        self._reactor = reactor
        self._last_serial = ""

    def part(self, picture: Picture) -> object:
        """The identity, and the bundles."""
        return picture.by_name.get(self._name), picture.bundles

    def write(self, picture: Picture) -> Written | None:
        """Writes every output of the certificate, if it is there and valid."""
        identity = picture.by_name.get(self._name)
        if identity is None:
            return None
        serial = f"{identity.certificate.serial_number:x}"
        changed, failures, done = self._outputs.write(
            lambda output: output.write(identity, picture.bundles)
        )
        change = self._change(identity, done)
        if not self._outputs.outputs:
            # Served on sockets alone: a new certificate is the change.
            changed = self._last_serial not in ("", serial)
            self._last_serial = serial
        return Written(changed, failures, change, serial)

    def _change(self, identity: Identity, done: tuple[Output, ...]) -> Change | None:
        return Change.of(identity, done) if done or not self._outputs.outputs else None

    def react(self, written: Written) -> None:
        """Has reactions follow what was written; what failed does not keep them waiting."""
        if written.change is not None:
            self._reactor.due(self._reactions, written.change, changed=written.changed)

    def close(self) -> None:
        """Lets other agents have the outputs."""
        self._outputs.close()


class TemplateTargets:
    """A template that sees every certificate, and its reactions.

    Args:
        settings: The template's.
        names: The certificates that it waits for before it is written first.
        reactor: Sees to the reactions.
    """

    def __init__(self, settings: TemplateSettings, names: Sequence[str], reactor: Reactor) -> None:
        self._name = settings.label
        self._output = Output(settings)
        self._outputs = _Outputs([self._output])
        self._reactions: tuple[Reaction, ...] = settings.after_change
        self._reactor = reactor
        self._missing = set(names)

    def part(self, picture: Picture) -> object:
        """All of it."""
        return picture

    def write(self, picture: Picture) -> Written | None:
        """Writes the template, once every certificate has been there."""
        self._missing -= {identity.name for identity in picture.identities}
        if self._missing:
            return None
        changed, failures, done = self._outputs.write(
            lambda output: output.write_all(picture.identities, picture.bundles)
        )
        change = Change.of_template(self._name, self._output) if done else None
        return Written(changed, failures, change)

    def react(self, written: Written) -> None:
        """Has reactions follow what was written."""
        if written.change is not None:
            self._reactor.due(self._reactions, written.change, changed=written.changed)

    def close(self) -> None:
        """Lets other agents have the output."""
        self._outputs.close()
