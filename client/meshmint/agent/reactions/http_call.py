"""Makes an HTTP call, straight to where the URL says: no proxy, no redirect."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import httpx

from meshmint.agent.reactions.failure import AttemptFailed, printable
from meshmint.agent.reactions.settings import HttpReaction

__all__ = ["call_http"]

_KEPT_BYTES = 4096
_MOST_HEADER_BYTES = 16 * 1024


async def call_http(reaction: HttpReaction) -> None:
    """Makes the call.

    Raises:
        AttemptFailed: No answer in time, or not the one expected.
    """
    seconds = reaction.timeout.total_seconds()
    try:
        async with asyncio.timeout(seconds):
            await _call(reaction, seconds)
    except (TimeoutError, httpx.TimeoutException):
        raise AttemptFailed(f"there was no answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        raise AttemptFailed(f"there was no answer: {error or type(error).__name__}") from error


async def _call(reaction: HttpReaction, seconds: float) -> None:
    headers = dict(reaction.headers)
    for name, path in reaction.header_files.items():
        headers[name] = await asyncio.to_thread(_secret, path)
    uds = None if reaction.unix_socket is None else str(reaction.unix_socket)
    transport = httpx.AsyncHTTPTransport(verify=_trust(reaction), uds=uds, trust_env=False)
    async with (
        httpx.AsyncClient(transport=transport, trust_env=False, timeout=seconds) as client,
        client.stream(
            reaction.method, reaction.http, headers=headers, content=reaction.body
        ) as response,
    ):
        expected = reaction.expected_status
        if response.is_success if expected is None else response.status_code in expected:
            return
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) >= _KEPT_BYTES:
                break
        said = printable(bytes(body[:_KEPT_BYTES]))
        wanted = "200 to 299" if expected is None else " or ".join(map(str, expected))
        raise AttemptFailed(
            f"the answer was {response.status_code}, and {wanted} was expected",
            f"; it said: {said}" if said else "",
        )


def _trust(reaction: HttpReaction) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=reaction.ca_file)
    except FileNotFoundError:
        raise AttemptFailed(f"there is no {reaction.ca_file}: correct 'ca_file'") from None
    except (OSError, ssl.SSLError) as error:
        raise AttemptFailed(
            f"{reaction.ca_file} holds no certificates in PEM: correct 'ca_file'"
        ) from error


def _secret(path: Path) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(_MOST_HEADER_BYTES + 1)
    except OSError as error:
        raise AttemptFailed(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable() or len(data) > _MOST_HEADER_BYTES:
        raise AttemptFailed(f"{path} does not hold one line of text: put the value there alone")
    return text
