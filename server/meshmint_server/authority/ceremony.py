"""How an issuer comes to be: a key and a CSR, then the certificate that came back.

The key is made in its token and stays there; what travels is the CSR and the
certificates. An issuer that verifiers would refuse is refused here, with every
reason, before anything is signed with it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from meshmint_server.authority.fitness import faults_of_path
from meshmint_server.authority.locations import Locations
from meshmint_server.authority.material import read_certificates
from meshmint_server.authority.path import (
    BrokenPath,
    Path,
    anchor_of,
    find_path,
    is_self_signed,
    shown,
)
from meshmint_server.authority.rotation import RotationRules, Term
from meshmint_server.authority.states import activated, changed_meanwhile
from meshmint_server.errors import (
    InvalidRequest,
    KeyUnavailable,
    PreconditionFailed,
    StoreUnavailable,
    Violation,
)
from meshmint_server.keys import (
    KeyAlgorithmName,
    Keys,
    SigningKey,
    capture,
    default_algorithm,
    key_algorithm_of,
    public_key_info,
)
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState, Store

__all__ = ["create_csr", "import_chain"]

# Short enough for a key label with a suffix; safe in a file name and in a URI.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?")
_LONGEST_ATTRIBUTE = 64  # RFC 5280 appendix A.1, ub-organization-name and ub-common-name


async def create_csr(
    store: Store,
    keyring: Keys,
    *,
    name: str,
    algorithm: KeyAlgorithmName | str,
    trust_domain: TrustDomain,
    now: datetime,
    common_name: str | None = None,
    subject: x509.Name | None = None,
    crl_shards: int = 1,
    crl_url: str | None = None,
    locations: Locations | None = None,
    at_revision: int | None = None,
) -> tuple[IssuerRow, str]:
    """Makes an issuer that waits for its certificate: a key in the token, and its CSR.

    Called again with the name of an issuer that still waits, or that has not signed yet, it
    makes no other key and returns a CSR for the same one. The key's place is written down
    before the key is made, so that whoever is interrupted in between finds it there: one
    key in all.

    Args:
        store: Where the issuer is kept.
        keyring: Where its key is made.
        name: The issuer's name: lower-case letters, digits, '.', '_' and '-'.
        algorithm: Kind of key, such as ``ec-p256``.
        trust_domain: Becomes the CA's SPIFFE ID, which has no path.
        now: The present.
        common_name: CN of the subject; by default made of the name.
        subject: The whole subject instead. A serialNumber attribute made from the key
            is added either way, so that no two issuers have the same subject.
        crl_shards: Into how many its CRL is split, for life.
        crl_url: Base URL of the distribution points of a CRL that is split, for life.
        locations: Where the root's CRL, OCSP and certificate are. The CSR asks for them,
            and it is the root's operator who puts them into the certificate.
        at_revision: Does so only if no issuer has changed since.

    Returns:
        The issuer as it is kept, and the CSR in PEM.

    Raises:
        InvalidRequest: The name, the algorithm or the subject cannot be used.
        PreconditionFailed: The name belongs to an issuer that signs, or did.
        KeyUnavailable: The key could not be made or opened.
        StoreUnavailable: The database does not answer, or somebody else makes or changes
            an issuer at this moment.
    """
    if not _NAME.fullmatch(name):
        raise _bad_field(
            "name", "An issuer's name has 1 to 48 lower-case letters, digits, '.', '_' and '-'."
        )
    try:
        kind = KeyAlgorithmName(algorithm)
    except ValueError:
        known = ", ".join(KeyAlgorithmName)
        raise _bad_field("algorithm", f"The kind of key is one of {known}.") from None
    if crl_shards > 1 and crl_url is None:
        raise _bad_field("crl_url", "A CRL that is split needs a URL to tell its parts apart.")
    if subject is None:
        subject = _default_subject(common_name or f"Meshmint {name}", trust_domain)
    async with _alone(store):
        revision, rows = await store.load_issuers()
        if at_revision not in (None, revision):
            raise changed_meanwhile()
        row = next((one for one in rows if one.name == name), None)
        if row is None:
            # Another label for each issuer: no key of an earlier one is taken for it.
            place = keyring.place_of(f"{name}-{secrets.token_hex(3)}")
            row = IssuerRow(
                name=name,
                state=IssuerState.PENDING,
                key_uri=place,
                public_key=b"",
                certificate=None,
                chain=(),
                roots=(),
                created_at=now,
                crl_shards=crl_shards,
                crl_url=crl_url if crl_shards > 1 else None,
            )
            revision = await _put(store, row, revision)
        elif row.state not in (IssuerState.PENDING, IssuerState.NEXT):
            raise PreconditionFailed(
                f"There is or was an issuer '{name}' with a certificate. Choose another name: "
                "a new key is a new issuer.",
                reason="ISSUER_EXISTS",
            )
        if row.has_key:
            key = await keyring.open(row.key_uri, row.public_key)
        else:
            key = await keyring.find_or_generate(row.key_uri, kind)
            row = replace(row, key_uri=key.uri, public_key=public_key_info(key.public_key))
            await _put(store, row, revision)
    present = key_algorithm_of(key.public_key)
    if present is not kind:
        raise _bad_field(
            "algorithm",
            f"The issuer '{name}' has a key already, of the kind {present}.",
        )
    return row, await _sign_csr(key, subject, trust_domain, locations)


@asynccontextmanager
async def _alone(store: Store) -> AsyncIterator[None]:
    """Nobody else makes a key meanwhile: two who look for one and find none would make two."""
    leadership = store.leadership("issuer-key")
    try:
        if not await leadership.hold():
            raise StoreUnavailable(
                "Somebody else makes an issuer at this moment. Try again.",
                reason="ISSUERS_CHANGING",
            )
        yield
    finally:
        await leadership.release()


async def _put(store: Store, row: IssuerRow, revision: int) -> int:
    if not await store.put_issuer(row, at_revision=revision):
        raise changed_meanwhile()
    return revision + 1


async def import_chain(
    store: Store,
    keyring: Keys,
    material: bytes | Iterable[bytes],
    *,
    now: datetime,
    trust_domain: TrustDomain,
    rules: RotationRules | None = None,
    name: str | None = None,
    activate: bool | None = None,
    at_once: bool = False,
    allow_self_signed: bool = False,
) -> IssuerRow:
    """Takes an issuer's signed certificate with its chain and root, in any order.

    Args:
        store: Where the issuer waits.
        keyring: Opens the issuer's key, which must sign.
        material: One file's bytes or several: PEM, DER or PKCS#7.
        now: The present.
        trust_domain: Whose SPIFFE IDs will be issued.
        rules: How long a root is published before anything below it signs.
        name: The issuer; by default the one whose key is found in a certificate.
        activate: True makes it the active issuer, and retires the one before, in one
            transaction; False has it published as the next one, which does not sign; None
            makes it active if no other is. An active issuer stays active.
        at_once: Makes it active although not everybody can know its root yet.
        allow_self_signed: Takes an issuer that is its own root: for development only.

    Raises:
        InvalidRequest: It does not fit; the violations hold every reason.
        PreconditionFailed: The issuer cannot become that, or not yet.
        KeyUnavailable: The issuer's key does not answer, or does not sign.
        StoreUnavailable: The database does not answer, or the issuers have just changed.
    """
    given = read_certificates([material] if isinstance(material, bytes) else material)
    revision, rows = await store.load_issuers()
    row, certificate = _ours(given, rows, name)
    _refuse_state(row, activate)
    try:
        path = find_path(certificate, given)
    except BrokenPath as broken:
        raise _refusal(row.name, [str(broken)]) from None
    faults = faults_of_path(path, trust_domain, now)
    if is_self_signed(certificate) and not allow_self_signed:
        faults.insert(
            0,
            f"{shown(certificate)} is self-signed. An issuer is signed by an offline root: have "
            "the CSR of 'meshmintd ca csr' signed there.",
        )
    faults += _faults_of_subject(row, certificate, rows)
    if row.state is IssuerState.ACTIVE:
        faults += _faults_of_renewal(row, path)
    if faults:
        raise _refusal(row.name, faults)
    await keyring.open(row.key_uri, row.public_key)
    roots = tuple(map(_der, path.roots))
    is_published = row.state.is_published and set(map(anchor_of, roots)) <= set(
        map(anchor_of, row.roots)
    )
    imported = replace(
        row,
        state=IssuerState.NEXT,
        certificate=_der(certificate),
        chain=tuple(map(_der, path.chain)),
        roots=roots,
        published_at=(row.published_at if is_published else None) or now,
        last_failure=None,
    )
    active = next((one for one in rows if one.state is IssuerState.ACTIVE), None)
    becomes_active = activate if activate is not None else active is None
    if becomes_active or row.state is IssuerState.ACTIVE:
        imported = activated(imported, rows, now, rules or RotationRules(), at_once=at_once)
    await _put(store, imported, revision)
    return imported


def _refuse_state(row: IssuerRow, activate: bool | None) -> None:
    if row.state is IssuerState.ACTIVE and activate is False:
        raise PreconditionFailed(
            f"The issuer '{row.name}' is active; it cannot become the next one.",
            reason="ISSUER_ACTIVE",
        )
    if row.state in (IssuerState.RETIRED, IssuerState.GONE):
        raise PreconditionFailed(
            f"The issuer '{row.name}' is {row.state.value}, and signs no more. A new key is a "
            "new issuer: begin with 'meshmintd ca csr'.",
            reason="ISSUER_RETIRED",
        )


def _ours(
    given: Iterable[x509.Certificate], rows: Sequence[IssuerRow], name: str | None
) -> tuple[IssuerRow, x509.Certificate]:
    by_key = {row.public_key: row for row in rows if row.has_key}
    found = [
        (by_key[key], certificate)
        for certificate in given
        if (key := _public_key_of(certificate)) in by_key
    ]
    if name is not None:
        if name not in {row.name for row in rows}:
            raise _refusal(name, [f"There is no issuer '{name}'. Make it with 'meshmintd ca csr'."])
        others = sorted({row.name for row, _ in found if row.name != name})
        found = [(row, certificate) for row, certificate in found if row.name == name]
        if not found and others:
            raise _refusal(
                name, [f"The key is not that of '{name}', but that of '{', '.join(others)}'."]
            )
    if not found:
        raise _refusal(
            name,
            [
                "No certificate has the key of an issuer that was made here. Was it signed "
                "from another CSR, or is only the root in the file?"
            ],
        )
    if len(found) > 1:
        subjects = ", ".join(shown(certificate) for _, certificate in found)
        raise _refusal(
            name, [f"Several certificates have keys of issuers here: {subjects}. Give one."]
        )
    return found[0]


def _faults_of_subject(
    row: IssuerRow, certificate: x509.Certificate, rows: Iterable[IssuerRow]
) -> list[str]:
    # Verifiers look issuers up by subject; two with one subject send them astray.
    if not list(certificate.subject):
        return ["The issuer's certificate has an empty subject (RFC 5280 section 4.1.2.6)."]
    return [
        f"The issuer '{other.name}' has the subject {shown(certificate)} too. "
        "Every issuer's subject is unique: let the root keep the subject of the CSR."
        for other in rows
        if other.name != row.name and _subject_in(other) == certificate.subject
    ]


def _subject_in(row: IssuerRow) -> x509.Name | None:
    if row.certificate is None:
        return None
    try:
        return x509.load_der_x509_certificate(row.certificate).subject
    except ValueError:
        return None  # the book of issuers says so; no other must suffer for it


def _faults_of_renewal(row: IssuerRow, path: Path) -> Iterator[str]:
    """Why what the active issuer has signed would not live as long as it says."""
    known = {anchor_of(_der(root)) for root in path.roots}
    if not {anchor_of(root) for root in row.roots} <= known:
        yield (
            f"The active issuer '{row.name}' has signed below another root, which is not in what "
            "was given. A new root needs a new issuer: begin with 'meshmintd ca rotate'."
        )
    before = Term.of(row)
    ends = min(one.not_valid_after_utc for one in path.upwards)
    if before is not None and ends < before.end:
        yield (
            f"The active issuer '{row.name}' signs until {before.end:%Y-%m-%dT%H:%M:%SZ}, and this "
            f"chain ends at {ends:%Y-%m-%dT%H:%M:%SZ}: certificates of it may live longer."
        )


def _public_key_of(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return public_key_info(key)  # type: ignore[arg-type]  # any kind has this form


def _default_subject(common_name: str, trust_domain: TrustDomain) -> x509.Name:
    attributes = []
    if len(trust_domain.name) <= _LONGEST_ATTRIBUTE:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name))
    try:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    except ValueError as error:
        raise _bad_field("common_name", f"The common name cannot be used: {error}.") from None
    return x509.Name(attributes)


def _subject_of(subject: x509.Name, public_key: bytes) -> x509.Name:
    if subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER):
        return subject
    key_id = hashlib.sha256(public_key).hexdigest()[:16]
    return x509.Name([*subject, x509.NameAttribute(NameOID.SERIAL_NUMBER, key_id)])


async def _sign_csr(
    key: SigningKey, subject: x509.Name, trust_domain: TrustDomain, locations: Locations | None
) -> str:
    usages = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject_of(subject, public_key_info(key.public_key)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usages), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key), critical=False)
    )
    for extension in () if locations is None else locations.extensions():
        builder = builder.add_extension(extension, critical=False)
    algorithm = default_algorithm(key.public_key)
    unsigned = capture(
        lambda private_key, digest, padding: builder.sign(private_key, digest, rsa_padding=padding),
        key.public_key,
        algorithm,
    )
    csr = x509.load_der_x509_csr(unsigned.assemble(await key.sign(unsigned.data, algorithm)))
    if not csr.is_signature_valid:
        raise KeyUnavailable("The key made a signature that its public key does not confirm.")
    return csr.public_bytes(Encoding.PEM).decode("ascii")


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _bad_field(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(description, violations=[Violation(field, description)])


def _refusal(name: str | None, faults: list[str]) -> InvalidRequest:
    of = f" of '{name}'" if name else ""
    return InvalidRequest(
        f"The certificate{of} was not imported. " + " ".join(faults),
        reason="CHAIN_REFUSED",
        violations=[Violation("chain", fault) for fault in faults],
    )
