"""Hundreds sign at once. PKCS#11 modules crash when that is done wrong, so it runs apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.softhsm import SoftHsm, Token

_PROXIES = (
    "/usr/lib/x86_64-linux-gnu/p11-kit-proxy.so",
    "/usr/lib/aarch64-linux-gnu/p11-kit-proxy.so",
    "/usr/lib64/p11-kit-proxy.so",
    "/usr/lib/p11-kit-proxy.so",
    "/usr/local/lib/p11-kit-proxy.so",
    "/opt/homebrew/lib/p11-kit-proxy.so",
)


def hammer(softhsm: SoftHsm, uri: str, threads: int, home: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "support.key_hammer", uri, str(threads), "2"],
        env={
            **os.environ,
            **softhsm.environment,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(home),
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


def test_hundreds_of_callers_on_many_loops_all_get_valid_signatures(
    softhsm: SoftHsm, token: Token, tmp_path: Path
) -> None:
    assert hammer(softhsm, token.uri, 1, tmp_path) > 500


def test_two_threads_through_the_p11_kit_proxy(
    softhsm: SoftHsm, token: Token, tmp_path: Path
) -> None:
    proxy = next((place for place in _PROXIES if Path(place).is_file()), None)
    if proxy is None:
        pytest.fail("p11-kit-proxy.so is missing. Install the package p11-kit.", pytrace=False)
    modules = tmp_path / ".config" / "pkcs11" / "modules"
    modules.mkdir(parents=True)
    (modules / "softhsm2.module").write_text(f"module: {softhsm.module}\n", encoding="utf-8")
    uri = token.uri.replace(f"module-path={softhsm.module}", f"module-path={proxy}")
    assert hammer(softhsm, uri, 2, tmp_path) > 500
