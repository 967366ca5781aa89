"""TLS of a listener that is not gRPC's own, whose certificate changes while it serves.

One context for good: the next handshake gets the new certificate, and no open
connection is touched. A private key is never in a file that others can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import structlog

from meshmint_server.authn.watched_file import WatchedFile

__all__ = ["CertificateFiles", "ServerTls"]

log = structlog.get_logger(__name__)

# Mozilla's "intermediate" for TLS 1.2, without the finite-field suites: nothing that
# speaks TLS 1.2 and AES-GCM needs them. Those of TLS 1.3 are not chosen here.
_CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)
_WATCH_SECONDS = 1.0


class ServerTls:
    """A server's TLS context; asks no client for a certificate.

    Args:
        protocol: What it speaks, in ALPN's words (RFC 7301).
    """

    def __init__(self, protocol: str = "http/1.1") -> None:
        self.context = _new_context()
        self.context.set_alpn_protocols([protocol])

    def use(self, chain: bytes, key: bytes) -> None:
        """Shows this certificate from now on.

        Args:
            chain: PEM, leaf first.
            key: Its private key, PEM.

        Raises:
            OSError: They cannot be used, or do not belong together; the certificate
                before stays. (``ssl.SSLError`` is one.)
        """
        with _readable_by_us_alone(chain.rstrip() + b"\n" + key) as path:
            # Tried out first: a context that has refused a key is left with half a pair.
            _load(_new_context(), path)
            _load(self.context, path)


def _load(context: ssl.SSLContext, path: str) -> None:
    # An encrypted key is refused, instead of asked about on a terminal.
    context.load_cert_chain(path, password=b"")


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


@contextlib.contextmanager
def _readable_by_us_alone(content: bytes) -> Iterator[str]:
    """A path to read it from: `ssl` takes nothing but paths.

    In memory where the system can do that; else a file of mode 0600 that is gone in
    the end.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("meshmint-tls", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:  # pragma: no cover - not on Linux
        with tempfile.NamedTemporaryFile(prefix="meshmint-tls-") as file:
            file.write(content)
            file.flush()
            yield file.name


class CertificateFiles:
    """A certificate and its key in files that somebody else renews.

    Args:
        certificate: Chain file, PEM, leaf first.
        key: Key file, PEM.
        tls: What shows them.
        listener: Whose they are, in words for the log.
    """

    def __init__(self, certificate: Path, key: Path, tls: ServerTls, listener: str) -> None:
        self._listener = listener
        self._files = (WatchedFile(certificate), WatchedFile(key))
        self._tls = tls
        self._used: tuple[bytes, bytes] | None = None

    def load(self) -> None:
        """Reads them, and uses them if they have changed.

        Raises:
            OSError: They cannot be read or used; the certificate before stays.
        """
        certificate, key = (file.read() for file in self._files)
        if (certificate, key) != self._used:
            self._tls.use(certificate, key)
            self._used = certificate, key

    async def follow(self) -> None:
        """Takes up every change, for ever."""
        complaint = ""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                self.load()
                complaint = ""
            except OSError as error:
                # Often just between the two files' replacement: once is said, not each second.
                if str(error) != complaint:
                    complaint = str(error)
                    log.warning(
                        "TLS files cannot be used; the old ones stay",
                        listener=self._listener,
                        problem=complaint,
                    )
