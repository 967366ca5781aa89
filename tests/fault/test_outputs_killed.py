"""A writer that is killed at any instant leaves the files of one moment, complete."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import support.writers
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from meshmint.agent.outputs import Output, PemOutput
from support.held import MeshCa
from support.writers import BUNDLE_ROOTS

KILLS = 100
NAMES = {"cert.pem", "chain.pem", "fullchain.pem", "key.pem", "bundle.pem", "combined.pem"}


@contextmanager
def writers(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """What makes writers; see `support.writers`."""
    tests = Path(support.writers.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, support.writers.__file__, directory],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(tests)}, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            # With the child that a failed test leaves.
            os.killpg(process.pid, signal.SIGKILL)


def present(directory: Path) -> str:
    """The version that counts; empty if there is none yet."""
    with suppress(FileNotFoundError):
        return os.readlink(directory / "..data")
    return ""


def read(directory: Path) -> dict[str, bytes]:
    """The files of one version, found once: what a careful reader does."""
    while True:
        folder = os.open(directory / "..data", os.O_RDONLY | os.O_DIRECTORY)
        # This writer replaces so fast that the reader may be the one who is too late.
        with suppress(FileNotFoundError):
            try:
                return {name: read_file(folder, name) for name in os.listdir(folder)}
            finally:
                os.close(folder)


def read_file(folder: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
        return file.read()


def check(files: dict[str, bytes]) -> None:
    """All of them are whole, and of one identity."""
    assert files.keys() == NAMES
    key, leaf = files["key.pem"], x509.load_pem_x509_certificate(files["cert.pem"])
    assert load_pem_private_key(key, None).public_key() == leaf.public_key()
    (issuer,) = x509.load_pem_x509_certificates(files["chain.pem"])
    leaf.verify_directly_issued_by(issuer)
    roots = x509.load_pem_x509_certificates(files["bundle.pem"])
    assert len(roots) == BUNDLE_ROOTS
    issuer.verify_directly_issued_by(roots[0])
    assert files["fullchain.pem"] == files["cert.pem"] + files["chain.pem"]
    assert files["combined.pem"] == key + files["fullchain.pem"]


def test_a_writer_killed_a_hundred_times_never_leaves_a_mixed_set(tmp_path: Path) -> None:
    directory, chance = tmp_path / "tls", random.Random()  # noqa: S311
    leftovers = seen = 0
    with writers(directory) as process:
        assert process.stdin
        assert process.stdout
        for turn in range(KILLS):
            before = present(directory)
            process.stdin.write("\n")
            process.stdin.flush()
            number = int(process.stdout.readline())
            begun = time.monotonic()
            # Every other one is killed before, or in, its first change; its pace is the
            # machine's.
            while turn % 2 == 0 and present(directory) == before:
                time.sleep(0.001)
            if turn % 2 == 0:
                pace = time.monotonic() - begun
            ends = time.monotonic() + chance.uniform(0, pace)
            while time.monotonic() < ends:
                check(read(directory))
                seen += 1
            os.kill(number, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"
            check(read(directory))
            leftovers += any(directory.glob("..meshmint-new-*"))

    assert seen
    assert leftovers, "no kill came between two writes: this test proves nothing"


def test_the_next_writer_removes_what_killed_ones_left_and_all_is_as_if_nothing_happened(
    tmp_path: Path,
) -> None:
    directory, mesh = tmp_path / "tls", MeshCa()
    output = Output(PemOutput(format="pem", directory=directory))
    output.write(mesh.issue(), mesh.bundles)
    (half := directory / "..meshmint-new-0123456789abcdef").mkdir(0o700)
    (half / "key.pem").write_bytes(b"half a k")
    (directory / "..meshmint-new-fedcba9876543210").symlink_to("..meshmint-0123456789abcdef")
    (directory / "key.pem").unlink()

    identity = mesh.issue()
    assert output.write(identity, mesh.bundles)

    assert not list(directory.glob("..meshmint-new-*"))
    key = load_pem_private_key((directory / "key.pem").read_bytes(), None)
    assert key.public_key() == identity.certificate.public_key()
    assert not output.write(identity, mesh.bundles)
