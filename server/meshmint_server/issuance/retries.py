"""Requests that may be sent again: the reply is made once, and kept sealed for ten minutes.

A client that chose a request id gets the same reply when it sends the same request with
it once more, whichever worker or replica it reaches. The reply is sealed under a key made
of that id, and found by a tag made of it, so whoever reads the store can open none: the id
itself is never kept, logged or told.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import IssuerBook
from meshmint_server.errors import InvalidRequest, StoreUnavailable, Violation
from meshmint_server.issuance.issued import Issued
from meshmint_server.policy import Caller
from meshmint_server.store import KeptReply, ReplyRow, Store

__all__ = ["KEPT_FOR", "Attempt", "Outrun", "Retries", "Retryable", "forget_expired_replies"]

KEPT_FOR = timedelta(minutes=10)

# As many characters as 128 random bits need in hexadecimal, and more than any need.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{32,128}")
_KEY_LENGTH = 32
_NONCE_LENGTH = 12
_PART = 1000


class Outrun(Exception):
    """Another attempt with the same request id was recorded first; this one was not."""


@dataclass(frozen=True, slots=True)
class Retryable:
    """What a request is known by when it comes again.

    Attributes:
        request_id: As the client chose it. A secret between the two.
        kind: What it asks for, such as ``meshmint.v1.SignRequest``.
        body: The request without its id, as bytes.
    """

    request_id: str = field(repr=False)
    kind: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a caller at a request with an id.

    Attributes:
        tag: What its reply is found by.
    """

    tag: bytes
    _key: bytes = field(repr=False)
    _bound: bytes = field(repr=False)

    @classmethod
    def of(cls, caller: Caller, role: str, retryable: Retryable) -> Attempt:
        """Derives tag and key (HKDF, RFC 5869) from the request id, for this caller alone.

        Args:
            caller: Who asks.
            role: The role that was chosen for this attempt. A reply under another one does
                not open: the caller may have lost that role.
            retryable: What the request is known by.

        Raises:
            InvalidRequest: It is no request id.
        """
        if not _REQUEST_ID.fullmatch(retryable.request_id):
            description = (
                "use 32 to 128 of A-Z, a-z, 0-9, '_' and '-' with at least 128 random bits in "
                "them, such as 32 random hexadecimal digits; or leave it out"
            )
            raise InvalidRequest(
                f"The request id is malformed: {description}.",
                reason="REQUEST_ID_INVALID",
                violations=[Violation("request_id", description)],
            )
        derived = HKDF(
            SHA256(),
            2 * _KEY_LENGTH,
            salt=None,
            info=_framed(b"meshmint reply 1", _utf8(caller.authenticator), _utf8(caller.subject)),
        ).derive(retryable.request_id.encode("ascii"))
        body = hashlib.sha256(retryable.body).digest()
        bound = _framed(_utf8(retryable.kind), body, _utf8(role))
        return cls(derived[:_KEY_LENGTH], derived[_KEY_LENGTH:], bound)

    def seal(
        self,
        *,
        certificate: bytes,
        private_key_pem: str | None,
        warnings: tuple[str, ...],
        expires_at: datetime,
    ) -> ReplyRow:
        """What is kept of the reply beside the record (AES-256-GCM, NIST SP 800-38D)."""
        content = json.dumps({"private_key": private_key_pem, "warnings": warnings})
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        sealed = AESGCM(self._key).encrypt(nonce, content.encode(), self._context(certificate))
        return ReplyRow(self.tag, nonce + sealed, expires_at)

    def open(self, kept: KeptReply) -> tuple[str | None, tuple[str, ...]]:
        """The private key, if there is one, and the warnings of the reply.

        Raises:
            InvalidRequest: It is the reply to another request.
        """
        nonce, sealed = kept.reply.sealed[:_NONCE_LENGTH], kept.reply.sealed[_NONCE_LENGTH:]
        try:
            content = json.loads(
                AESGCM(self._key).decrypt(nonce, sealed, self._context(kept.record.certificate))
            )
        except (InvalidTag, ValueError):
            description = "this id was used for another request; choose a new one for each request"
            raise InvalidRequest(
                f"The request id cannot be used: {description}.",
                reason="REQUEST_ID_REUSED",
                violations=[Violation("request_id", description)],
            ) from None
        return content["private_key"], tuple(content["warnings"])

    def _context(self, certificate: bytes) -> bytes:
        return _framed(self._bound, certificate)


class Retries:
    """Finds replies that were made before."""

    def __init__(
        self, store: Store, issuers: IssuerBook, audit: AuditLog, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._issuers = issuers
        self._audit = audit
        self._clock = clock

    async def find(self, attempt: Attempt, caller: Caller, origin: Origin) -> Issued | None:
        """The reply to an earlier attempt, if there was one that was recorded.

        Raises:
            InvalidRequest: The earlier attempt was at another request.
            IssuerNotReady: Its issuer is gone.
            StoreUnavailable: The store does not answer.
        """
        kept = await self._store.find_reply(attempt.tag, self._clock())
        if kept is None:
            return None
        private_key, warnings = attempt.open(kept)
        record = kept.record
        certificate = x509.load_der_x509_certificate(record.certificate)
        issued = Issued(
            issuer=self._issuers.get(record.issuer),
            certificate_pem=certificate.public_bytes(Encoding.PEM).decode("ascii"),
            serial_number=record.serial_number,
            private_key_pem=private_key,
            role=record.role,
            spiffe_id=record.spiffe_id,
            not_before=record.not_before,
            not_after=record.not_after,
            warnings=warnings,
        )
        self._audit.repeated(
            origin,
            caller=caller.subject,
            authenticator=caller.authenticator,
            role=record.role,
            serial=record.serial_number,
            issuer=record.issuer,
        )
        return issued

    async def find_winner(self, attempt: Attempt, caller: Caller, origin: Origin) -> Issued:
        """The reply to the attempt that was recorded first.

        Raises:
            StoreUnavailable: It has expired meanwhile, or the store does not answer.
        """
        issued = await self.find(attempt, caller, origin)
        if issued is None:
            raise StoreUnavailable("Another attempt was first, and its reply is gone. Try again.")
        return issued


async def forget_expired_replies(
    store: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> None:
    """Deletes the replies that have expired, a part at a time. A duty of the leader.

    Raises:
        StoreUnavailable: The rest is left to the next time.
    """
    while True:
        started = time.perf_counter()
        if await store.delete_expired_replies(clock(), _PART) < _PART:
            return
        # Whoever issues gets the database for at least as long as this had it.
        await asyncio.sleep(time.perf_counter() - started)


def _framed(*parts: bytes) -> bytes:
    """The parts so that no others give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
