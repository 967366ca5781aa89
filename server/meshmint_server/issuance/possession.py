"""Proof that the private key of a certificate is at hand, without showing it.

The proof is a signature over a text that can mean nothing else: which request,
which certificate, which reason. It holds for ever, and that is harmless: it
only ever says what a revocation has made final.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshmint_server.issuance.reasons import RevocationReason
from meshmint_server.keys import PublicKey, Scheme, SignatureAlgorithm

__all__ = ["holds", "statement"]

# The signature of an RSA key of 16,384 bits, the largest that OpenSSL works with.
MAX_PROOF_BYTES = 2048


def statement(certificate: x509.Certificate, reason: RevocationReason) -> bytes:
    """What is signed, as RevokeRequest.proof_of_possession describes it."""
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    return (
        f"meshmint.v1.CertificateService/Revoke\n{fingerprint}\nREVOCATION_REASON_{reason.name}\n"
    ).encode("ascii")


def holds(proof: bytes, certificate: x509.Certificate, reason: RevocationReason) -> bool:
    """Whether the proof is the certificate's key's signature over the statement.

    RSA keys sign with PKCS #1 v1.5 and SHA-256, EC keys with ECDSA and SHA-256 whatever the
    curve, Ed25519 keys as they do. Only for a certificate that an issuer of ours has
    signed: the work that a key makes is its maker's choice.
    """
    if len(proof) > MAX_PROOF_BYTES:
        return False
    try:
        public_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(
        public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    ):
        return False
    return _algorithm(public_key).is_valid(public_key, proof, statement(certificate, reason))


def _algorithm(public_key: PublicKey) -> SignatureAlgorithm:
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return SignatureAlgorithm(Scheme.ED25519, None)
    is_rsa = isinstance(public_key, rsa.RSAPublicKey)
    return SignatureAlgorithm(Scheme.RSA_PKCS1 if is_rsa else Scheme.ECDSA, "sha256")
