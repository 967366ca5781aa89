"""The issuer of a development service, made by the ceremony that operators use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.app import open_keyring, open_store
from meshmint_server.cli.dev.root import DevelopmentRoot
from meshmint_server.config import Config
from meshmint_server.keys import (
    KeyAttributes,
    KeyRing,
    SigningKey,
    key_algorithm_of,
    public_key_info,
)
from meshmint_server.store import IssuerRow, IssuerState, Store

__all__ = ["IssuerSummary", "ensure_issuer"]

NAME: Final = "development"


@dataclass(frozen=True, slots=True)
class IssuerSummary:
    """What to show of the issuer."""

    subject: str
    serial_number: str
    not_after: datetime
    root: str
    key: str


async def ensure_issuer(config: Config, root: DevelopmentRoot) -> IssuerSummary:
    """Makes the issuer if it is not there, and opens its key to see how it is held.

    Raises:
        MeshmintError: Key or store do not work.
    """
    async with open_store(config) as store, open_keyring(config) as keyring:
        row = await store.get_issuer(NAME)
        if row is None or row.state is not IssuerState.ACTIVE:
            row = await _make(store, keyring, root, config)
        assert row.certificate is not None  # noqa: S101 - it is active
        certificate = x509.load_der_x509_certificate(row.certificate)
        key = await keyring.open(row.key_uri, row.public_key)
        return IssuerSummary(
            subject=certificate.subject.rfc4514_string(),
            serial_number=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
            root=root.certificate.subject.rfc4514_string(),
            key=_describe(key, await key.attributes()),
        )


async def _make(store: Store, keyring: KeyRing, root: DevelopmentRoot, config: Config) -> IssuerRow:
    key = await keyring.generate(NAME, "ec-p256")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Meshmint")])
    row = IssuerRow(
        name=NAME,
        state=IssuerState.ACTIVE,
        key_uri=key.uri,
        public_key=public_key_info(key.public_key),
        certificate=root.sign(subject, key.public_key),
        chain=(),
        roots=(root.certificate.public_bytes(Encoding.DER),),
        created_at=datetime.now(UTC),
    )
    await store.put_issuer(row)
    return row


def _describe(key: SigningKey, held: KeyAttributes) -> str:
    kind = key_algorithm_of(key.public_key)
    if held.storage == "file":
        return f"{kind} in an encrypted file, {held.token}"
    facts = (
        ("generated there", held.is_local),
        ("sensitive", held.is_sensitive),
        ("not extractable", None if held.is_extractable is None else not held.is_extractable),
        ("never was", None if held.was_ever_extractable is None else not held.was_ever_extractable),
        ("only signs", held.is_sign_only),
    )
    told = ", ".join(name if fact else f"NOT {name}" for name, fact in facts if fact is not None)
    return f"{kind} inside SoftHSM: {told} (as the token tells)"
