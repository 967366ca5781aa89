"""One PKCS#11 token, and the keys in it.

Sessions to a token die: idle time-outs, network HSMs that fail over, tokens that
are pulled. A session that failed is never used again: a new one is opened, at
worst after starting the whole module over, and the request in flight gets one
retry. If that fails too, the token is left alone for a while. Everything in
``Pkcs11Token`` runs on the module's threads; ``Pkcs11Key`` is the face that the
event loops see.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import pkcs11

from meshmint_server.keys.algorithm import (
    KeyAlgorithmName,
    PublicKey,
    SignatureAlgorithm,
    public_key_info,
)
from meshmint_server.keys.backoff import Backoff
from meshmint_server.keys.key import KeyAttributes, KeyFault
from meshmint_server.keys.pkcs11_generation import (
    Generated,
    find_or_generate_key,
    generate_key,
)
from meshmint_server.keys.pkcs11_module import PinRefused, Pkcs11Module
from meshmint_server.keys.pkcs11_objects import (
    describe,
    find_private_key,
    key_uri,
    read_attributes,
    read_public_key,
    sign_with,
)
from meshmint_server.keys.secret import SecretSource
from meshmint_server.keys.signer import Signer, run_for_callers
from meshmint_server.keys.uri import InvalidKeyUri, Pkcs11Uri

__all__ = ["Pkcs11Key", "Pkcs11Token"]

T = TypeVar("T")
_log = logging.getLogger(__name__)

# The session is fine: this request is not. A new session would not help.
_REQUEST_FAULTS: Final = (
    pkcs11.ArgumentsBad,
    pkcs11.DataInvalid,
    pkcs11.DataLenRange,
    pkcs11.FunctionNotSupported,
    pkcs11.KeySizeRange,
    pkcs11.KeyTypeInconsistent,
    pkcs11.MechanismInvalid,
    pkcs11.MechanismParamInvalid,
)
# Nothing can have been made in a session that was not there.
_NOTHING_MADE: Final = (
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
    pkcs11.UserNotLoggedIn,
)
# Faults of a key or a request: they say nothing against the token.
_KEY_REASONS: Final = frozenset(
    {
        "KEY_AMBIGUOUS",
        "KEY_ELSEWHERE",
        "KEY_MISMATCH",
        "KEY_NOT_FOUND",
        "KEY_NOT_MADE",
        "KEY_REQUEST_REFUSED",
        "KEY_UNFIT",
        "KEY_UNSUPPORTED",
    }
)


class _Open:
    """A thread's open session and the key handles found in it."""

    __slots__ = ("generation", "keys", "session")

    def __init__(self, session: pkcs11.Session, generation: int) -> None:
        self.session = session
        self.generation = generation
        self.keys: dict[Pkcs11Uri, Any] = {}


class Pkcs11Token:
    """The configured token. Blocking; for the module's threads only."""

    def __init__(self, module: Pkcs11Module, uri: Pkcs11Uri) -> None:
        if uri.pin_source is None:
            raise InvalidKeyUri("The token URI needs 'pin-source='.")
        self._module = module
        self._uri = uri.token_part
        self._pin = SecretSource.parse(uri.pin_source, "PIN")
        self._local = threading.local()
        self._slot: int | None = None
        self._facts: dict[str, object] = {}
        self._backoff = Backoff()
        self._key_backoffs: dict[Pkcs11Uri, Backoff] = {}
        self._is_restart_due = False

    def introduce(self) -> str:
        """Log in, and tell the token's label, model and serial number.

        Raises:
            KeyFault: It is not there, or does not let us in.
        """

        def read() -> str:
            self._key_session()
            return "{token} ({model}, serial {serial})".format_map(self._facts)

        return self._run(None, read)

    def open_key(self, uri: Pkcs11Uri, expected: PublicKey | None) -> tuple[Pkcs11Uri, PublicKey]:
        """Find a key, and its public half.

        Raises:
            KeyFault: No such key, several, or not the one that is expected.
        """
        return self._run(uri, partial(self._find, uri, expected))

    def sign(
        self, uri: Pkcs11Uri, public_key: PublicKey, data: bytes, algorithm: SignatureAlgorithm
    ) -> bytes:
        """Sign, with one retry in a new session if this one is dead.

        Raises:
            KeyFault: The token does not sign at present.
        """

        def attempt() -> bytes:
            return sign_with(self._key(uri), data, algorithm, public_key)

        return self._run(uri, attempt)

    @property
    def uri(self) -> Pkcs11Uri:
        """Which token it is; no key, no PIN."""
        return self._uri

    def generate(self, label: str, kind: KeyAlgorithmName) -> Generated:
        """Make a key that can only sign and never leaves the token.

        Tried again only where surely nothing was made, so that no failure leaves two keys.

        Raises:
            KeyFault: The token did not make one.
        """
        return self._make(partial(generate_key, label=label, kind=kind))

    def find_or_generate(self, label: str, kind: KeyAlgorithmName) -> Generated:
        """The key with this label; made like any other if there is none.

        Looking and making happen in one session: one whose login has ended sees no key,
        and makes none.

        Raises:
            KeyFault: The token did not make one, or the one it has cannot be used.
        """
        return self._make(partial(find_or_generate_key, label=label, kind=kind))

    def _make(self, make: Callable[[pkcs11.Session], Generated]) -> Generated:
        def attempt() -> Generated:
            self._key_session()
            session = self._token().open(rw=True)
            try:
                return make(session)
            except _NOTHING_MADE:
                raise
            except pkcs11.PKCS11Error as error:
                raise KeyFault(
                    f"The token did not make the key: {describe(error)}.", reason="KEY_NOT_MADE"
                ) from None
            finally:
                with suppress(pkcs11.PKCS11Error):
                    session.close()

        return self._run(None, attempt)

    def attributes(self, uri: Pkcs11Uri) -> KeyAttributes:
        """How the token holds a key.

        Raises:
            KeyFault: The token does not answer.
        """
        return self._run(
            uri, lambda: read_attributes(self._key_session().session.token, self._key(uri))
        )

    def _find(self, uri: Pkcs11Uri, expected: PublicKey | None) -> tuple[Pkcs11Uri, PublicKey]:
        private = self._key(uri)
        opened = self._key_session()
        told = read_public_key(opened.session, private)
        if told is None and expected is None:
            raise KeyFault(
                f"The token does not tell the public half of {uri}, and none is stored.",
                reason="KEY_UNFIT",
            )
        if told and expected and public_key_info(told) != public_key_info(expected):
            raise KeyFault(
                f"The key {uri} in the token is not the one that the issuer was made with.",
                reason="KEY_MISMATCH",
            )
        public_key = told or expected
        if public_key is None:
            raise AssertionError("unreachable")
        return key_uri(opened.session.token, private), public_key

    def _run(self, uri: Pkcs11Uri | None, attempt: Callable[[], T]) -> T:
        """Attempt, recover, retry once; then back off."""
        self._backoff.check()
        key_backoff = None if uri is None else self._key_backoffs.setdefault(uri, Backoff())
        if key_backoff is not None:
            key_backoff.check()
        try:
            result = _in_words(lambda: self._attempt_twice(attempt))
        except KeyFault as fault:
            if fault.reason in _KEY_REASONS:
                if key_backoff is not None and fault.reason != "KEY_REQUEST_REFUSED":
                    key_backoff.fail(fault)
            else:
                self._backoff.fail(fault)
                _log.error("the token does not sign: %s", fault.detail)
            raise
        self._backoff.reset()
        if key_backoff is not None:
            key_backoff.reset()
        return result

    def _attempt_twice(self, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except _REQUEST_FAULTS as error:
            raise KeyFault(
                f"The token refused the request: {describe(error)}.", reason="KEY_REQUEST_REFUSED"
            ) from None
        except PinRefused:
            raise
        except pkcs11.PKCS11Error as error:
            cause = describe(error)
        except KeyFault as fault:
            if fault.reason in _KEY_REASONS and fault.reason != "KEY_NOT_FOUND":
                raise
            # A key may be out of sight only because the login has ended.
            cause = fault.detail
        _log.warning("a PKCS#11 session is being replaced: %s", cause)
        self._recover()
        try:
            return attempt()
        except (pkcs11.PKCS11Error, KeyFault) as error:
            # A new session that fails at once: next time only starting over can help,
            # unless it is the key that is missing.
            self._drop()
            if not (isinstance(error, KeyFault) and error.reason in _KEY_REASONS):
                self._is_restart_due = True
            raise

    def _recover(self) -> None:
        """Get a working session by the cheapest way that works."""
        self._drop()
        self._module.forget_login(self._slot)
        if not self._is_restart_due and not self._module.must_restart:
            try:
                self._key_session()
            except PinRefused:
                raise
            except (pkcs11.PKCS11Error, KeyFault) as error:
                _log.warning("a new PKCS#11 session cannot be had: %s", _text(error))
            else:
                return
        if not self._module.restart():
            raise KeyFault("The module cannot be started over: another call is still inside it.")
        self._is_restart_due = False
        self._key_session()

    def _key_session(self) -> _Open:
        """This thread's session, opened and logged in if need be."""
        opened: _Open | None = getattr(self._local, "opened", None)
        if opened is not None and opened.generation == self._module.generation:
            return opened
        generation = self._module.generation
        token = self._token()
        self._slot = token.slot.slot_id
        self._facts = _facts(self._module.lib, token)
        self._module.login(token, self._pin)
        # Without a PIN: a session that python-pkcs11 logged in with would, when it is
        # closed, log out every other session of this process.
        opened = self._local.opened = _Open(token.open(), generation)
        return opened

    def _key(self, uri: Pkcs11Uri) -> Any:
        opened = self._key_session()
        key = opened.keys.get(uri)
        if key is None:
            if not _fits(uri, self._facts):
                raise KeyFault(
                    f"The key {uri} is in another token than the configured one, {self._uri}.",
                    reason="KEY_ELSEWHERE",
                )
            key = opened.keys[uri] = find_private_key(opened.session, uri)
        return key

    def _drop(self) -> None:
        """Forget this thread's session for good."""
        opened: _Open | None = getattr(self._local, "opened", None)
        self._local.opened = None
        if opened is None or opened.generation != self._module.generation:
            return
        try:
            opened.session.close()
        except pkcs11.PKCS11Error as error:
            _log.debug("closing a dead session: %s", describe(error))

    def _token(self) -> Any:
        library = self._module.lib
        matching = []
        for slot in library.get_slots(token_present=True):
            try:
                token = slot.get_token()
            except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
                continue
            if _fits(self._uri, _facts(library, token)):
                matching.append(token)
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise KeyFault(
                f"{len(matching)} tokens match {self._uri}. Add 'serial=' to the token URI.",
                reason="TOKEN_AMBIGUOUS",
            )
        raise KeyFault(
            f"The module {self._module.path} shows no token that matches {self._uri}. "
            "Check that it is connected and initialised.",
            reason="TOKEN_NOT_FOUND",
        )


class Pkcs11Key:
    """A signing key in a token."""

    def __init__(
        self,
        token: Pkcs11Token,
        module: Pkcs11Module,
        uri: Pkcs11Uri,
        public_key: PublicKey,
        timeout: float,
    ) -> None:
        self._token = token
        self._module = module
        self._uri = uri
        self._public_key = public_key
        self._timeout = timeout

    @property
    def uri(self) -> str:
        """The key URI."""
        return str(self._uri)

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._public_key

    @property
    def signer(self) -> Signer:
        """The module's threads."""
        return self._module.signer

    def sign_now(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Sign; on one of the module's threads only. See SigningKey."""
        try:
            return self._token.sign(self._uri, self._public_key, data, algorithm)
        except KeyFault as fault:
            told = fault.for_callers()
        raise told

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Sign on the module's thread; see SigningKey."""
        return await run_for_callers(
            self.signer, partial(self.sign_now, data, algorithm), self._timeout
        )

    async def attributes(self) -> KeyAttributes:
        """How the token holds it; see SigningKey."""
        return await self._module.signer.run(
            partial(self._token.attributes, self._uri), timeout=self._timeout
        )

    def __repr__(self) -> str:
        return f"Pkcs11Key({self.uri})"


def _facts(library: Any, token: Any) -> dict[str, object]:
    """What a URI's attributes are compared with, by field name."""
    slot = token.slot
    return {
        "token": token.label,
        "manufacturer": token.manufacturer_id,
        "model": token.model,
        "serial": token.serial.decode("utf-8", "replace").rstrip("\0 "),
        "slot_id": slot.slot_id,
        "slot_manufacturer": slot.manufacturer_id,
        "slot_description": slot.slot_description,
        "library_manufacturer": library.manufacturer_id,
        "library_description": library.library_description,
        "library_version": tuple(library.library_version),
    }


def _fits(uri: Pkcs11Uri, facts: dict[str, object]) -> bool:
    """Whether all that the URI says of library, slot and token is so."""
    return all(getattr(uri, name) in (None, fact) for name, fact in facts.items())


def _in_words(call: Callable[[], T]) -> T:
    """Let no PKCS#11 error out: it would carry session objects to other threads."""
    try:
        return call()
    except pkcs11.PKCS11Error as error:
        detail = f"The PKCS#11 token failed: {describe(error)}."
    raise KeyFault(detail)


def _text(error: pkcs11.PKCS11Error | KeyFault) -> str:
    return error.detail if isinstance(error, KeyFault) else describe(error)
