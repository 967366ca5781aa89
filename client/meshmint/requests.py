"""What is asked for: the arguments of a call, and the protobuf message made of them.

Only what cannot be sent at all is refused here; whether it is allowed is the
server's to say.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import TypedDict, TypeVar, Unpack

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.timestamp_pb2 import Timestamp

from meshmint.errors import InvalidArgument, Violation
from meshmint.keys import KeyAlgorithm, check_algorithm
from meshmint.v1 import certificate_service_pb2 as pb

__all__ = [
    "CertificateOptions",
    "CertificateRequest",
    "CsrSource",
    "IssueRequest",
    "SignRequest",
    "SvidRequest",
    "names_message",
    "new_request_id",
]

CsrSource = str | bytes | x509.CertificateSigningRequest
"""A CSR as PEM text, as PEM or DER bytes, or parsed."""

_T = TypeVar("_T")

_ALGORITHMS: dict[KeyAlgorithm, pb.KeyAlgorithm.ValueType] = {
    "ec-p256": pb.KEY_ALGORITHM_EC_P256,
    "ec-p384": pb.KEY_ALGORITHM_EC_P384,
    "ec-p521": pb.KEY_ALGORITHM_EC_P521,
    "rsa-2048": pb.KEY_ALGORITHM_RSA_2048,
    "rsa-3072": pb.KEY_ALGORITHM_RSA_3072,
    "rsa-4096": pb.KEY_ALGORITHM_RSA_4096,
    "ed25519": pb.KEY_ALGORITHM_ED25519,
}


class CertificateOptions(TypedDict, total=False):
    """What a certificate is to hold, and how long to wait for it. All optional.

    Attributes:
        common_name: Subject common name; also becomes a DNS or e-mail SAN.
        dns_names: DNS names.
        ip_addresses: IPv4 or IPv6 addresses.
        uris: URIs, at most one of them a SPIFFE ID.
        email_addresses: E-mail addresses.
        other_names: otherName SANs as (object identifier, text).
        subject_serial_number: The subject's serialNumber attribute (2.5.4.5).
        user_ids: Subject UID attributes (0.9.2342.19200300.100.1.1).
        exclude_common_name_from_sans: Keeps the common name out of the SANs.
        ttl: Lifetime from now on; not together with ``not_after``.
        not_after: Exact end, with a time zone.
        not_before: Exact start, with a time zone.
        timeout: Seconds for this call in place of the client's time-out.
        request_id: At least 128 random bits of your own, as text. The same id with the very
            same request gets the same certificate again, if the first one is on record; without
            it the client makes one for each call.
    """

    common_name: str
    dns_names: Sequence[str]
    ip_addresses: Sequence[str | IPv4Address | IPv6Address]
    uris: Sequence[str]
    email_addresses: Sequence[str]
    other_names: Sequence[tuple[str, str]]
    subject_serial_number: str
    user_ids: Sequence[str]
    exclude_common_name_from_sans: bool
    ttl: timedelta | None
    not_after: datetime | None
    not_before: datetime | None
    timeout: float | None
    request_id: str


# One of many requests is itself and no other, though another asks for the same: they compare
# by identity, and a dict can hold what each of them is for.


@dataclass(frozen=True, slots=True, eq=False)
class SvidRequest:
    """One request of many, with the arguments of ``request_svid``.

    Attributes:
        role: Name of the role; empty if exactly one fits the caller.
        key_algorithm: Kind of key; the role must allow it.
        spiffe_id: The SPIFFE ID wanted; None: the caller's own.
        dns_names: DNS names wanted beside it.
        ttl: Lifetime wanted; None: the role's.
        timeout: Seconds for this request in place of the client's time-out.
    """

    role: str = ""
    key_algorithm: KeyAlgorithm = "ec-p256"
    spiffe_id: str | None = None
    dns_names: Sequence[str] = ()
    ttl: timedelta | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True, eq=False, init=False)
class CertificateRequest:
    """One request of many, with the arguments of ``request_certificate``.

    Attributes:
        role: Name of the role; empty if exactly one fits the caller.
        key_algorithm: Kind of key; the role must allow it.
        options: Names and validity.
    """

    role: str
    key_algorithm: KeyAlgorithm
    options: CertificateOptions

    def __init__(
        self,
        role: str = "",
        *,
        key_algorithm: KeyAlgorithm = "ec-p256",
        **options: Unpack[CertificateOptions],
    ) -> None:
        _set(self, role=role, key_algorithm=key_algorithm, options=options)


@dataclass(frozen=True, slots=True, eq=False, init=False)
class SignRequest:
    """One request of many, with the arguments of ``sign``.

    Attributes:
        csr: PEM text, PEM or DER bytes, or a parsed CSR.
        role: Name of the role; empty if exactly one fits the caller.
        options: Validity, and names beside those of the CSR.
    """

    csr: CsrSource
    role: str
    options: CertificateOptions

    def __init__(
        self, csr: CsrSource, role: str = "", **options: Unpack[CertificateOptions]
    ) -> None:
        _set(self, csr=csr, role=role, options=options)


@dataclass(frozen=True, slots=True, eq=False, init=False)
class IssueRequest:
    """One request of many, with the arguments of ``issue``.

    Attributes:
        role: Name of the role; empty if exactly one fits the caller.
        key_algorithm: Kind of key; None: the role decides.
        options: Names and validity.
    """

    role: str
    key_algorithm: KeyAlgorithm | None
    options: CertificateOptions

    def __init__(
        self,
        role: str = "",
        *,
        key_algorithm: KeyAlgorithm | None = None,
        **options: Unpack[CertificateOptions],
    ) -> None:
        _set(self, role=role, key_algorithm=key_algorithm, options=options)


def _set(request: object, **fields: object) -> None:
    # What a frozen dataclass does itself, where the arguments are its fields.
    for name, value in fields.items():
        object.__setattr__(request, name, value)


def names_message(options: CertificateOptions) -> pb.CertificateNames:
    """The names asked for, as a message.

    Raises:
        InvalidArgument: A single string where several names are expected.
    """
    return pb.CertificateNames(
        common_name=options.get("common_name", ""),
        dns_names=_several("names.dns_names", options.get("dns_names", ())),
        ip_addresses=[
            str(address)
            for address in _several("names.ip_addresses", options.get("ip_addresses", ()))
        ],
        uris=_several("names.uris", options.get("uris", ())),
        email_addresses=_several("names.email_addresses", options.get("email_addresses", ())),
        other_names=[
            pb.OtherName(type_id=type_id, value=value)
            for type_id, value in options.get("other_names", ())
        ],
        subject_serial_number=options.get("subject_serial_number", ""),
        user_ids=_several("names.user_ids", options.get("user_ids", ())),
        exclude_common_name_from_sans=options.get("exclude_common_name_from_sans", False),
    )


def validity_message(options: CertificateOptions) -> pb.Validity:
    """The validity asked for, as a message.

    Raises:
        InvalidArgument: Both ends given, a time without a zone, or a span that
            a message cannot hold.
    """
    ttl, not_after = options.get("ttl"), options.get("not_after")
    not_before = options.get("not_before")
    if ttl is not None and not_after is not None:
        raise _refused("validity", "give either ttl or not_after, not both")
    validity = pb.Validity()
    if ttl is not None:
        validity.ttl.FromTimedelta(ttl)
    if not_after is not None:
        validity.not_after.CopyFrom(timestamp(not_after, "validity.not_after"))
    if not_before is not None:
        validity.not_before.CopyFrom(timestamp(not_before, "validity.not_before"))
    return validity


def issue_message(
    role: str, key_algorithm: KeyAlgorithm | None, options: CertificateOptions
) -> pb.IssueRequest:
    """The message of Issue."""
    if key_algorithm is not None:
        check_algorithm(key_algorithm)
    return pb.IssueRequest(
        role=role,
        names=names_message(options),
        validity=validity_message(options),
        key_algorithm=(
            pb.KEY_ALGORITHM_UNSPECIFIED if key_algorithm is None else _ALGORITHMS[key_algorithm]
        ),
        request_id=options.get("request_id") or new_request_id(),
    )


def sign_message(role: str, csr: CsrSource, options: CertificateOptions) -> pb.SignRequest:
    """The message of Sign.

    Raises:
        InvalidArgument: Bytes that start like PEM and are not text.
    """
    message = pb.SignRequest(
        role=role,
        names=names_message(options),
        validity=validity_message(options),
        request_id=options.get("request_id") or new_request_id(),
    )
    if isinstance(csr, x509.CertificateSigningRequest):
        message.csr_der = csr.public_bytes(Encoding.DER)
    elif isinstance(csr, str):
        message.csr_pem = csr
    elif csr.lstrip().startswith(b"-----BEGIN"):
        try:
            message.csr_pem = csr.decode("ascii")
        except UnicodeDecodeError as error:
            raise _refused("csr_pem", "PEM is ASCII text") from error
    else:
        message.csr_der = csr
    return message


def jwt_svid_message(
    role: str, audiences: Sequence[str], ttl: timedelta | None
) -> pb.IssueJwtSvidRequest:
    """The message of IssueJwtSvid.

    Raises:
        InvalidArgument: A single string where several audiences are expected.
    """
    message = pb.IssueJwtSvidRequest(role=role, audiences=_several("audiences", audiences))
    if ttl is not None:
        message.ttl.FromTimedelta(ttl)
    return message


def new_request_id() -> str:
    """192 random bits that make a retry of the message safe."""
    return secrets.token_urlsafe(24)


def timestamp(moment: datetime, field: str) -> Timestamp:
    """The moment as a message.

    Raises:
        InvalidArgument: It has no time zone, so that nobody can know which moment it is.
    """
    if moment.tzinfo is None:
        raise _refused(field, "the time has no time zone: use datetime.now(UTC) or tzinfo=UTC")
    message = Timestamp()
    message.FromDatetime(moment.astimezone(UTC))
    return message


def _several(field: str, values: Sequence[_T]) -> list[_T]:
    # A string is a sequence of strings: dns_names="a.example" would ask for nine names.
    if isinstance(values, str | bytes):
        name = field.removeprefix("names.")
        raise _refused(field, f"give a list, such as {name}=[{values!r}]")
    return list(values)


def _refused(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(description, violations=[Violation(field, description)])
