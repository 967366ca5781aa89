"""TLS credentials of the gRPC listener, asked for at each handshake.

A renewed certificate is taken up by the next connection; none that is open is
touched, and nothing restarts. gRPC asks from threads of its own.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import structlog

from meshmint_server.issuance import Issued

__all__ = ["OwnCredentials", "file_credentials"]

log = structlog.get_logger(__name__)


class OwnCredentials:
    """A certificate that the service issued to itself."""

    def __init__(self, first: Issued) -> None:
        self._fresh: list[grpc.ServerCertificateConfiguration] = []
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _configuration(first),
            self._fetch,  # type: ignore[arg-type] # None: nothing new
        )

    def use(self, renewed: Issued) -> None:
        """Shows this one from now on."""
        self._fresh[:] = [_configuration(renewed)]

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._fresh.pop()
        except IndexError:
            return None


def _configuration(issued: Issued) -> grpc.ServerCertificateConfiguration:
    key = issued.private_key_pem or ""
    return grpc.ssl_server_certificate_configuration(
        [(key.encode(), issued.full_chain_pem.encode())]
    )


def file_credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """A certificate and its key in files that somebody else renews.

    Raises:
        OSError: One cannot be read.
    """
    watched = _WatchedPair(certificate, key)
    return grpc.dynamic_ssl_server_credentials(
        watched.read(),
        watched.read_if_changed,  # type: ignore[arg-type] # None: nothing new
    )


class _WatchedPair:
    def __init__(self, certificate: Path, key: Path) -> None:
        self._paths = (certificate, key)
        self._seen: tuple[tuple[int, int], ...] = ()

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        stats = [path.stat() for path in self._paths]
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats)

    def read(self) -> grpc.ServerCertificateConfiguration:
        self._seen = self._stamp()
        certificate, key = (path.read_bytes() for path in self._paths)
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None while nothing changed, or the change cannot be read: the old one stays."""
        try:
            return None if self._stamp() == self._seen else self.read()
        except OSError as error:
            log.warning("the TLS files cannot be read; the old ones stay", problem=str(error))
            return None
