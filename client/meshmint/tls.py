"""How a client reaches the server: TLS, or in the clear on this machine only.

A credential must never cross a network unencrypted: a target that is not a
unix socket or a loopback address cannot be used without TLS.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from meshmint.errors import ConfigurationError, UnsafeTransport

__all__ = ["ClientCertificate", "PemSource", "Transport", "is_local"]

PemSource = bytes | str | os.PathLike[str]
"""PEM as bytes or text, or the path of a file that holds it."""

# Where distributions keep the system's roots when OpenSSL's own default has no file.
_SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

_OPTIONS: tuple[tuple[str, int], ...] = (
    # The channel's own pause between connection attempts must not outlast ours.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Retries are counted and waited for in one place: meshmint.retry.
    ("grpc.enable_retries", 0),
    # A connection that died in silence is noticed by whoever watches.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client certificate for mutual TLS.

    Attributes:
        certificate_chain: The certificate and its chain, PEM or a path.
        private_key: Its key, PEM or a path.
    """

    certificate_chain: PemSource
    private_key: PemSource = field(repr=False)


@dataclass(frozen=True, slots=True)
class Transport:
    """Where a channel goes and how it is protected, checked.

    Attributes:
        target: gRPC target, such as ``meshmint.example.org:8443``.
        credentials: TLS credentials; None in the clear.
        options: gRPC channel options.
    """

    target: str
    credentials: grpc.ChannelCredentials | None = field(repr=False)
    options: tuple[tuple[str, str | int], ...]

    @classmethod
    def to(
        cls,
        target: str,
        *,
        root_certificates: PemSource | None = None,
        insecure: bool = False,
        client_certificate: ClientCertificate | None = None,
        server_name: str | None = None,
        options: Sequence[tuple[str, str | int]] = (),
    ) -> Transport:
        """Checks the settings and reads the files they name.

        Raises:
            UnsafeTransport: ``insecure`` for a target that is not local.
            ConfigurationError: Settings that contradict each other, or a file
                that cannot be read.
        """
        if not target:
            raise ConfigurationError("no server is given, such as meshmint.example.org:8443")
        if target.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"the server is given as host:port, without a scheme, not as {target}"
            )
        if insecure:
            if not is_local(target):
                raise UnsafeTransport(
                    f"{target} is not on this machine: without TLS only a loopback address or a "
                    "unix socket may be used, because the credential would cross the network in "
                    "the clear"
                )
            if root_certificates is not None or client_certificate is not None:
                raise ConfigurationError("insecure and certificates do not go together")
            # An http_proxy variable in the environment would take the credential elsewhere.
            local = (*_OPTIONS, ("grpc.enable_http_proxy", 0))
            return cls(target, None, (*local, *options))
        key = chain = None
        if client_certificate is not None:
            key = _read_pem(client_certificate.private_key, "the client's private key")
            chain = _read_pem(client_certificate.certificate_chain, "the client certificate")
        roots = (
            system_roots()
            if root_certificates is None
            else _read_pem(root_certificates, "the root certificates")
        )
        credentials = grpc.ssl_channel_credentials(roots, key, chain)
        named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
        return cls(target, credentials, (*_OPTIONS, *named, *options))


def is_local(target: str) -> bool:
    """Whether a gRPC target is a unix socket, a loopback address or ``localhost``.

    A target that is not understood is not local (gRPC naming: unix, dns, ipv4,
    ipv6, or no scheme).
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, colon, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6") and colon:
        return all(_is_loopback(_host(part)) for part in rest.split(","))
    if scheme == "dns" and colon and not rest.isdigit():
        if rest.startswith("//"):
            authority, slash, rest = rest[2:].partition("/")
            if authority or not slash:
                # A name server of the caller's choice may answer anything.
                return False
        return _is_loopback(_host(rest))
    return _is_loopback(_host(target))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, port = address.rpartition(":")
    return host if host and port.isdigit() and ":" not in host else address


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def system_roots() -> bytes | None:
    """The system's root certificates, PEM; None leaves the choice to gRPC's own list."""
    default = ssl.get_default_verify_paths().cafile
    for path in (os.environ.get("SSL_CERT_FILE"), default, *_SYSTEM_ROOTS):
        if path and Path(path).is_file():
            return _read_pem(Path(path), "the system's root certificates")
    return None


def _read_pem(source: PemSource, what: str) -> bytes:
    if isinstance(source, str) and source.lstrip().startswith("-----BEGIN "):
        source = source.encode("ascii", errors="replace")
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            source = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {what} from {path}: {error.strerror or error}"
            ) from error
        what = f"{what} in {path}"
    if b"-----BEGIN " not in source:
        raise ConfigurationError(f"{what}: no PEM block, '-----BEGIN …-----', is in there")
    return source
