"""Real SoftHSM tokens for tests.

A process can initialise a PKCS#11 module once, and SoftHSM reads its configuration
at that moment. So each pytest process has one directory of tokens, and tests make
tokens of their own in it. A server that a test starts as a process takes
``softhsm.environment``, or a configuration of its own (``meshmint_server.keys.softhsm``).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from meshmint_server.keys.softhsm import find_module, init_token, write_config


@dataclass(frozen=True)
class Token:
    """A fresh token. ``uri`` is what a configuration would have."""

    label: str
    pin: str
    so_pin: str
    serial: str
    pin_file: Path
    module: Path

    @property
    def uri(self) -> str:
        return (
            f"pkcs11:token={self.label}?module-path={self.module}&pin-source=file:{self.pin_file}"
        )


@dataclass(frozen=True)
class SoftHsm:
    """SoftHSM as this pytest process sees it."""

    module: Path
    directory: Path
    config: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to see the same tokens."""
        return {"SOFTHSM2_CONF": str(self.config)}

    def make_token(self) -> Token:
        label = f"test-{secrets.token_hex(6)}"
        pin, so_pin = secrets.token_hex(8), secrets.token_hex(8)
        pin_file = self.directory / f"{label}.pin"
        pin_file.write_text(pin + "\n", encoding="utf-8")
        pin_file.chmod(0o600)
        serial = init_token(self.config, label, so_pin, pin, module=self.module)
        return Token(label, pin, so_pin, serial, pin_file, self.module)


def require_module() -> Path:
    """The SoftHSM module; a failure, never a skip, where it is missing."""
    module = find_module()
    if module is None:
        pytest.fail("SoftHSM 2 is missing. Install the package softhsm2.", pytrace=False)
    return module


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """SoftHSM with tokens in a directory of this pytest process."""
    module = require_module()
    directory = tmp_path_factory.mktemp("softhsm")
    config = write_config(directory)
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(config)
    yield SoftHsm(module, directory, config)
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@pytest.fixture
def token(softhsm: SoftHsm) -> Token:
    """A token of the test's own."""
    return softhsm.make_token()
