"""How a call on a socket is refused: raised where it is found, told to the client once.

What is told never holds more of a client's own words than a line.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

__all__ = ["Refusal", "clean", "told"]

_log = logging.getLogger(__name__)

ServicerContext = grpc.aio.ServicerContext[Any, Any]


class Refusal(Exception):
    """A call that ends with a status other than OK.

    Attributes:
        code: The gRPC status code.
        message: What is wrong and what to do, for the client.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def clean(text: str, limit: int = 200) -> str:
    """Somebody else's text as one bounded line, fit for a log and a status."""
    line = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return line if len(text) <= limit else f"{line[:limit]}…"


class told:  # noqa: N801, reads as what it does
    """Within it, a `Refusal` ends the call with what it says, and a bug with INTERNAL.

    Args:
        context: Of the call.
    """

    def __init__(self, context: ServicerContext) -> None:
        self._context = context

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Refusal):
            await self._context.abort(error.code, error.message)
        elif isinstance(error, DecodeError):
            await self._context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "what came is not a request of this method"
            )
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            _log.error("A call on the socket failed", exc_info=error)
            await self._context.abort(
                grpc.StatusCode.INTERNAL, "the agent failed: this is a bug, and its log says more"
            )
