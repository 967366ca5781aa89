"""What the calls return: plain values that hold PEM and parse it when asked.

No protobuf type gets out of here, and no private key into a repr.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from meshmint.errors import AnswerRefused, MeshmintError
from meshmint.files import (
    BUNDLE_FILE,
    CERTIFICATE_FILE,
    CHAIN_FILE,
    FULL_CHAIN_FILE,
    KEY_FILE,
    Content,
    write_set,
)
from meshmint.keys import PrivateKey
from meshmint.revocation import RevocationReason

__all__ = [
    "Chain",
    "IssuedCertificate",
    "JwtSvid",
    "Outcome",
    "Revocation",
    "SignedCertificate",
    "Svid",
    "TrustBundle",
]

NO_JWT_KEYS = '{"keys":[]}'
"""A JWK set without keys: nobody is to be believed."""

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SignedCertificate:
    """A certificate for a key that the caller has.

    Attributes:
        certificate_pem: The certificate.
        chain_pem: Its issuer's certificate first, then upwards, root left out.
        trust_bundle_pem: The roots to trust.
        serial_number: Lower-case hexadecimal without separators.
        spiffe_id: The SPIFFE ID if it is an X509-SVID, else None.
        not_before: Start of the validity, UTC.
        not_after: End of the validity, UTC.
        role: The role that was used.
        issuer: Name of the issuer that signed.
        warnings: What was changed or left out of what was asked for, for people.
    """

    certificate_pem: str = field(repr=False)
    chain_pem: tuple[str, ...] = field(repr=False)
    trust_bundle_pem: tuple[str, ...] = field(repr=False)
    serial_number: str
    spiffe_id: str | None
    not_before: datetime
    not_after: datetime
    role: str
    issuer: str
    warnings: tuple[str, ...]

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The certificate, parsed.

        Raises:
            AnswerRefused: It cannot be parsed.
        """
        return _parse([self.certificate_pem])[0]

    @cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The chain, parsed.

        Raises:
            AnswerRefused: It cannot be parsed.
        """
        return _parse(self.chain_pem)

    @cached_property
    def trust_bundle(self) -> tuple[x509.Certificate, ...]:
        """The roots, parsed.

        Raises:
            AnswerRefused: They cannot be parsed.
        """
        return _parse(self.trust_bundle_pem)

    @property
    def full_chain_pem(self) -> str:
        """The certificate and its chain, as a TLS server or client presents them."""
        return _joined([self.certificate_pem, *self.chain_pem])

    def expires_in(self, now: datetime | None = None) -> timedelta:
        """What is left of the validity; negative once it is over."""
        return self.not_after - (now or datetime.now(UTC))

    def write_files(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Writes the set atomically, file by file; makes the directory if missing.

        The files are ``cert.pem``, ``chain.pem``, ``fullchain.pem`` (both in
        one), ``bundle.pem`` and, where the result holds a private key,
        ``key.pem``, which only its owner can read.

        Returns:
            The paths.

        Raises:
            OSError: Something cannot be written; then no file was changed, unless
                renaming itself failed.
        """
        return write_set(directory, self._files())

    def _files(self) -> dict[str, Content]:
        return {
            CERTIFICATE_FILE: Content(_joined([self.certificate_pem])),
            CHAIN_FILE: Content(_joined(self.chain_pem)),
            FULL_CHAIN_FILE: Content(self.full_chain_pem),
            BUNDLE_FILE: Content(_joined(self.trust_bundle_pem)),
        }


@dataclass(frozen=True)
class IssuedCertificate(SignedCertificate):
    """A certificate together with its private key.

    Attributes:
        private_key_pem: The private key, PKCS#8, not encrypted. Not in the repr.
    """

    private_key_pem: str = field(repr=False)

    @cached_property
    def private_key(self) -> PrivateKey:
        """The private key, parsed.

        Raises:
            AnswerRefused: It cannot be parsed, or is of a kind that was not asked for.
        """
        try:
            key = load_pem_private_key(self.private_key_pem.encode("ascii"), None)
        except (ValueError, TypeError) as error:
            raise AnswerRefused("the private key in the answer cannot be parsed") from error
        if not isinstance(key, PrivateKey):
            raise AnswerRefused("the private key in the answer is of an unknown kind")
        return key

    def _files(self) -> dict[str, Content]:
        # The key goes first: a reader that sees the new certificate then finds its key.
        return {KEY_FILE: Content(self.private_key_pem, is_private=True), **super()._files()}


@dataclass(frozen=True)
class Svid(IssuedCertificate):
    """An X509-SVID with its private key, which was made here and never travelled.

    Attributes:
        spiffe_id: The SPIFFE ID.
    """

    spiffe_id: str


@dataclass(frozen=True)
class Outcome(Generic[Request, Result]):
    """What became of one request of many.

    Attributes:
        request: The very object that was given.
    """

    request: Request
    _outcome: Result | MeshmintError

    @property
    def error(self) -> MeshmintError | None:
        """Why there is no certificate; None if there is one."""
        return self._outcome if isinstance(self._outcome, MeshmintError) else None

    def result(self) -> Result:
        """The certificate, checked as that of a single call.

        Raises:
            MeshmintError: There is none; this is ``error``.
        """
        if isinstance(self._outcome, MeshmintError):
            raise self._outcome
        return self._outcome


@dataclass(frozen=True)
class JwtSvid:
    """A JWT-SVID: whoever has the token is taken for the caller by its audiences.

    Attributes:
        token: The token itself, a JWS in compact serialisation. Not in the repr.
        spiffe_id: The caller's SPIFFE ID, claim ``sub``.
        audiences: Who is to accept it, claim ``aud``.
        issued_at: When it was issued, UTC.
        expires_at: When it expires, UTC.
        role: The role that was used.
        jwt_id: Its id in the service's audit log, claim ``jti``.
        warnings: What was changed of what was asked for, for people.
    """

    token: str = field(repr=False)
    spiffe_id: str
    audiences: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime
    role: str
    jwt_id: str
    warnings: tuple[str, ...]

    def expires_in(self, now: datetime | None = None) -> timedelta:
        """What is left of the lifetime; negative once it is over."""
        return self.expires_at - (now or datetime.now(UTC))

    def write_file(self, path: str | os.PathLike[str]) -> Path:
        """Writes the token into one file that only its owner can read, atomically.

        The directory is made if it is missing.

        Raises:
            OSError: It cannot be written; then the file is as it was.
        """
        target = Path(path)
        (written,) = write_set(target.parent, {target.name: Content(self.token, is_private=True)})
        return written


@dataclass(frozen=True)
class Chain:
    """An issuer's chain and the roots: what a verifier and a server need beside the leaf.

    Attributes:
        issuer: Name of the issuer.
        chain_pem: The issuer's certificate first, then upwards, root left out.
        trust_bundle_pem: The roots to trust.
        trust_domain: The trust domain, such as ``example.org``.
        not_after: When the issuer's certificate expires, UTC.
        jwt_keys: The keys to trust for JWT-SVIDs: a JWK set, JSON.
    """

    issuer: str
    chain_pem: tuple[str, ...] = field(repr=False)
    trust_bundle_pem: tuple[str, ...] = field(repr=False)
    trust_domain: str
    not_after: datetime
    jwt_keys: str = field(default=NO_JWT_KEYS, repr=False)

    @cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The chain, parsed.

        Raises:
            AnswerRefused: It cannot be parsed.
        """
        return _parse(self.chain_pem)

    @cached_property
    def trust_bundle(self) -> tuple[x509.Certificate, ...]:
        """The roots, parsed.

        Raises:
            AnswerRefused: They cannot be parsed.
        """
        return _parse(self.trust_bundle_pem)

    def write_files(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Writes ``chain.pem`` and ``bundle.pem`` atomically, file by file.

        Raises:
            OSError: Something cannot be written.
        """
        return write_set(
            directory,
            {
                CHAIN_FILE: Content(_joined(self.chain_pem)),
                BUNDLE_FILE: Content(_joined(self.trust_bundle_pem)),
            },
        )


@dataclass(frozen=True)
class TrustBundle:
    """The roots and keys to trust in one trust domain; replaces every bundle before it.

    Attributes:
        trust_domain: The trust domain, such as ``example.org``.
        trust_bundle_pem: The roots: those in use, and those that will be.
        sequence: Grows whenever the set of roots or keys changes.
        refresh_hint: How often those should look again who do not watch but poll.
        federated_trust_domains: The other trust domains whose bundles can be watched.
        jwt_keys: The keys to trust for JWT-SVIDs: a JWK set, JSON.
    """

    trust_domain: str
    trust_bundle_pem: tuple[str, ...] = field(repr=False)
    sequence: int
    refresh_hint: timedelta
    federated_trust_domains: tuple[str, ...] = ()
    jwt_keys: str = field(default=NO_JWT_KEYS, repr=False)

    @cached_property
    def trust_bundle(self) -> tuple[x509.Certificate, ...]:
        """The roots, parsed.

        Raises:
            AnswerRefused: They cannot be parsed.
        """
        return _parse(self.trust_bundle_pem)

    def write_file(self, path: str | os.PathLike[str]) -> Path:
        """Writes the roots into one file, PEM, mode 0644, atomically.

        A reader sees the old bundle or the new one, and never half of one. The
        directory is made if it is missing.

        Raises:
            OSError: It cannot be written; then the file is as it was.
        """
        target = Path(path)
        (written,) = write_set(
            target.parent, {target.name: Content(_joined(self.trust_bundle_pem))}
        )
        return written


@dataclass(frozen=True)
class Revocation:
    """That a certificate is revoked, as it stands on record.

    Attributes:
        serial_number: Lower-case hexadecimal without separators.
        issuer: Name of the issuer.
        revocation_time: Since when, UTC.
        reason: Why, by the first request that revoked it.
        already_revoked: Whether it had been revoked before; a retry finds its own.
    """

    serial_number: str
    issuer: str
    revocation_time: datetime
    reason: RevocationReason
    already_revoked: bool


def _parse(pems: Iterable[str]) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificate(pem.encode("ascii")) for pem in pems)
    except ValueError as error:
        raise AnswerRefused("a certificate in the answer cannot be parsed") from error


def _joined(pems: Iterable[str]) -> str:
    return "".join(pem if pem.endswith("\n") else pem + "\n" for pem in pems)
