"""The listeners: TLS of the gRPC one, the HTTP port, the SPIFFE bundle endpoint."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from meshmint_server.config.fields import (
    HostPort,
    OptionalTcpAddress,
    PositiveDuration,
    Section,
    TcpAddress,
    WholeSeconds,
)

__all__ = ["BundleEndpointSettings", "HttpSettings", "TlsSettings"]


class TlsSettings(Section):
    """Where the gRPC listener's certificate comes from.

    Attributes:
        mode: ``own``: issued by this service itself, renewed without a restart;
            ``files``: read from files, and again whenever they change; ``none``:
            no TLS, on loopback or a unix socket only.
        dns_names: The service's names: in an own certificate, and granted to no caller.
        ip_addresses: Its addresses, likewise.
        lifetime: Lifetime of an own certificate.
        certificate: Chain file, PEM, leaf first.
        key: Key file, PEM.
    """

    mode: Literal["own", "files", "none"] = "own"
    dns_names: tuple[str, ...] = ("localhost",)
    ip_addresses: tuple[str, ...] = ()
    lifetime: PositiveDuration = timedelta(hours=24)
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _check_files(self) -> TlsSettings:
        if self.mode == "files" and not (self.certificate and self.key):
            raise ValueError("mode 'files' needs 'certificate' and 'key'")
        if self.mode != "files" and (self.certificate or self.key):
            raise ValueError("'certificate' and 'key' go with mode 'files'")
        return self


class HttpSettings(Section):
    """The HTTP port: health, metrics, CRLs, OCSP, CA certificates, trust bundle.

    Anybody who reaches it may read all of it.
    """

    listen: TcpAddress = HostPort("127.0.0.1", 8080)


class BundleEndpointSettings(Section):
    """The SPIFFE bundle endpoint: the trust bundle over HTTPS, for anybody who asks.

    Attributes:
        listen: Address, `host:port`; without it there is no bundle endpoint.
        profile: ``https_web``: with a certificate from files, of a CA that browsers
            trust; ``https_spiffe``: with an X509-SVID of the service itself,
            ``spiffe://<trust domain>/meshmint/server``, renewed without a restart.
        certificate: Chain file of profile ``https_web``, PEM, leaf first; read again
            whenever it changes.
        key: Its key file, PEM.
        path: Path of the URL.
        refresh_hint: How often consumers should look again; WatchTrustBundle tells it too.
    """

    listen: OptionalTcpAddress = None
    profile: Literal["https_web", "https_spiffe"] = "https_spiffe"
    certificate: Path | None = None
    key: Path | None = None
    path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*/?$", min_length=1)] = "/"
    refresh_hint: WholeSeconds = timedelta(minutes=5)

    @model_validator(mode="after")
    def _check_files(self) -> BundleEndpointSettings:
        has_files = self.certificate is not None or self.key is not None
        if self.listen is None:
            if has_files:
                raise ValueError("'certificate' and 'key' need 'listen'")
        elif self.profile == "https_web" and not (self.certificate and self.key):
            raise ValueError("profile 'https_web' needs 'certificate' and 'key'")
        elif self.profile != "https_web" and has_files:
            raise ValueError("'certificate' and 'key' go with profile 'https_web'")
        return self
