"""The work that is asked of every server: one X509-SVID for one workload, P-256, for an hour.

Roles and requests are the same everywhere, as far as the two APIs are alike; what
comes back is looked at here, so that nobody is timed for a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from peers.load import Call

__all__ = [
    "CSR",
    "ROLE",
    "SPIFFE_ID",
    "STREAMED",
    "WORKS",
    "Server",
    "Work",
    "check_certificate",
]

SPIFFE_ID: Final = "spiffe://mesh.example/ns/shop/sa/cart"

# Fields of the role, by the names that Vault gave them and Meshmint took over.
ROLE: Final[dict[str, Any]] = {
    "key_type": "ec",
    "key_bits": 256,
    "ttl": "1h",
    "max_ttl": "1h",
    "require_cn": False,
    "key_usage": ["DigitalSignature"],
}


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of request.

    Attributes:
        operation: ``issue``, where the server makes the key pair, or ``sign``, from a CSR.
        is_recorded: Whether the certificate is stored before it is handed out.
    """

    operation: str
    is_recorded: bool

    @property
    def name(self) -> str:
        """As bench.json has it."""
        return f"{self.operation}_{'recorded' if self.is_recorded else 'no_store'}"


WORKS: Final = tuple(
    Work(operation, is_recorded) for is_recorded in (True, False) for operation in ("issue", "sign")
)

# What is asked for over streams as well, of Meshmint alone: OpenBao has none.
STREAMED: Final = tuple(work for work in WORKS if work.is_recorded)


class Server(Protocol):
    """One running server.

    Attributes:
        name: As tables have it.
        version: Of its program.
        pids: Processes that it began with; their children count as well.
    """

    name: str
    version: str

    @property
    def pids(self) -> list[int]: ...

    def call(self, work: Work) -> Call:
        """The request that h2load repeats."""

    def probe(self, work: Work) -> int:
        """Makes that request with an ordinary client, checks the certificate, returns the
        size of the answer's body in bytes."""

    def count_records(self) -> int:
        """How many certificates its store holds."""


def _make_csr() -> str:
    sans = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SPIFFE_ID)])
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.add_extension(sans, critical=True).sign(key, hashes.SHA256())
    return csr.public_bytes(Encoding.PEM).decode()


# The same CSR in every request: neither server keeps anything of one for the next.
CSR: Final = _make_csr()


def check_certificate(leaf: str, issuer: str) -> None:
    """Checks that the certificate is what was asked for.

    Raises:
        AssertionError: It is another one.
        cryptography.exceptions.InvalidSignature: The issuer has not signed it.
    """
    certificate = x509.load_pem_x509_certificate(leaf.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(issuer.encode()))
    sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert sans.get_values_for_type(x509.UniformResourceIdentifier) == [SPIFFE_ID]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert 3600 <= lifetime.total_seconds() <= 3660, lifetime
