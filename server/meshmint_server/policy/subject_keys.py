"""Which key a certificate is for, and the usages that such a key may have."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshmint_server.policy.findings import Findings
from meshmint_server.policy.request import CertificateRequest, CsrContents, KeyAlgorithm, PublicKey
from meshmint_server.policy.role import Role
from meshmint_server.policy.usages import DEFAULT_KEY_USAGES, KEY_USAGES_OF, spell_key_usages

__all__ = ["decide_key", "decide_key_usage"]

_SPOKEN = {"rsa": "an RSA key", "ec": "an EC key", "ed25519": "an Ed25519 key"}
_STANDARD = {"rsa": "RFC 3279", "ec": "RFC 5480", "ed25519": "RFC 8410"}


def decide_key(
    role: Role, request: CertificateRequest, findings: Findings
) -> tuple[KeyAlgorithm | PublicKey | None, str]:
    """Decides the key.

    Returns:
        The kind to make or the CSR's key, and its key type; None if something is wrong.
    """
    if request.csr is None:
        return _key_to_make(role, request.key_algorithm, findings)
    if request.key_algorithm is not None:
        findings.malformed("key_algorithm", "the CSR decides the key; leave it unset")
    return _csr_key(role, request.csr.public_key, findings)


def _key_to_make(
    role: Role, asked: KeyAlgorithm | None, findings: Findings
) -> tuple[KeyAlgorithm | None, str]:
    fixed = role.key_algorithm
    if fixed is None:
        if asked is None:
            findings.malformed(
                "key_algorithm", "the role leaves the kind of key to the caller; set key_algorithm"
            )
            return None, ""
        return asked, asked.value[0]
    if asked is not None and asked is not fixed:
        findings.outside(
            "key_algorithm", f"the role's keys are {fixed.name}; leave it unset or ask for that"
        )
    return fixed, fixed.value[0]


def _csr_key(role: Role, key: PublicKey, findings: Findings) -> tuple[PublicKey, str]:
    if isinstance(key, ec.EllipticCurvePublicKey):
        key_type, bits, least = "ec", key.curve.key_size, 256
    elif isinstance(key, rsa.RSAPublicKey):
        key_type, bits, least = "rsa", key.key_size, 2048
    else:
        key_type, bits, least = "ed25519", 0, 0
    if role.key_type != "any":
        if role.key_type != key_type:
            findings.outside(
                "csr", f"the role is for {role.key_type} keys, and the CSR has {_SPOKEN[key_type]}"
            )
            return key, key_type
        least = role.minimum_key_bits if key_type != "ed25519" else 0
    if bits < least:
        findings.outside(
            "csr", f"the role asks for a key of at least {least} bits, and the CSR's has {bits}"
        )
    return key, key_type


def decide_key_usage(role: Role, key_type: str, findings: Findings) -> x509.KeyUsage | None:
    """Decides the keyUsage extension for a key of the given type."""
    if not key_type:
        return None
    extension = role.key_usage_of[key_type]
    if role.key_usages and extension is None:
        findings.outside(
            "key_algorithm", f"{_SPOKEN[key_type]} can have none of the role's key usages"
        )
    elif role.key_usage != DEFAULT_KEY_USAGES:
        left_out = role.key_usages - KEY_USAGES_OF[key_type]
        if left_out:
            findings.warn(
                f"key usage {spell_key_usages(left_out)} is left out: {_SPOKEN[key_type]} "
                f"cannot have it ({_STANDARD[key_type]})"
            )
    return extension


def check_csr_usages(role: Role, csr: CsrContents, findings: Findings) -> None:
    """Checks that a CSR asks for no usage and no extension that the role does not grant."""
    if csr.wants_ca:
        findings.outside("csr", "it asks for a CA certificate; remove basicConstraints CA:TRUE")
    for oid in csr.unknown_extensions:
        findings.outside("csr", f"it asks for the extension {oid}, which no role grants; remove it")
    if csr.key_usage is not None:
        beyond = csr.key_usage - role.key_usages
        if beyond:
            findings.outside(
                "csr", f"it asks for key usage {spell_key_usages(beyond)}, which the role lacks"
            )
    if csr.ext_key_usages is not None:
        unknown = csr.ext_key_usages - set(role.ext_key_usages)
        if unknown:
            names = ", ".join(sorted(oid.dotted_string for oid in unknown))
            findings.outside("csr", f"it asks for extended key usage {names}, which the role lacks")
