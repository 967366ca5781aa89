"""A bundle endpoint whose every word the test decides: any certificate, any bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.pki import Authority, ca_usage, extension

__all__ = ["Behaviour", "Endpoint", "answer", "leaf_of", "tls_context"]

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


def leaf_of(authority: Authority, *uris: str, is_ca: bool = False, **options: Any) -> Authority:
    """A server's certificate with these URIs, for localhost and 127.0.0.1."""
    names: list[x509.GeneralName] = [
        *map(x509.UniformResourceIdentifier, uris),
        x509.DNSName("localhost"),
        x509.IPAddress(ip_address("127.0.0.1")),
    ]
    usage = ca_usage(digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca)
    return authority.make_intermediate(
        replace=[
            extension(x509.BasicConstraints(is_ca, None), True),
            extension(usage, True),
            extension(x509.SubjectAlternativeName(names), False),
        ],
        **options,
    )


def tls_context(leaf: Authority, directory: Path) -> ssl.SSLContext:
    """A server's TLS context with this certificate."""
    file = directory / f"{leaf.certificate.serial_number:x}.pem"
    file.write_bytes(
        leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + leaf.certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def answer(body: bytes, *headers: str, status: str = "200 OK") -> Behaviour:
    """A plain answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    head = "\r\n".join(lines).encode()

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)
        await writer.drain()

    return behave


@dataclass
class Endpoint:
    """A running endpoint.

    Attributes:
        behave: What it does once a request has come.
        requests: First lines of the requests that came.
    """

    behave: Behaviour
    requests: list[bytes] = field(default_factory=list)
    url: str = ""

    @contextlib.asynccontextmanager
    async def serve(self, context: ssl.SSLContext) -> AsyncIterator[Endpoint]:
        """Serves on a port of its own until the end."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head.split(b"\r\n")[0])
                await self.behave(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/bundle"
        try:
            yield self
        finally:
            server.close()
