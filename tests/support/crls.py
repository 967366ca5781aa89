"""CRLs for tests: issuers with keys in memory, revocations, and what others say of a CRL."""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint_server.authority import Issuer, Publication, shard_of
from meshmint_server.store import IssuerState, RevocationRow, Store
from support.pki import make_root
from support.programs import program
from support.software_key import SoftwareKey

__all__ = ["NOON", "Issuers", "findings", "make_issuer", "openssl_text", "revoke", "serials_of"]

NOON = datetime(2031, 5, 4, 12, 0, 0, tzinfo=UTC)


def make_issuer(
    name: str = "mesh-1", *, shards: int = 1, url: str | None = None, key: SoftwareKey | None = None
) -> Issuer:
    """An active issuer below a root of this test, with a `SoftwareKey`.

    Args:
        name: Its name.
        shards: Into how many its CRL is split.
        url: Base URL in leaves, and in the CRL's parts if it is split.
        key: Its key; by default a new one.
    """
    key = key or SoftwareKey()
    root = make_root()
    certificate = root.make_intermediate(key=key.private_key, path_length=0).certificate
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    pem, root_pem = (
        one.public_bytes(Encoding.PEM).decode() for one in (certificate, root.certificate)
    )
    crl_url = url if shards > 1 else None
    publication = Publication(url)
    return Issuer(
        name=name,
        state=IssuerState.ACTIVE,
        certificate=certificate,
        certificate_pem=pem,
        chain_pem=(),
        roots_pem=(root_pem,),
        trust_bundle_pem=(root_pem,),
        key=key,
        authority_key_identifier=(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        ),
        not_after=certificate.not_valid_after_utc,
        crl_shards=shards,
        crl_url=crl_url,
        locations=tuple(
            publication.locations(name, shard, crl_url).extensions() for shard in range(shards)
        ),
    )


class Issuers:
    """As much of an IssuerBook as those who make and serve CRLs look at."""

    def __init__(self, *issuers: Issuer) -> None:
        self.issuers = issuers

    def published(self) -> Sequence[Issuer]:
        return self.issuers


async def revoke(
    store: Store,
    issuer: Issuer,
    *,
    serial: int | None = None,
    at: datetime = NOON,
    not_after: datetime = NOON + timedelta(days=1),
    reason: int = 1,
) -> int:
    """Revokes a certificate of the issuer, and tells its serial number."""
    serial = secrets.randbits(159) if serial is None else serial
    await store.revoke(
        RevocationRow(
            serial_number=f"{serial:x}",
            issuer=issuer.name,
            shard=shard_of(serial, issuer.crl_shards),
            reason=reason,
            revoked_at=at,
            not_after=not_after,
            authenticator="cluster",
            caller="system:serviceaccount:meshmint-system:admin",
            request_id="1",
        )
    )
    return serial


def serials_of(der: bytes) -> set[int]:
    """What a CRL lists."""
    return {entry.serial_number for entry in x509.load_der_x509_crl(der)}


def openssl_text(der: bytes) -> str:
    """What openssl reads in a CRL."""
    shown = subprocess.run(
        [program("openssl"), "crl", "-inform", "DER", "-noout", "-text"],
        input=der, capture_output=True, check=True,
    ).stdout  # fmt: skip
    return shown.decode()


def findings(der: bytes) -> list[str]:
    """What pkilint holds against a CRL, by RFC 5280: errors only."""
    with tempfile.NamedTemporaryFile(suffix=".crl") as file:
        Path(file.name).write_bytes(der)
        linted = subprocess.run(
            [program("lint_crl"), "lint", "-t", "CRL", "-p", "PKIX", "-s", "ERROR", "-f", "JSON",
             file.name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    return [
        str(finding)
        for result in json.loads(linted.stdout)["results"]
        for finding in result["finding_descriptions"]
    ]
