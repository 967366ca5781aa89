"""SoftHSM 2 for development and tests: find it, configure it, make a token.

Not for production keys: a token of SoftHSM is files on a disk. PINs go to the
child process through a pipe, never on a command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from meshmint_server.keys import token_setup
from meshmint_server.keys.key import KeyFault

__all__ = ["find_module", "init_token", "write_config"]

# Where Debian, Fedora, Alpine, Arch, FreeBSD and Homebrew put it.
_PLACES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
    "/usr/lib/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
_SECONDS: Final = 30


def find_module() -> Path | None:
    """The installed SoftHSM module; None if there is none. MESHMINT_SOFTHSM_MODULE overrides."""
    named = os.environ.get("MESHMINT_SOFTHSM_MODULE")
    places = (named,) if named else _PLACES
    return next((Path(place) for place in places if Path(place).is_file()), None)


def write_config(directory: Path) -> Path:
    """Write a SoftHSM configuration with its tokens in ``directory``; no effect on existing tokens.

    Returns:
        The file to name in the environment variable SOFTHSM2_CONF.
    """
    tokens = directory / "tokens"
    tokens.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    config = directory / "softhsm2.conf"
    config.write_text(
        f"directories.tokendir = {tokens}\n"
        "objectstore.backend = file\n"
        "log.level = ERROR\n"
        "slots.removable = false\n",
        encoding="utf-8",
    )
    return config


def init_token(
    config: Path,
    label: str,
    so_pin: str,
    pin: str,
    *,
    module: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Make a token with these PINs.

    Args:
        config: From ``write_config``.
        label: Up to 32 bytes.
        so_pin: The security officer's PIN, 4 to 255 characters.
        pin: The user's PIN, 4 to 255 characters.
        module: Another module than the installed SoftHSM.
        environment: Instead of this process's, with SOFTHSM2_CONF added.

    Returns:
        The token's serial number.

    Raises:
        KeyFault: SoftHSM is not installed, there is such a token already, or it failed.
    """
    module = module or find_module()
    if module is None:
        raise KeyFault("SoftHSM 2 is not installed. Install the package softhsm2.")
    if not 0 < len(label.encode()) <= 32:
        raise KeyFault("A token's label has 1 to 32 bytes.")
    order = {"module": str(module), "label": label, "so_pin": so_pin, "pin": pin}
    child = subprocess.run(  # noqa: S603  this interpreter, this package's own file
        [sys.executable, "-I", token_setup.__file__],
        input=json.dumps(order),
        env={**(os.environ if environment is None else environment), "SOFTHSM2_CONF": str(config)},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if child.returncode != 0:
        reason = child.stderr.strip().splitlines()[-1:] or ["no output"]
        raise KeyFault(f"The token {label!r} could not be made: {reason[0]}.")
    return child.stdout.strip()
