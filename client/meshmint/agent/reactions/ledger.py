"""Which reactions have been done for which change; kept on the disk.

An agent that is killed between writing files and reacting to it finds out here, when it
starts again, that the reaction is still due. A ledger that is lost, or cannot be read,
only means that reactions are done once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from meshmint.agent.outputs import AtomicSet, Content, OutputError
from meshmint.agent.reactions.change import Change

__all__ = ["Ledger"]

_FILE = "done.json"


class Ledger:
    """What has been done.

    Args:
        directory: Of this ledger alone, 0700; made if it is missing. None: it is kept in
            memory, and every reaction is due again after a restart.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._set = None if directory is None else AtomicSet(directory)
        self._done: dict[str, dict[str, str]] | None = None
        self._written = b"{}"

    def is_done(self, key: str, change: Change) -> bool:
        """Whether a reaction was done for this very version of the files. Blocks, once."""
        return self._entries().get(key, {}).get(change.name) == change.version

    def note(self, key: str, changes: Iterable[Change]) -> None:
        """Says that a reaction was done."""
        entries = self._entries()
        entries.setdefault(key, {}).update({change.name: change.version for change in changes})
        self._written = json.dumps(entries, sort_keys=True).encode()

    def keep(self) -> None:
        """Writes to the disk what was noted. Blocks.

        Raises:
            OutputError: It cannot be written; it is known all the same, until a restart.
        """
        if self._set is not None:
            self._set.write({_FILE: Content(self._written)})

    def _entries(self) -> dict[str, dict[str, str]]:
        if self._done is None:
            self._done = {} if self._set is None else _read(self._set)
        return self._done


def _read(stored: AtomicSet) -> dict[str, dict[str, str]]:
    try:
        document = json.loads(stored.read().get(_FILE, b"{}"))
    except (OutputError, ValueError, RecursionError):
        return {}
    if not isinstance(document, Mapping):
        return {}
    return {
        str(key): {str(name): str(version) for name, version in done.items()}
        for key, done in document.items()
        if isinstance(done, Mapping)
    }
