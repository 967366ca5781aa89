"""The distribution `meshmint`, built and installed alone, as its users get it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command outside the repository, with nothing of it on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# One test, because building and installing take most of the time.
@pytest.mark.timeout(300)
def test_the_wheel_works_alone_and_is_typed(tmp_path: Path) -> None:
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation"),
        *("--outdir", tmp_path, REPOSITORY / "client"),
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("meshmint-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    assert {"meshmint/py.typed", "meshmint/v1/certificate_service_pb2.pyi"} <= names
    assert all(name.startswith(("meshmint/", "meshmint-")) for name in names)
    assert sorted(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M)) == [
        "cryptography",
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
    ]
    assert "\n# Meshmint client" in metadata

    run(sys.executable, "-m", "venv", "alone", cwd=tmp_path)
    binaries = tmp_path / "alone" / "bin"
    constraints = REPOSITORY / "constraints.txt"
    limited = ("--constraint", constraints) if constraints.exists() else ()
    run(
        *(binaries / "python", "-m", "pip", "install", "--quiet"),
        *("--disable-pip-version-check", *limited, wheel),
        cwd=tmp_path,
    )
    assert re.fullmatch(
        r"meshmint \d+\.\d+\.\d+\n", run(binaries / "meshmint", "--version", cwd=tmp_path)
    )
    run(
        binaries / "python",
        "-W",
        "error",
        "-c",
        "import importlib.util, meshmint\n"
        "assert all(getattr(meshmint, name) for name in meshmint.__all__)\n"
        "assert importlib.util.find_spec('meshmint_server') is None\n"
        "client = meshmint.Client('localhost:1', token='t', insecure=True)\n"
        "client.close()\n",
        cwd=tmp_path,
    )
