"""How long a request may take, and what it is told when that is over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType

from meshmint_server.errors import DeadlineTooShort

__all__ = ["Deadline"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the client stops waiting, on the monotonic clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def limit(self) -> _Limit:
        """A context that ends what runs inside at the deadline.

        Raises:
            DeadlineTooShort: On leaving it: the deadline passed.
        """
        return _Limit(self.at)


class _Limit:
    """`asyncio.timeout` with our error; every request goes through two."""

    __slots__ = ("_at", "_timeout")

    def __init__(self, at: float) -> None:
        self._at = at

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(self._at - time.monotonic())
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineTooShort(
                "The deadline passed before the certificate could be signed and recorded. "
                "Nothing was minted. Retry with a longer deadline."
            ) from None
