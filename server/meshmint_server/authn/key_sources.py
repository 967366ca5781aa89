"""Sources of verification keys: their interface, and those that need no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from meshmint_server.authn.clock import Clock
from meshmint_server.authn.key_set import InvalidKeys, KeySet
from meshmint_server.authn.watched_file import WatchedFile
from meshmint_server.errors import VerifierUnavailable

__all__ = ["FileKeys", "KeySource", "StaticKeys"]

OPERATOR_RETRY_AFTER = 5.0
LOOK_EVERY = 0.1

_log = structlog.stdlib.get_logger(__name__)


class KeySource(Protocol):
    """The keys of one issuer, which may change at any time."""

    def current(self) -> KeySet | None:
        """The keys at hand, at once; None if there are none yet or no more.

        The same object for as long as the keys do not change: what was verified
        with another object may no longer hold.
        """

    async def load(self) -> KeySet:
        """The keys, waited for if need be.

        Raises:
            VerifierUnavailable: They cannot be had.
        """

    async def newer_than(self, keys: KeySet, *, made_at: float | None) -> KeySet:
        """The keys after a look for newer ones; the same ones if it is too early to look again.

        Args:
            keys: Those at hand, which do not have the token's key.
            made_at: When the token was made, seconds since the epoch; None if that does
                not matter.

        Raises:
            VerifierUnavailable: The look failed, or it is too early to look again and the
                keys at hand may be older than the token.
        """

    async def close(self) -> None:
        """Lets go of connections and tasks."""


class StaticKeys:
    """Keys from the configuration."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    def current(self) -> KeySet:
        """The keys."""
        return self._keys

    async def load(self) -> KeySet:
        """The keys."""
        return self._keys

    async def newer_than(
        self,
        keys: KeySet,
        *,
        made_at: float | None,
    ) -> KeySet:
        """The same keys: the configuration has no newer ones."""
        return keys

    async def close(self) -> None:
        """Nothing to let go of."""


class FileKeys:
    """Keys from files, read again when one of them changes.

    They are looked at ten times a second at most, and at once for a token that
    none of the known keys signed.

    A file that is missing or broken after it was once good is an operator's
    slip: it is logged, and the last good keys stay.

    Args:
        paths: The files.
        parse: Makes keys of their contents; raises InvalidKeys.
        purpose: What the keys are, in words for messages.
        clock: The clock.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        parse: Callable[[Sequence[bytes]], KeySet],
        *,
        purpose: str,
        clock: Clock,
    ) -> None:
        self._files = tuple(WatchedFile(path) for path in paths)
        self._parse = parse
        self._purpose = purpose
        self._contents: list[bytes] = []
        self._keys: KeySet | None = None
        self._problem = ""
        self._monotonic = clock.monotonic
        self._look_at = float("-inf")

    def current(self) -> KeySet | None:
        """The keys as the files had them a moment ago."""
        now = self._monotonic()
        if now < self._look_at:
            return self._keys
        self._look_at = now + LOOK_EVERY
        return self._look()

    async def load(self) -> KeySet:
        """The keys as the files have them now."""
        keys = self._look()
        if keys is None:
            raise VerifierUnavailable(
                f"{self._purpose} cannot be read; an operator must mend their file",
                retry_after=OPERATOR_RETRY_AFTER,
            )
        return keys

    async def newer_than(
        self,
        keys: KeySet,
        *,
        made_at: float | None,
    ) -> KeySet:
        """The keys as the files have them now."""
        return self._look() or keys

    async def close(self) -> None:
        """Nothing to let go of."""

    def _look(self) -> KeySet | None:
        try:
            contents = [file.read() for file in self._files]
        except OSError as error:
            self._report(f"{error.filename or 'a key file'}: {error.strerror or error}")
            return self._keys
        if len(contents) == len(self._contents) and all(
            new is old for new, old in zip(contents, self._contents, strict=True)
        ):
            return self._keys
        self._contents = contents
        try:
            self._keys = self._parse(contents)
        except InvalidKeys as error:
            self._report(str(error))
        else:
            self._problem = ""
            if self._keys.skipped:
                _log.warning("keys skipped", keys=self._purpose, skipped=self._keys.skipped)
        return self._keys

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            _log.warning("key file unusable", keys=self._purpose, problem=problem)
