"""Client of Meshmint: X.509 certificates with SPIFFE identities over gRPC.

    from meshmint import Client, TokenFile

    with Client("meshmint.example.org:8443", token=TokenFile("/run/secrets/token")) as client:
        svid = client.request_svid()

What is named in ``__all__`` is the public interface. The other modules may
change, and ``meshmint.v1`` holds the generated messages for those who need them.

Nothing is imported before it is used: the command line must be able to set up
gRPC's logging before gRPC is loaded, and only some need all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshmint.admin import AdminClient, AsyncAdminClient
    from meshmint.admin_operations import (
        Page,
        PutRoleResult,
        Record,
        RecordFilter,
    )
    from meshmint.aio import AsyncClient
    from meshmint.client import Client
    from meshmint.errors import (
        AnswerRefused,
        ConfigurationError,
        DeadlineExceeded,
        FailedPrecondition,
        InternalError,
        InvalidArgument,
        MeshmintError,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        TokenUnavailable,
        Unauthenticated,
        Unavailable,
        Unimplemented,
        UnsafeTransport,
        Violation,
    )
    from meshmint.issuer_operations import Issuer, PreparedIssuer, Rotation
    from meshmint.keys import KeyAlgorithm, PrivateKey, generate_key, make_csr, private_key_pem
    from meshmint.requests import (
        CertificateOptions,
        CertificateRequest,
        CsrSource,
        IssueRequest,
        SignRequest,
        SvidRequest,
    )
    from meshmint.results import (
        Chain,
        IssuedCertificate,
        JwtSvid,
        Outcome,
        Revocation,
        SignedCertificate,
        Svid,
        TrustBundle,
    )
    from meshmint.retry import RetryPolicy
    from meshmint.revocation import CertificateSource, RevocationReason
    from meshmint.tls import ClientCertificate, PemSource
    from meshmint.tokens import TokenFile, TokenSource

__all__ = [
    "AdminClient",
    "AnswerRefused",
    "AsyncAdminClient",
    "AsyncClient",
    "CertificateOptions",
    "CertificateRequest",
    "CertificateSource",
    "Chain",
    "Client",
    "ClientCertificate",
    "ConfigurationError",
    "CsrSource",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "IssueRequest",
    "IssuedCertificate",
    "Issuer",
    "JwtSvid",
    "KeyAlgorithm",
    "MeshmintError",
    "NotFound",
    "Outcome",
    "Page",
    "PemSource",
    "PermissionDenied",
    "PreparedIssuer",
    "PrivateKey",
    "PutRoleResult",
    "Record",
    "RecordFilter",
    "ResourceExhausted",
    "RetryPolicy",
    "Revocation",
    "RevocationReason",
    "Rotation",
    "SignRequest",
    "SignedCertificate",
    "Svid",
    "SvidRequest",
    "TokenFile",
    "TokenSource",
    "TokenUnavailable",
    "TrustBundle",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnsafeTransport",
    "Violation",
    "generate_key",
    "make_csr",
    "private_key_pem",
]

_MODULES: dict[str, tuple[str, ...]] = {
    "admin": (
        "AdminClient",
        "AsyncAdminClient",
    ),
    "admin_operations": (
        "Page",
        "PutRoleResult",
        "Record",
        "RecordFilter",
    ),
    "aio": ("AsyncClient",),
    "client": ("Client",),
    "errors": (
        "AnswerRefused",
        "ConfigurationError",
        "DeadlineExceeded",
        "FailedPrecondition",
        "InternalError",
        "InvalidArgument",
        "MeshmintError",
        "NotFound",
        "PermissionDenied",
        "ResourceExhausted",
        "TokenUnavailable",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "UnsafeTransport",
        "Violation",
    ),
    "issuer_operations": (
        "Issuer",
        "PreparedIssuer",
        "Rotation",
    ),
    "keys": (
        "KeyAlgorithm",
        "PrivateKey",
        "generate_key",
        "make_csr",
        "private_key_pem",
    ),
    "requests": (
        "CertificateOptions",
        "CertificateRequest",
        "CsrSource",
        "IssueRequest",
        "SignRequest",
        "SvidRequest",
    ),
    "results": (
        "Chain",
        "IssuedCertificate",
        "JwtSvid",
        "Outcome",
        "Revocation",
        "SignedCertificate",
        "Svid",
        "TrustBundle",
    ),
    "retry": ("RetryPolicy",),
    "revocation": (
        "CertificateSource",
        "RevocationReason",
    ),
    "tls": (
        "ClientCertificate",
        "PemSource",
    ),
    "tokens": (
        "TokenFile",
        "TokenSource",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Imports a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
