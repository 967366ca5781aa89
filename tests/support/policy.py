"""Callers, roles and decisions for tests of policy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from meshmint_server.errors import MeshmintError
from meshmint_server.policy import (
    Attribute,
    Bounds,
    Caller,
    CertificateRequest,
    Decision,
    Names,
    Role,
    Validity,
    decide,
)
from meshmint_server.spiffe import SpiffeId, TrustDomain

NOW = datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
TRUST_DOMAIN = TrustDomain("example.org")
BOUNDS = Bounds(TRUST_DOMAIN, default_ttl=timedelta(hours=24), max_ttl=timedelta(hours=768))


def make_caller(
    namespace: str = "shop",
    service_account: str = "cart",
    *,
    spiffe_id: str | None = "spiffe://example.org/ns/shop/sa/cart",
    attributes: Mapping[str, Attribute] | None = None,
    authenticator: str = "cluster",
) -> Caller:
    """Makes a caller such as a Kubernetes authenticator would."""
    return Caller(
        authenticator=authenticator,
        subject=f"system:serviceaccount:{namespace}:{service_account}",
        attributes={
            "kubernetes.namespace": namespace,
            "kubernetes.service_account": service_account,
            **(attributes or {}),
        },
        spiffe_id=None if spiffe_id is None else SpiffeId.parse(spiffe_id),
        expires_at=NOW + timedelta(hours=1),
    )


def make_role(**fields: object) -> Role:
    """Makes a role through the one way that documents take."""
    return Role.from_document({"name": "test", "callers": [{}], "key_type": "ec", **fields})


def decide_names(
    role: Role, names: Names | None = None, *, caller: Caller | None = None
) -> Decision:
    """Decides an Issue request for names."""
    return decide(
        role,
        caller or make_caller(),
        CertificateRequest(names=names or Names()),
        now=NOW,
        bounds=BOUNDS,
    )


def decide_validity(role: Role, **validity: object) -> Decision:
    """Decides an Issue request for a validity."""
    request = CertificateRequest(validity=Validity(**validity))  # type: ignore[arg-type]
    return decide(role, make_caller(), request, now=NOW, bounds=BOUNDS)


def violations_of(error: MeshmintError) -> dict[str, str]:
    """Returns the violations' descriptions by field."""
    return {violation.field: violation.description for violation in error.violations}
