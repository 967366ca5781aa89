"""Signing keys: a real signature with each, and how each is held.

The PIN is tried once: a token that refused it is not asked again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.errors import InvalidRequest, KeyUnavailable, Overloaded
from meshmint_server.keys import (
    KeyAttributes,
    KeyRing,
    faults_of_holding,
    key_algorithm_of,
)
from meshmint_server.keys.uri import is_pkcs11_uri
from meshmint_server.store import IssuerRow, IssuerState

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


async def check_keys(keyring: KeyRing, issuers: tuple[IssuerRow, ...]) -> AsyncIterator[Finding]:
    """The token, then every issuer's key."""
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
    for row in issuers:
        if row.state is IssuerState.GONE or not row.has_key:
            continue
        if is_pkcs11_uri(row.key_uri) and not has_token:
            yield warning(
                f"key of {row.name}",
                "It could not be tried without the token.",
                "See what is said of the token.",
            )
            continue
        async for finding in _key(keyring, row):
            yield finding


async def _key(keyring: KeyRing, row: IssuerRow) -> AsyncIterator[Finding]:
    subject = f"key of {row.name}"
    try:
        # Opening is signing: a key is handed out only once its signature has been verified.
        key = await keyring.open(row.key_uri, row.public_key)
        held = await key.attributes()
    except (KeyUnavailable, Overloaded, InvalidRequest) as fault:
        make = warning if row.state is IssuerState.RETIRED else error
        yield make(
            subject,
            fault.message,
            f"Bring the key {row.key_uri} back where it was, from a backup of the token or the "
            "key directory; or make a new issuer.",
        )
        return
    kind = key_algorithm_of(key.public_key).value
    yield ok(subject, f"This {kind} key signed, and the signature was verified.")
    for finding in _holding(subject, held):
        yield finding


def _holding(subject: str, held: KeyAttributes) -> Iterator[Finding]:
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
            yield error(subject, fault.description, _REPLACE)
        else:
            yield warning(
                subject,
                fault.description,
                f"If that was not meant: {_REPLACE[0].lower()}{_REPLACE[1:]}",
            )
    if not faults:
        yield ok(
            subject,
            f"It was generated in the token {held.token}, cannot be read or extracted, never "
            "could, and does nothing but sign.",
        )
