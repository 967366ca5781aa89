"""Key usages and extended key usages: their names, and which keys may have them.

Names are Go's, as in Vault's roles; case does not matter, and an unknown name
is refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku

__all__ = [
    "DEFAULT_KEY_USAGES",
    "KEY_USAGES_OF",
    "build_key_usage",
    "parse_ext_key_usage",
    "parse_key_usage",
    "parse_oid",
    "spell_key_usages",
]

# Go's spelling to the attribute's name in x509.KeyUsage.
_KEY_USAGES = {
    "DigitalSignature": "digital_signature",
    "ContentCommitment": "content_commitment",
    "KeyEncipherment": "key_encipherment",
    "DataEncipherment": "data_encipherment",
    "KeyAgreement": "key_agreement",
    "EncipherOnly": "encipher_only",
    "DecipherOnly": "decipher_only",
}
_BY_FOLDED = {go.lower(): go for go in _KEY_USAGES}
_CA_USAGES = frozenset({"certsign", "keycertsign", "crlsign"})
_ALL_ATTRIBUTES = (*_KEY_USAGES.values(), "key_cert_sign", "crl_sign")

DEFAULT_KEY_USAGES = ("DigitalSignature", "KeyAgreement", "KeyEncipherment")

# RFC 3279 section 2.3.1 and RFC 4055 section 1.2 (RSA), RFC 5480 section 3 (EC),
# RFC 8410 section 5 (Ed25519).
KEY_USAGES_OF: dict[str, frozenset[str]] = {
    "rsa": frozenset(
        {"digital_signature", "content_commitment", "key_encipherment", "data_encipherment"}
    ),
    "ec": frozenset(
        {
            "digital_signature",
            "content_commitment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        }
    ),
    "ed25519": frozenset({"digital_signature", "content_commitment"}),
}

_EXT_KEY_USAGES = {
    "any": Eku.ANY_EXTENDED_KEY_USAGE,
    "serverauth": Eku.SERVER_AUTH,
    "clientauth": Eku.CLIENT_AUTH,
    "codesigning": Eku.CODE_SIGNING,
    "emailprotection": Eku.EMAIL_PROTECTION,
    "ipsecendsystem": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.5"),
    "ipsectunnel": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.6"),
    "ipsecuser": x509.ObjectIdentifier("1.3.6.1.5.5.7.3.7"),
    "timestamping": Eku.TIME_STAMPING,
    "ocspsigning": Eku.OCSP_SIGNING,
    "microsoftservergatedcrypto": x509.ObjectIdentifier("1.3.6.1.4.1.311.10.3.3"),
    "netscapeservergatedcrypto": x509.ObjectIdentifier("2.16.840.1.113730.4.1"),
    "microsoftcommercialcodesigning": x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.22"),
    "microsoftkernelcodesigning": x509.ObjectIdentifier("1.3.6.1.4.1.311.61.1.1"),
}


def parse_key_usage(name: str) -> str:
    """Returns Go's spelling of a key usage.

    Raises:
        ValueError: It is unknown, or only a CA may have it.
    """
    folded = name.lower().removeprefix("keyusage")
    if folded in _CA_USAGES:
        raise ValueError(f"{name} is for CA certificates; no role can grant it")
    if folded == "nonrepudiation":
        folded = "contentcommitment"
    known = _BY_FOLDED.get(folded)
    if known is None:
        raise ValueError(f"{name!r} is not a key usage; known are {', '.join(_KEY_USAGES)}")
    return known


def parse_ext_key_usage(name: str) -> x509.ObjectIdentifier:
    """Returns the object identifier of an extended key usage's name.

    Raises:
        ValueError: It is unknown.
    """
    known = _EXT_KEY_USAGES.get(name.lower().removeprefix("extkeyusage"))
    if known is None:
        raise ValueError(
            f"{name!r} is not an extended key usage; known are {', '.join(_EXT_KEY_USAGES)}; "
            "write others in ext_key_usage_oids"
        )
    return known


def parse_oid(text: str) -> x509.ObjectIdentifier:
    """Reads an object identifier in dotted decimal form.

    Raises:
        ValueError: It is none.
    """
    try:
        if len(text) > 128 or not text.isascii():
            raise ValueError
        return x509.ObjectIdentifier(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an object identifier such as 1.3.6.1.4.1.1") from None


def key_usage_attributes(usages: Iterable[str]) -> frozenset[str]:
    """Turns Go's spellings into the attribute names of x509.KeyUsage."""
    return frozenset(_KEY_USAGES[usage] for usage in usages)


def build_key_usage(attributes: frozenset[str]) -> x509.KeyUsage | None:
    """Builds the extension; None if it would be empty."""
    if not attributes:
        return None
    return x509.KeyUsage(**{name: name in attributes for name in _ALL_ATTRIBUTES})


def spell_key_usages(attributes: Iterable[str]) -> str:
    """Writes attribute names of x509.KeyUsage for people, sorted."""
    spelling = {attribute: go for go, attribute in _KEY_USAGES.items()}
    spelling |= {"key_cert_sign": "CertSign", "crl_sign": "CRLSign"}
    return ", ".join(sorted(spelling[name] for name in attributes))
