"""A PKCS#11 module, loaded once per process and used from its own thread.

python-pkcs11 initialises a module for single-threaded use, and yet lets other
threads run during a call: two threads inside one module corrupt its memory. So
every call into a module, the first and the last included, runs on the thread
that this file starts for it. Only p11-kit-proxy.so, which does the locking that
is missing, may have more threads. Nothing here survives a fork.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import pkcs11

from meshmint_server.keys.key import KeyFault
from meshmint_server.keys.pkcs11_objects import describe
from meshmint_server.keys.secret import SecretSource
from meshmint_server.keys.signer import Signer
from meshmint_server.keys.uri import InvalidKeyUri

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library  # noqa: N812  a class, whatever its name

__all__ = ["PinRefused", "Pkcs11Module", "check_threads"]

_log = logging.getLogger(__name__)

_PROXY: Final = "p11-kit-proxy.so"
# Session handles that could not be closed, before the module is started over to free them.
_MAX_LOST_SESSIONS: Final = 8
_PIN_ERRORS: Final = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinExpired,
    pkcs11.PinLocked,
    pkcs11.UserPinNotInitialized,
)


class PinRefused(KeyFault):
    """The token does not take the PIN. Trying the same one again would lock the token."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, reason="PIN_REFUSED", retry_after=30.0)


def check_threads(module_path: str, threads: int) -> None:
    """Refuse more than one thread for a module that cannot take it.

    Raises:
        InvalidKeyUri: With the reason.
    """
    if threads < 1:
        raise InvalidKeyUri("'threads' is 1 or more.")
    if threads > 1 and Path(module_path).name != _PROXY:
        raise InvalidKeyUri(
            f"'threads' over 1 needs {_PROXY} as the module: python-pkcs11 initialises other "
            "modules for one thread only, and a second one would corrupt their memory. "
            "Use more worker processes instead, or load the module through p11-kit."
        )


@dataclass(slots=True)
class _Login:
    """A login to one token. The session is kept open: closing it would log everybody out."""

    session: pkcs11.Session | None


class Pkcs11Module:
    """One loaded module: its threads, its initialisation, its logins.

    Shared by everything in the process that uses the same module. Methods other
    than ``acquire`` and ``release`` run on the signer's threads only.
    """

    _loaded: ClassVar[dict[str, Pkcs11Module]] = {}
    _loaded_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str, real_path: str, threads: int, queue_size: int) -> None:
        self.path = path
        self._real_path = real_path
        self.threads = threads
        self.signer = Signer("pkcs11", threads=threads, queue_size=queue_size)
        self.generation = 0
        self._users = 0
        self._lib: Library | None = None
        self._lock = threading.RLock()
        self._logins: dict[int, _Login] = {}
        self._refused: dict[int, bytes] = {}
        self._pin_salt = secrets.token_bytes(16)
        self._lost_sessions = 0

    @classmethod
    def acquire(cls, module_path: str, *, threads: int = 1, queue_size: int = 1024) -> Pkcs11Module:
        """The process's one holder of this module, made at first use.

        Raises:
            InvalidKeyUri: It is already in use with another number of threads,
                or cannot have that many.
        """
        check_threads(module_path, threads)
        path = str(Path(module_path).resolve())
        with cls._loaded_lock:
            module = cls._loaded.get(path)
            if module is None:
                module = cls._loaded[path] = cls(module_path, path, threads, queue_size)
            elif module.threads != threads:
                raise InvalidKeyUri(
                    "One PKCS#11 module cannot be used with two 'threads' settings."
                )
            module._users += 1
            return module

    def release(self) -> None:
        """Give the module back; the last user ends its sessions and threads. Blocks."""
        with self._loaded_lock:
            self._users -= 1
            if self._users:
                return
            # Under the lock: nobody may load the module anew before it has been finalised.
            # A module with a thread stuck inside stays listed, and refuses, for ever.
            if self.signer.close(finally_run=self._finalize):
                del self._loaded[self._real_path]

    @property
    def lib(self) -> Library:
        """The initialised module.

        Raises:
            KeyFault: It cannot be loaded.
            pkcs11.PKCS11Error: It cannot be initialised.
        """
        with self._lock:
            if self._lib is None:
                if not Path(self.path).is_file():
                    raise KeyFault(
                        f"There is no PKCS#11 module at {self.path}. Install the token's software, "
                        "or correct 'module-path'.",
                        reason="MODULE_NOT_FOUND",
                    )
                self._lib = pkcs11.lib(self.path)
            return self._lib

    def login(self, token: pkcs11.Token, source: SecretSource) -> None:
        """Log in to a token, unless this process already is.

        A PIN that was refused is not tried again until its source gives another.

        Raises:
            PinRefused: Now, or before with the same PIN.
            KeyFault: The PIN cannot be read.
            pkcs11.PKCS11Error: Anything else.
        """
        slot = token.slot.slot_id
        with self._lock:
            if slot in self._logins:
                return
            pin = source.read()
            mark = hmac.digest(self._pin_salt, pin.encode(), hashlib.sha256)
            if self._refused.get(slot) == mark:
                raise PinRefused(
                    f"The token {token.label!r} refused the PIN from {source}. It is not tried "
                    "again, so that the token does not lock itself. Correct it there."
                )
            try:
                session = token.open(user_pin=pin)
            except pkcs11.UserAlreadyLoggedIn:
                self._lost_sessions += 1
                self._logins[slot] = _Login(None)
                return
            except _PIN_ERRORS as error:
                # python-pkcs11 opened a session for this and cannot close it.
                self._lost_sessions += 1
                self._refused[slot] = mark
                refused = describe(error)
            else:
                self._refused.pop(slot, None)
                self._logins[slot] = _Login(session)
                return
        raise PinRefused(
            f"The token {token.label!r} refused the PIN from {source} ({refused}). "
            "Correct it there; until then it is not tried again."
        )

    def forget_login(self, slot: int | None) -> None:
        """Log in anew at next use. The old session is left to the token to clean up."""
        with self._lock:
            if slot is not None and self._logins.pop(slot, None) is not None:
                self._lost_sessions += 1

    @property
    def must_restart(self) -> bool:
        """Whether too many session handles have been lost to go on without a restart."""
        return self._lost_sessions >= _MAX_LOST_SESSIONS

    def restart(self, patience: float = 2.0) -> bool:
        """Finalise the module and initialise it again; every session ends.

        Returns:
            False if another thread is still inside the module.

        Raises:
            pkcs11.PKCS11Error: It cannot be initialised again.
            KeyFault: It cannot be loaded again.
        """
        return bool(self.signer.run_alone(self._restart, patience=patience))

    def _restart(self) -> bool:
        _log.warning("PKCS#11 module is being started over", extra={"module_path": self.path})
        with self._lock:
            self._finalize()
            self.generation += 1
            return self.lib is not None

    def _finalize(self) -> None:
        with self._lock:
            self._logins.clear()
            self._lost_sessions = 0
            library, self._lib = self._lib, None
            if library is None:
                return
            try:
                library.finalize()
            except pkcs11.PKCS11Error as error:
                # Somebody else finalised it, or it is beyond help; initialising will tell.
                _log.warning("C_Finalize failed: %s", describe(error))
