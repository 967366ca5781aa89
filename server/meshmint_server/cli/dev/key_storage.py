"""Where a development service's signing key is: inside SoftHSM, or in an encrypted file.

Once a directory has a key it stays with its kind: an issuer's key cannot be
moved out of a token, which is the point of the token.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import quote

from meshmint_server.cli.dev.state import StateDirectory
from meshmint_server.cli.terminal import Failure
from meshmint_server.keys import KeySettings
from meshmint_server.keys.softhsm import find_module, init_token, write_config

__all__ = ["KeyChoice", "KeyStorage", "choose_key_storage"]

TOKEN: Final = "meshmint"  # noqa: S105 - the label of a PKCS#11 token


class KeyChoice(StrEnum):
    """What `--keys` takes."""

    AUTO = "auto"
    SOFTHSM = "softhsm"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class KeyStorage:
    """The choice made.

    Attributes:
        settings: For the configuration.
        notice: What to tell, if it is not what one would expect.
    """

    settings: KeySettings
    notice: str | None


def choose_key_storage(state: StateDirectory, choice: KeyChoice) -> KeyStorage:
    """Prepares the token or the directory of keys, and names SoftHSM's configuration.

    Raises:
        Failure: What was asked for, or what the state needs, is not installed.
    """
    if (state.softhsm / "made").exists():
        if choice is KeyChoice.FILE:
            raise Failure(
                f"the key of {state.path} is inside SoftHSM and cannot leave it; "
                "use another directory for a key in a file: --state DIR"
            )
        return _softhsm(state)
    if state.file_keys.exists():
        if choice is KeyChoice.SOFTHSM:
            raise Failure(
                f"the key of {state.path} is in a file; "
                "use another directory for a key inside SoftHSM: --state DIR"
            )
        return _files(state, "This directory began with a key in a file, and keeps it.")
    if choice is KeyChoice.FILE:
        return _files(state, "As asked for, the signing key is an encrypted file, not in an HSM.")
    if find_module() is None and choice is KeyChoice.AUTO:
        return _files(
            state,
            "SoftHSM is not installed, so the signing key is an encrypted file, not in an HSM. "
            "For a key that cannot be extracted, install softhsm2, delete "
            f"{state.path} and start again.",
        )
    return _softhsm(state)


def _softhsm(state: StateDirectory) -> KeyStorage:
    module = find_module()
    if module is None:
        raise Failure(
            "SoftHSM is not installed, and the signing key is to be inside it: "
            "install the package softhsm2 (Debian, Ubuntu) or softhsm (others)"
        )
    made = state.softhsm / "made"
    if not made.exists():
        # Left by a start that was interrupted: a token without a key yet.
        shutil.rmtree(state.softhsm, ignore_errors=True)
    config = write_config(state.softhsm)
    pin = state.secret(state.pin, 24)
    if not made.exists():
        init_token(config, TOKEN, state.secret(state.path / "so-pin", 24), pin, module=module)
        made.touch(mode=0o600)
    os.environ["SOFTHSM2_CONF"] = str(config)
    uri = (
        f"pkcs11:token={TOKEN}?module-path={quote(str(module))}"
        f"&pin-source=file:{quote(str(state.pin))}"
    )
    return KeyStorage(KeySettings(pkcs11=uri), notice=None)


def _files(state: StateDirectory, notice: str) -> KeyStorage:
    state.file_keys.mkdir(mode=0o700, exist_ok=True)
    state.secret(state.passphrase, 32)
    settings = KeySettings(
        file_directory=state.file_keys, passphrase_source=f"file:{state.passphrase}"
    )
    return KeyStorage(settings, notice=notice)
