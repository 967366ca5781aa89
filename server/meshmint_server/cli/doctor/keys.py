"""Signing keys: a real signature with each, and how each is held.

The PIN is tried once: a token that refused it is not asked again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.errors import InvalidRequest, KeyUnavailable, Overloaded
from meshmint_server.keys import (
    KeyAttributes,
    KeyRing,
    faults_of_holding,
    key_algorithm_of,
)
from meshmint_server.keys.uri import is_pkcs11_uri
from meshmint_server.store import IssuerRow, IssuerState, JwtKeyRow, JwtKeyState

__all__ = ["check_keys"]

_TOKEN = "token"  # noqa: S105  what is looked at
_TOKEN_ADVICE = {
    "PIN_REFUSED": "Write the right PIN there. It was tried once; most tokens lock after a few "
    "tries.",
    "MODULE_NOT_FOUND": "Install the token's software, or correct 'module-path' in 'keys.pkcs11'.",
    "SECRET_UNREADABLE": "Put the PIN there, for the service's user alone (mode 0600).",
    "TOKEN_NOT_FOUND": "Connect the token, or correct 'token' in 'keys.pkcs11'. SoftHSM looks for "
    "its tokens where SOFTHSM2_CONF says, and shows none that this user cannot read.",
}
_REPLACE = (
    "Make a new issuer, whose key 'meshmintd ca csr' generates inside the token, have the root "
    "sign it, and import it."
)


_REPLACE_JWT_KEY = (
    "Have another one sign: 'meshmintd jwt-keys rotate --at-once', and then 'jwt-keys remove'."
)
_REPLACE_NEXT_JWT_KEY = (
    "Have the service make another one: 'meshmintd jwt-keys remove'. This one has signed nothing."
)


@dataclass(frozen=True, slots=True)
class _Known:
    """A key on record.

    Attributes:
        name: Whose it is, for people.
        signs: Whether its absence keeps the service from issuing.
        replace: How another one takes its place.
    """

    name: str
    key_uri: str
    public_key: bytes
    signs: bool
    replace: str


def _known(issuers: Sequence[IssuerRow], jwt_keys: Sequence[JwtKeyRow]) -> Iterator[_Known]:
    for row in issuers:
        if row.state is not IssuerState.GONE and row.has_key:
            signs = row.state is not IssuerState.RETIRED
            yield _Known(row.name, row.key_uri, row.public_key, signs, _REPLACE)
    for key in jwt_keys:
        # One that retired is only verified with.
        if key.state in (JwtKeyState.NEXT, JwtKeyState.ACTIVE):
            is_next = key.state is JwtKeyState.NEXT
            replace = _REPLACE_NEXT_JWT_KEY if is_next else _REPLACE_JWT_KEY
            yield _Known(key.key_id, key.key_uri, key.public_key, True, replace)


async def check_keys(
    keyring: KeyRing, issuers: Sequence[IssuerRow], jwt_keys: Sequence[JwtKeyRow]
) -> AsyncIterator[Finding]:
    """The token, then every issuer's key, and those for JWT-SVIDs."""
    has_token = True
    try:
        token = await keyring.find_token()
    except (KeyUnavailable, Overloaded) as fault:
        has_token = False
        yield error(
            _TOKEN,
            fault.message,
            _TOKEN_ADVICE.get(
                fault.reason, "Check the token with its maker's tools, as the service's user."
            ),
        )
    else:
        if token is not None:
            yield ok(_TOKEN, f"The login to {token} works.")
    for row in _known(issuers, jwt_keys):
        if is_pkcs11_uri(row.key_uri) and not has_token:
            yield warning(
                f"key of {row.name}",
                "It could not be tried without the token.",
                "See what is said of the token.",
            )
            continue
        async for finding in _key(keyring, row):
            yield finding


async def _key(keyring: KeyRing, row: _Known) -> AsyncIterator[Finding]:
    subject = f"key of {row.name}"
    try:
        # Opening is signing: a key is handed out only once its signature has been verified.
        key = await keyring.open(row.key_uri, row.public_key)
        held = await key.attributes()
    except (KeyUnavailable, Overloaded, InvalidRequest) as fault:
        make = error if row.signs else warning
        yield make(
            subject,
            fault.message,
            f"Bring the key {row.key_uri} back where it was, from a backup of the token or the "
            f"key directory. Or: {row.replace[0].lower()}{row.replace[1:]}",
        )
        return
    kind = key_algorithm_of(key.public_key).value
    yield ok(subject, f"This {kind} key signed, and the signature was verified.")
    for finding in _holding(subject, held, row.replace):
        yield finding


def _holding(subject: str, held: KeyAttributes, replace: str) -> Iterator[Finding]:
    if held.storage == "file":
        yield ok(
            subject,
            f"It is in an encrypted file, {held.token}: whoever has the file and its passphrase "
            "has the key. A token would not give it out.",
        )
        return
    faults = faults_of_holding(held)
    for fault in faults:
        if fault.is_grave:
            yield error(subject, fault.description, replace)
        else:
            yield warning(
                subject,
                fault.description,
                f"If that was not meant: {replace[0].lower()}{replace[1:]}",
            )
    if not faults:
        yield ok(
            subject,
            f"It was generated in the token {held.token}, cannot be read or extracted, never "
            "could, and does nothing but sign.",
        )
