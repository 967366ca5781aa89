"""How a call on a socket is refused: raised where it is found, told to the client once.

What is told never holds more of a client's own words than a line.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

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


@contextlib.asynccontextmanager
async def told(context: ServicerContext) -> AsyncIterator[None]:
    """Ends the call with what a `Refusal` says, and with INTERNAL after a bug."""
    try:
        yield
    except Refusal as refusal:
        await _abort(context, refusal.code, refusal.message)
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001, the outermost edge
        _log.exception("A call on the socket failed")
        await _abort(
            context,
            grpc.StatusCode.INTERNAL,
            "the agent failed: this is a bug, and its log says more",
        )


async def _abort(context: ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")
