"""What an agent holds, made in memory: identities as the service would issue them, and bundles."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from meshmint.agent.identities import Bundle, Identity
from meshmint.keys import KeyAlgorithm, generate_key
from support.pki import Authority, make_root

__all__ = ["TRUST_DOMAIN", "MeshCa", "make_bundle"]

TRUST_DOMAIN = "example.org"


def make_bundle(*roots: Authority, trust_domain: str = TRUST_DOMAIN, sequence: int = 1) -> Bundle:
    """A bundle of these roots, or of a new one."""
    certificates = tuple(one.certificate for one in roots or (make_root(),))
    return Bundle(trust_domain, certificates, sequence=sequence)


class MeshCa:
    """A root with an intermediate below it, whose keys are in memory."""

    def __init__(self) -> None:
        self.root = make_root()
        self.intermediate = self.root.make_intermediate()
        self.bundles = {TRUST_DOMAIN: make_bundle(self.root)}

    def issue(self, name: str = "web", algorithm: KeyAlgorithm = "ec-p256") -> Identity:
        """An X509-SVID with a key of its own."""
        key = generate_key(algorithm)
        spiffe_id = f"spiffe://{TRUST_DOMAIN}/{name}"
        now = datetime.now(UTC)
        issuer = self.intermediate
        alternative = [x509.UniformResourceIdentifier(spiffe_id), x509.DNSName(f"{name}.test")]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=True)
            .sign(issuer.key, hashes.SHA256())
        )
        return Identity(name, spiffe_id, certificate, (issuer.certificate,), key, TRUST_DOMAIN)
