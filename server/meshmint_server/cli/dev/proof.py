"""One X509-SVID, got as a workload gets it, and checked by somebody else's verifier."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import meshmint
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from meshmint_server.cli.terminal import Failure

__all__ = ["Proof", "get_svid"]


@dataclass(frozen=True, slots=True)
class Proof:
    """An X509-SVID and the path that was verified.

    Attributes:
        svid: What the client returned; its private key was made on this side.
        path: Leaf first, root last.
        files: Where it was written.
    """

    svid: meshmint.Svid
    path: tuple[x509.Certificate, ...]
    files: tuple[Path, ...]


def get_svid(target: str, *, roots: Path, token_file: Path, directory: Path) -> Proof:
    """Gets an X509-SVID through the shipped client, verifies it and writes it to files.

    Raises:
        Failure: The service refused, or the certificate does not verify.
    """
    try:
        with meshmint.Client(target, root_certificates=roots, token=token_file) as client:
            svid = client.request_svid()
    except meshmint.MeshmintError as error:
        raise Failure(
            f"the proof failed: {error.message}",
            [f"{violation.field}: {violation.description}" for violation in error.violations],
        ) from error
    path = _verified(svid, roots)
    return Proof(svid, path, tuple(svid.write_files(directory)))


def _verified(svid: meshmint.Svid, roots: Path) -> tuple[x509.Certificate, ...]:
    """Path validation against the root in our own file, not the one in the answer."""
    trusted = x509.load_pem_x509_certificates(roots.read_bytes())
    verifier = PolicyBuilder().store(Store(trusted)).time(datetime.now(UTC)).build_client_verifier()
    try:
        verified = verifier.verify(svid.certificate, list(svid.chain))
    except VerificationError as error:
        raise Failure(f"the certificate does not verify against {roots}: {error}") from error
    names = [name.value for name in verified.subjects or ()]
    if names != [svid.spiffe_id]:
        raise Failure(f"the certificate names {names}, and {svid.spiffe_id} was promised")
    return tuple(verified.chain)
