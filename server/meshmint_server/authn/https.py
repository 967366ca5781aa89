"""HTTPS to the services that vouch for tokens.

TLS is always verified, redirects are never followed, proxies of the environment
are not used, and an answer has a size and a time limit. Whatever goes wrong is
VerifierUnavailable: the caller's token is not to blame for it. A service that
throttles or fails is left alone for a while.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import structlog

from meshmint_server.authn.back_off import BackOff
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.watched_file import WatchedFile
from meshmint_server.errors import VerifierUnavailable

__all__ = ["HttpsClient"]

MAX_ANSWER_BYTES = 1024 * 1024
MAX_RETRY_AFTER = 30.0
OPERATOR_RETRY_AFTER = 5.0
THROTTLED_RETRY_AFTER = 1.0
LOG_EVERY = 10.0

# Told of every request: its outcome (answered, throttled, timed_out, failed) and seconds.
Observe = Callable[[str, float], None]

_log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Connections:
    """The connections made under one CA file's content, and who is using them."""

    client: httpx.AsyncClient
    ca: bytes | None
    in_use: int = 0
    is_retired: bool = False


class _Failure(Exception):
    """A request that came to nothing.

    Attributes:
        what: What the service did, in words that go on from its name.
        where: What to look at, for the log; None is the URL.
        retry_after: Seconds to tell the caller; None leaves it to the error.
        pause: Seconds for which the service asked to be left alone, if it did.
        outcome: Its outcome, for the metrics.
        is_trouble: Whether the service is in trouble; otherwise this one answer is of no use,
            and the next may be.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        retry_after: float | None = None,
        pause: float | None = None,
        outcome: str = "failed",
        is_trouble: bool = True,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.retry_after = retry_after
        self.pause = pause
        self.outcome = outcome
        self.is_trouble = is_trouble


class HttpsClient:
    """A client for one service.

    Args:
        purpose: What the service is, in words for messages, such as
            ``the token reviewer of authenticator 'cluster'``.
        ca_file: Roots for the service's certificate, read again when changed;
            None takes the system's.
        timeout: Seconds to connect, and seconds between parts of an answer.
        observe: Told of every request, for metrics; must not raise.
        clock: The clock of pauses and of spaced-out log lines.
    """

    def __init__(
        self,
        *,
        purpose: str,
        ca_file: WatchedFile | None,
        timeout: float,
        observe: Observe,
        clock: Clock,
    ) -> None:
        self._purpose = purpose
        self._ca_file = ca_file
        self._timeout = timeout
        self._observe = observe
        self._clock = clock
        self._back_off = BackOff(trial=timeout * 2, clock=clock)
        self._connections: _Connections | None = None
        self._next_log = float("-inf")

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200 answer.

        Raises:
            VerifierUnavailable: Anything else.
        """
        return await self._request("GET", url, headers or {}, None)

    async def post_json(self, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The body of a 200 or 201 answer.

        Raises:
            VerifierUnavailable: Anything else.
        """
        return await self._request("POST", url, headers, body)

    async def close(self) -> None:
        """Closes the connections."""
        if self._connections is not None:
            connections, self._connections = self._connections, None
            await connections.client.aclose()

    async def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        wait = self._back_off.wait()
        if wait > 0:
            raise VerifierUnavailable(
                f"{self._purpose} throttles or fails, and is left alone for a moment; "
                "the token was neither accepted nor refused, try again",
                retry_after=wait,
            )
        round_ = self._back_off.begin()
        started = time.perf_counter()
        outcome = "failed"
        try:
            answer = await self._ask(method, url, headers, body)
            outcome = "answered"
        except _Failure as failure:
            outcome = failure.outcome
            if failure.is_trouble:
                self._back_off.failed(round_, failure.pause)
            else:
                self._back_off.succeeded(round_)
            raise self._unavailable(url, failure) from failure.__cause__
        finally:
            self._observe(outcome, time.perf_counter() - started)
        self._back_off.succeeded(round_)
        return answer

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        sent = {"accept": "application/json", "accept-encoding": "identity", **headers}
        if body is not None:
            sent["content-type"] = "application/json"
        try:
            async with (
                asyncio.timeout(self._timeout * 2),
                self._open_connections() as client,
                client.stream(method, url, headers=sent, content=body) as response,
            ):
                _refuse_status(response)
                return await _read(response)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Failure("did not answer in time", outcome="timed_out") from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            what = "cannot be reached"
            if isinstance(error.__cause__, httpx.HTTPError) or "certificate" in str(error).lower():
                what = "cannot be reached over TLS that its CA vouches for"
            raise _Failure(what) from error

    @asynccontextmanager
    async def _open_connections(self) -> AsyncIterator[httpx.AsyncClient]:
        connections, retired = self._current()
        if retired is not None:
            await retired.client.aclose()
        connections.in_use += 1
        try:
            yield connections.client
        finally:
            connections.in_use -= 1
            if connections.is_retired and not connections.in_use:
                await connections.client.aclose()

    def _current(self) -> tuple[_Connections, _Connections | None]:
        """The connections to use, and those to close because the CA file changed."""
        try:
            ca = self._ca_file.read() if self._ca_file else None
            current = self._connections
            if current is not None and current.ca is ca:
                return current, None
            context = _tls_context(ca)
        except (OSError, ValueError) as error:
            raise _Failure(
                "cannot be verified: its CA file cannot be read; an operator must mend it",
                where=str(self._ca_file.path) if self._ca_file else "the system's roots",
                retry_after=OPERATOR_RETRY_AFTER,
            ) from error
        self._connections = _Connections(
            httpx.AsyncClient(
                verify=context,
                timeout=httpx.Timeout(self._timeout),
                # Who asks has its own limit; waiting for a connection would be a second one.
                limits=httpx.Limits(max_connections=None),
                follow_redirects=False,
                trust_env=False,
            ),
            ca,
        )
        if current is None:
            return self._connections, None
        current.is_retired = True
        return self._connections, None if current.in_use else current

    def _unavailable(self, url: str, failure: _Failure) -> VerifierUnavailable:
        now = self._clock.monotonic()
        cause = failure.__cause__
        if now >= self._next_log:
            self._next_log = now + LOG_EVERY
            _log.warning(
                "verifier unavailable",
                verifier=self._purpose,
                where=failure.where or url,
                problem=failure.what,
                cause=f"{type(cause).__name__}: {cause}" if cause else None,
            )
        return VerifierUnavailable(
            f"{self._purpose} {failure.what}; the token was neither accepted nor refused, "
            "try again",
            retry_after=failure.retry_after,
        )


def _refuse_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 201):
        return
    if status in (401, 403):
        raise _Failure(
            f"refuses this service's own credential (HTTP {status}); an operator must mend it",
            retry_after=OPERATOR_RETRY_AFTER,
        )
    if 300 <= status < 400:
        raise _Failure(
            f"answers with a redirect (HTTP {status}), which is not followed; "
            "an operator must mend its URL",
            retry_after=OPERATOR_RETRY_AFTER,
        )
    pause = _retry_after(response.headers.get("retry-after"))
    if status == 429:
        pause = pause or THROTTLED_RETRY_AFTER
    raise _Failure(
        f"answered HTTP {status}",
        retry_after=pause,
        pause=pause,
        outcome="throttled" if status == 429 else "failed",
    )


async def _read(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _Failure("compresses its answer unasked")
    parts = bytearray()
    async for part in response.aiter_raw():
        parts += part
        if len(parts) > MAX_ANSWER_BYTES:
            # Whoever makes one object too large must not have all others left alone.
            raise _Failure(f"answers with over {MAX_ANSWER_BYTES} bytes", is_trouble=False)
    return bytes(parts)


def _tls_context(ca: bytes | None) -> ssl.SSLContext:
    """A context that trusts these roots and no others; None trusts the system's.

    Raises:
        ValueError: There is no certificate in it.
        OSError: It is not PEM.
    """
    if ca is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Verifies chain and name by default.
    # Text around the certificates may be in any encoding; it means nothing.
    context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    return context


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header in its numeric form (RFC 9110 section 10.2.3)."""
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 6:
        return None
    return min(max(float(value), 0.1), MAX_RETRY_AFTER)
