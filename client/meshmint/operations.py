"""Every call as a value: what is sent where, and what becomes of the answer.

Both kinds of client run the same operations, and differ only in how they wait.
Nothing in here does I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from meshmint.errors import AnswerRefused
from meshmint.keys import KeyAlgorithm, PrivateKey, generate_key, make_csr, private_key_pem
from meshmint.requests import (
    CertificateOptions,
    CsrSource,
    issue_message,
    names_message,
    sign_message,
)
from meshmint.results import (
    NO_JWT_KEYS,
    Chain,
    IssuedCertificate,
    Revocation,
    SignedCertificate,
    Svid,
    TrustBundle,
)
from meshmint.revocation import (
    CertificateSource,
    RevocationReason,
    reason_of,
    revoke_message,
    serial_value,
)
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint.verify import check_chain, check_public_key, check_spiffe_id

__all__ = ["Operation"]

Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=Message)

SERVICE = "/meshmint.v1.CertificateService/"


@dataclass(frozen=True, slots=True)
class Operation(Generic[Result]):
    """One call.

    Attributes:
        path: Full name of the RPC.
        request: The message to send; the same at every attempt.
        answer: Parses the bytes of the answer.
        result: Checks the answer and makes of it what the caller gets.
        needs_token: Whether the credential goes along.
        timeout: Seconds for the call in place of the client's time-out.
    """

    path: str
    request: Message
    answer: Callable[[bytes], Any]
    result: Callable[[Any], Result]
    needs_token: bool = True
    timeout: float | None = None


def issue(
    role: str, key_algorithm: KeyAlgorithm | None, options: CertificateOptions
) -> Operation[IssuedCertificate]:
    """Issue: the server makes the key pair."""

    def result(answer: pb.IssueResponse) -> IssuedCertificate:
        issued = IssuedCertificate(**_fields(answer), private_key_pem=answer.private_key)
        _check(issued, issued.private_key.public_key())
        return issued

    return Operation(
        SERVICE + "Issue",
        issue_message(role, key_algorithm, options),
        pb.IssueResponse.FromString,
        result,
        timeout=options.get("timeout"),
    )


def sign(csr: CsrSource, role: str, options: CertificateOptions) -> Operation[SignedCertificate]:
    """Sign: the caller has key and CSR."""
    request = sign_message(role, csr, options)

    def result(answer: pb.SignResponse) -> SignedCertificate:
        signed = SignedCertificate(**_fields(answer))
        _check(signed, _parse_csr(request).public_key())
        return signed

    return Operation(
        SERVICE + "Sign",
        request,
        pb.SignResponse.FromString,
        result,
        timeout=options.get("timeout"),
    )


def request_certificate(
    role: str, key_algorithm: KeyAlgorithm, options: CertificateOptions
) -> Operation[IssuedCertificate]:
    """Sign, with key and CSR made here."""
    key, request = _own_key(role, key_algorithm, options)

    def result(answer: pb.SignResponse) -> IssuedCertificate:
        issued = IssuedCertificate(**_fields(answer), private_key_pem=private_key_pem(key))
        _check(issued, key.public_key())
        return issued

    return Operation(
        SERVICE + "Sign",
        request,
        pb.SignResponse.FromString,
        result,
        timeout=options.get("timeout"),
    )


def request_svid(
    role: str, key_algorithm: KeyAlgorithm, spiffe_id: str | None, options: CertificateOptions
) -> Operation[Svid]:
    """Sign, with key and CSR made here, and only an X509-SVID accepted."""
    if spiffe_id is not None:
        options = {**options, "uris": [spiffe_id]}
    key, request = _own_key(role, key_algorithm, options)

    def result(answer: pb.SignResponse) -> Svid:
        svid = Svid(**_fields(answer), private_key_pem=private_key_pem(key))
        check_spiffe_id(svid.certificate, svid.spiffe_id or "", spiffe_id)
        _check(svid, key.public_key())
        return svid

    return Operation(
        SERVICE + "Sign",
        request,
        pb.SignResponse.FromString,
        result,
        timeout=options.get("timeout"),
    )


def revoke(
    serial_number: str | None,
    certificate: CertificateSource | None,
    reason: RevocationReason,
    private_key: PrivateKey | None,
    timeout: float | None,
) -> Operation[Revocation]:
    """Revoke; with a private key it is proven here, and no credential goes along."""
    request = revoke_message(serial_number, certificate, reason, private_key)
    asked = serial_value(request)

    def result(answer: pb.RevokeResponse) -> Revocation:
        if answer.serial_number != f"{asked:x}":
            raise AnswerRefused("the answer is about another certificate")
        return Revocation(
            serial_number=answer.serial_number,
            issuer=answer.issuer,
            revocation_time=moment(answer.revocation_time),
            reason=reason_of(answer.reason),
            already_revoked=answer.already_revoked,
        )

    return Operation(
        SERVICE + "Revoke",
        request,
        pb.RevokeResponse.FromString,
        result,
        needs_token=private_key is None,
        timeout=timeout,
    )


def get_chain(issuer: str, timeout: float | None) -> Operation[Chain]:
    """GetChain, which needs no credential and sends none."""

    def result(answer: pb.GetChainResponse) -> Chain:
        return Chain(
            issuer=answer.issuer,
            chain_pem=tuple(answer.chain),
            trust_bundle_pem=tuple(answer.trust_bundle),
            trust_domain=answer.trust_domain,
            not_after=moment(answer.not_after),
            jwt_keys=_jwt_keys(answer.jwt_keys),
        )

    return Operation(
        SERVICE + "GetChain",
        pb.GetChainRequest(issuer=issuer),
        pb.GetChainResponse.FromString,
        result,
        needs_token=False,
        timeout=timeout,
    )


def watch_trust_bundle(trust_domain: str, timeout: float | None) -> Operation[TrustBundle]:
    """WatchTrustBundle, which needs no credential and sends none; one result a message."""

    def result(answer: pb.WatchTrustBundleResponse) -> TrustBundle:
        bundle = TrustBundle(
            trust_domain=answer.trust_domain,
            trust_bundle_pem=tuple(answer.trust_bundle),
            sequence=answer.sequence,
            refresh_hint=answer.refresh_hint.ToTimedelta(),
            federated_trust_domains=tuple(answer.federated_trust_domains),
            jwt_keys=_jwt_keys(answer.jwt_keys),
        )
        if trust_domain and bundle.trust_domain != trust_domain:
            # A server that does not know of federation answers with its own.
            raise AnswerRefused("the trust bundle in the answer is that of another trust domain")
        # Parsed now: what is no bundle must not replace one. Another trust domain's may be
        # empty: it has taken back all its roots.
        if not bundle.trust_bundle and not trust_domain:
            raise AnswerRefused("the trust bundle in the answer is empty")
        return bundle

    return Operation(
        SERVICE + "WatchTrustBundle",
        pb.WatchTrustBundleRequest(trust_domain=trust_domain),
        pb.WatchTrustBundleResponse.FromString,
        result,
        needs_token=False,
        timeout=timeout,
    )


def is_newer(bundle: TrustBundle, last: TrustBundle | None) -> bool:
    """Whether a bundle replaces the last one.

    After a reconnection the same one comes again, or for a moment an older one from a
    server that does not know the newest yet.
    """
    return last is None or (bundle.sequence >= last.sequence and bundle != last)


def moment(timestamp: Timestamp) -> datetime:
    """The moment in UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)


def _jwt_keys(document: str) -> str:
    """The JWK set; empty from a server that knows of no JWT-SVIDs.

    Raises:
        AnswerRefused: It is no JWK set. What is none must not replace one.
    """
    try:
        members = json.loads(document or NO_JWT_KEYS)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict) or not isinstance(members.get("keys"), list):
        raise AnswerRefused("the keys for JWT-SVIDs in the answer are no JWK set")
    return document or NO_JWT_KEYS


def _own_key(
    role: str, algorithm: KeyAlgorithm, options: CertificateOptions
) -> tuple[PrivateKey, pb.SignRequest]:
    """Makes the key, and a request whose names stand in the CSR.

    Roles take common name and SANs from the CSR unless they say otherwise; what
    a CSR is not asked for goes beside it.
    """
    names = names_message(options)
    key = generate_key(algorithm)
    csr = make_csr(
        key,
        common_name=names.common_name,
        dns_names=names.dns_names,
        ip_addresses=names.ip_addresses,
        uris=names.uris,
        email_addresses=names.email_addresses,
    )
    beside: CertificateOptions = {**options}
    for field in ("common_name", "dns_names", "ip_addresses", "uris", "email_addresses"):
        beside.pop(field, None)  # type: ignore[misc]
    return key, sign_message(role, csr, beside)


def _check(signed: SignedCertificate, key: PublicKeyTypes) -> None:
    check_public_key(signed.certificate, key)
    check_chain(signed.certificate, signed.chain, signed.trust_bundle)
    if signed.spiffe_id:
        check_spiffe_id(signed.certificate, signed.spiffe_id, None)


def _parse_csr(request: pb.SignRequest) -> x509.CertificateSigningRequest:
    try:
        if request.WhichOneof("csr") == "csr_der":
            return x509.load_der_x509_csr(request.csr_der)
        return x509.load_pem_x509_csr(request.csr_pem.encode())
    except ValueError as error:
        raise AnswerRefused("the server signed a CSR that cannot be parsed here") from error


def _fields(answer: pb.IssueResponse | pb.SignResponse) -> dict[str, Any]:
    """The fields that both answers have, by the names of the result."""
    return {
        "certificate_pem": answer.certificate,
        "chain_pem": tuple(answer.chain),
        "trust_bundle_pem": tuple(answer.trust_bundle),
        "serial_number": answer.serial_number,
        "spiffe_id": answer.spiffe_id or None,
        "not_before": moment(answer.not_before),
        "not_after": moment(answer.not_after),
        "role": answer.role,
        "issuer": answer.issuer,
        "warnings": tuple(answer.warnings),
    }
