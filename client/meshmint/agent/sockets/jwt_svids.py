"""JWT-SVIDs for the workloads: asked for once, and kept for half of their life.

Tokens stay in memory, in bounded number, and appear in no message and no log.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import grpc

from meshmint.agent.identities import Identity
from meshmint.agent.sockets.refusals import Refusal
from meshmint.errors import (
    AnswerRefused,
    DeadlineExceeded,
    InvalidArgument,
    MeshmintError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = ["JwtSource", "JwtSvid", "JwtSvids"]

_PATIENCE_SECONDS = 30.0
# A token that ends sooner than this is of no use to anybody.
_LEAST_SECONDS = 30.0

# What a workload may be told of a call that failed. All that may pass by itself is
# UNAVAILABLE, which SPIFFE clients try again (SPIFFE_Workload_Endpoint section 6.1).
_CODES: tuple[tuple[type[MeshmintError], grpc.StatusCode], ...] = (
    (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (Unimplemented, grpc.StatusCode.UNIMPLEMENTED),
)
_PASSING = (Unavailable, ResourceExhausted, DeadlineExceeded, Unauthenticated)


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """One JWT-SVID.

    Attributes:
        spiffe_id: Whose it is.
        token: JWS compact serialisation.
        expires_at: When it ends.
    """

    spiffe_id: str
    token: str = field(repr=False)
    expires_at: datetime


class JwtSource(Protocol):
    """Where JWT-SVIDs come from."""

    async def fetch_jwt_svid(self, identity: Identity, audiences: Sequence[str]) -> JwtSvid:
        """A new JWT-SVID.

        Args:
            identity: Whose it shall be.
            audiences: Who it is for; at least one.

        Raises:
            MeshmintError: There is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Kept:
    svid: JwtSvid
    since: float
    renew_at: float

    def is_fresh(self, now: float) -> bool:
        # A clock that was set back may have been wrong when the token came.
        return self.since <= now < self.renew_at

    def is_useful(self, now: float) -> bool:
        return now < self.svid.expires_at.timestamp() - _LEAST_SECONDS


_Key = tuple[str, str, tuple[str, ...]]


class JwtSvids:
    """Keeps tokens, and has one call at a time for each.

    Args:
        source: Where they come from.
        max_kept: How many are kept; those longest unused go first.
        max_calls: How many calls may be under way at once.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        source: JwtSource,
        *,
        max_kept: int = 1024,
        max_calls: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._max_kept = max_kept
        self._max_calls = max_calls
        self._clock = clock
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._calls: dict[_Key, asyncio.Task[JwtSvid]] = {}

    async def get(self, identity: Identity, audiences: Sequence[str]) -> JwtSvid:
        """A token with at least half of its life left, or, while the service is away, less.

        Raises:
            Refusal: There is none.
        """
        key = (identity.name, identity.spiffe_id or "", tuple(sorted(set(audiences))))
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            if kept.is_fresh(self._clock()):
                return kept.svid
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) >= self._max_calls:
                raise Refusal(
                    grpc.StatusCode.UNAVAILABLE,
                    "the agent asks for too many JWT-SVIDs at once: try again in a moment",
                )
            call = asyncio.create_task(self._fetch(key, identity))
            self._calls[key] = call
            call.add_done_callback(lambda done: self._finished(key, done))
        try:
            # Others may be waiting for the same call.
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, "the agent is stopping: try again in a moment"
            ) from None
        except MeshmintError as error:
            if isinstance(error, _PASSING) and kept and kept.is_useful(self._clock()):
                return kept.svid
            raise _refusal(error) from error

    async def close(self) -> None:
        """Ends the calls that are under way."""
        calls = tuple(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _fetch(self, key: _Key, identity: Identity) -> JwtSvid:
        since = self._clock()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                svid = await self._source.fetch_jwt_svid(identity, key[2])
        except TimeoutError:
            raise DeadlineExceeded("the service did not answer in time") from None
        if svid.spiffe_id != identity.spiffe_id:
            raise AnswerRefused(
                f"the service made a token for {svid.spiffe_id}, not for {identity.spiffe_id}"
            )
        expires = svid.expires_at.timestamp()
        self._kept[key] = _Kept(svid, since, since + (expires - since) / 2)
        self._kept.move_to_end(key)
        while len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)
        return svid

    def _finished(self, key: _Key, done: asyncio.Task[JwtSvid]) -> None:
        del self._calls[key]
        # Everybody who waited may have hung up; then nobody else looks at the error.
        if not done.cancelled():
            done.exception()


def _refusal(error: MeshmintError) -> Refusal:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Refusal(code, error.message)
    if isinstance(error, _PASSING):
        return Refusal(
            grpc.StatusCode.UNAVAILABLE,
            f"the service gave the agent no JWT-SVID, try again: {error.message}",
        )
    return Refusal(
        grpc.StatusCode.UNAVAILABLE,
        f"the service gives the agent no JWT-SVID now, its operator must act: {error.message}",
    )
