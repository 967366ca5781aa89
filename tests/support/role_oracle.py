"""A second opinion on what a role grants, worked out from the certificate alone.

Reads the role's document as plain values and the certificate as parsed from
DER. Shares no code with meshmint_server.policy, and does everything another
way (regular expressions instead of parsed patterns), so that one mistake is
not made twice. It may be slow.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

Facts = Mapping[str, str | tuple[str, ...]]

SERVER_AUTH, CLIENT_AUTH = "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"
DEFAULTS: dict[str, Any] = {
    "spiffe": "none", "max_ttl": None, "not_before_duration": 30,
    "allow_localhost": True, "allowed_domains": [], "allowed_domains_template": False,
    "allow_globs_in_identity_templates": False, "allow_bare_domains": False,
    "allow_subdomains": False, "allow_glob_domains": False, "allow_wildcard_certificates": True,
    "allow_any_name": False, "enforce_hostnames": True, "allow_ip_sans": True,
    "allowed_ip_sans_cidr": [], "allowed_uri_sans": [], "allowed_uri_sans_template": False,
    "allowed_other_sans": [], "allowed_serial_numbers": [], "allowed_user_ids": [],
    "server_flag": True, "client_flag": True, "code_signing_flag": False,
    "email_protection_flag": False, "ext_key_usage": [], "key_type": "rsa", "key_bits": 0,
    "key_usage": ["DigitalSignature", "KeyAgreement", "KeyEncipherment"],
    "cn_validations": ["email", "hostname"], "organization": [], "country": [],
    "basic_constraints_valid_for_non_ca": False,
}  # fmt: skip
USAGES = {
    "DigitalSignature": "digital_signature",
    "ContentCommitment": "content_commitment",
    "KeyEncipherment": "key_encipherment",
    "DataEncipherment": "data_encipherment",
    "KeyAgreement": "key_agreement",
}
IMPOSSIBLE = {
    "rsa": {"key_agreement"},
    "ec": {"key_encipherment", "data_encipherment"},
    "ed25519": {"key_agreement", "key_encipherment", "data_encipherment"},
}


def find_problems(
    certificate: x509.Certificate,
    document: Mapping[str, Any],
    facts: Facts,
    *,
    trust_domain: str,
    now: datetime,
    service_max_ttl: timedelta,
) -> list[str]:
    """Returns everything about the certificate that the role does not allow.

    Args:
        certificate: As issued, parsed.
        document: The role, durations in seconds, lists as lists.
        facts: What is known of the caller: attributes, and "spiffe_id" if it has one.
        trust_domain: The service's own.
        now: When it was issued.
        service_max_ttl: The service's longest lifetime.
    """
    role = {**DEFAULTS, **document}
    if role["spiffe"] != "none":
        off = {"require_cn": False, "allow_localhost": False, "allow_ip_sans": False}
        role = {**DEFAULTS, **off, **document}
    facts = {**facts, "trust_domain": trust_domain}
    checks = (
        _validity(certificate, role, now, service_max_ttl),
        _subject(certificate, role, facts),
        _sans(certificate, role, facts),
        _svid(certificate, role, facts),
        _usages(certificate, role),
        _key(certificate, role),
    )
    return [problem for check in checks for problem in check]


def _validity(
    certificate: x509.Certificate, role: Mapping[str, Any], now: datetime, service_max: timedelta
) -> Iterator[str]:
    longest = service_max.total_seconds()
    if role["max_ttl"]:
        longest = min(longest, role["max_ttl"])
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if (end - now).total_seconds() > longest:
        yield "ends too late"
    if (end - start).total_seconds() > longest + role["not_before_duration"]:
        yield "lives too long"
    if not start < end > now:
        yield "is never valid"


def _subject(certificate: x509.Certificate, role: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    seen: dict[str, list[str]] = {}
    for attribute in certificate.subject:
        seen.setdefault(attribute.oid.dotted_string, []).append(str(attribute.value))
    common_names = seen.pop("2.5.4.3", [])
    serials = seen.pop("2.5.4.5", [])
    users = seen.pop("0.9.2342.19200300.100.1.1", [])
    decided = {"2.5.4.10": role["organization"], "2.5.4.6": role["country"]}
    if seen != {oid: list(values) for oid, values in decided.items() if values}:
        yield f"subject has {seen}"
    if len(common_names) > 1:
        yield "several common names"
    for name in common_names:
        if len(name) > 64:
            yield "common name too long"
        if role["cn_validations"] != ["disabled"] and not _is_allowed_cn(name, role, facts):
            yield f"common name {name}"
    for serial in serials:
        if not any(_glob(glob, serial) for glob in role["allowed_serial_numbers"]):
            yield f"serialNumber {serial}"
    for user in users:
        if not any(_glob(glob, user, re.IGNORECASE) for glob in role["allowed_user_ids"]):
            yield f"user id {user}"


def _is_allowed_cn(name: str, role: Mapping[str, Any], facts: Facts) -> bool:
    if "@" in name:
        return "email" in role["cn_validations"] and _is_allowed_name(name, role, facts)
    if "hostname" not in role["cn_validations"]:
        return False
    try:
        return _is_allowed_ip(ipaddress.ip_address(name), role)
    except ValueError:
        pass
    if not role["enforce_hostnames"] and re.search(r"[^a-z0-9_.*-]", name):
        return _is_allowed_text(name, role, facts)
    return _is_allowed_name(name, role, facts)


def _is_allowed_text(name: str, role: Mapping[str, Any], facts: Facts) -> bool:
    entries = [entry.lower() for entry in _rendered(role, "allowed_domains", facts)]
    return (
        role["allow_any_name"]
        or (role["allow_bare_domains"] and name.lower() in entries)
        or (role["allow_glob_domains"] and any(_glob(e, name.lower()) for e in entries if "*" in e))
    )


def _sans(certificate: x509.Certificate, role: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    names = san_of(certificate)
    if not names and not list(certificate.subject):
        yield "no name at all"
    for name in names:
        if isinstance(name, x509.DNSName | x509.RFC822Name):
            is_allowed = _is_allowed_name(name.value, role, facts)
        elif isinstance(name, x509.IPAddress):
            is_allowed = _is_allowed_ip(name.value, role)
        elif isinstance(name, x509.UniformResourceIdentifier):
            is_allowed = role["spiffe"] == "own" or _is_allowed_uri(name.value, role, facts)
        elif isinstance(name, x509.OtherName):
            is_allowed = _is_allowed_other(name, role)
        else:
            is_allowed = False
        if not is_allowed:
            yield f"SAN {name}"


def san_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Returns the SANs of a certificate, or none."""
    try:
        return list(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except x509.ExtensionNotFound:
        return []


def _is_allowed_name(name: str, role: Mapping[str, Any], facts: Facts) -> bool:
    host = name.rsplit("@", maxsplit=1)[-1]
    is_wildcard = "*" in host
    below = host[2:] if is_wildcard else host
    if is_wildcard and ("@" in name or not host.startswith("*.") or host.count("*") > 1):
        return False
    if is_wildcard and not role["allow_wildcard_certificates"]:
        return False
    if role["enforce_hostnames"] and not re.fullmatch(
        r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?", below
    ):
        return False
    if not all(1 <= len(label) <= 63 for label in host.split(".")) or host != host.lower():
        return False
    if role["allow_any_name"]:
        return True
    if role["allow_localhost"]:
        prefix = r"(.+\.)?" if role["allow_subdomains"] else ""
        if re.fullmatch(prefix + "(localhost|localdomain)", below):
            return True
    full = name.lower()
    for entry in map(_fold_domain, _rendered(role, "allowed_domains", facts)):
        if role["allow_bare_domains"] and entry in (full, host if "@" in name else full):
            return True
        if role["allow_subdomains"] and (
            below.endswith("." + entry) or (is_wildcard and below == entry)
        ):
            return True
        if role["allow_glob_domains"] and "*" in entry and _glob(entry, full):
            return True
    return False


def _fold_domain(entry: str) -> str:
    """A-labels by Python's own codec, which agrees with IDNA 2008 on the names used here."""
    return ".".join(
        label if label.isascii() else label.encode("idna").decode()
        for label in entry.lower().split(".")
    )


def _is_allowed_ip(address: Any, role: Mapping[str, Any]) -> bool:
    networks = [ipaddress.ip_network(text, strict=False) for text in role["allowed_ip_sans_cidr"]]
    return role["allow_ip_sans"] and (
        not networks or any(net.version == address.version and address in net for net in networks)
    )


def _is_allowed_uri(uri: str, role: Mapping[str, Any], facts: Facts) -> bool:
    if re.search(r"/\.\.?(/|$)|[\s\\]", uri):
        return False
    for pattern in _rendered(role, "allowed_uri_sans", facts):
        if pattern == "*":
            if not uri.startswith("spiffe:") or uri.startswith(
                f"spiffe://{facts['trust_domain']}/"
            ):
                return True
        elif re.fullmatch(_uri_expression(pattern), uri):
            return True
    return False


def _uri_expression(pattern: str) -> str:
    scheme, _, rest = pattern.partition("://")
    host, slash, path = rest.partition("/")
    expression = re.escape(scheme) + "://" + re.escape(host).replace(r"\*", "[^/.?#:]+")
    if not slash:
        return expression
    for index, segment in enumerate(parts := path.split("/")):
        if segment == "*":
            is_last = index == len(parts) - 1
            expression += "(/[^/?#]+)+" if is_last else "/[^/?#]+"
        else:
            expression += "/" + re.escape(segment).replace(r"\*", "[^/?#]*")
    return expression


def _is_allowed_other(name: x509.OtherName, role: Mapping[str, Any]) -> bool:
    value = name.value[2:].decode()
    for rule in role["allowed_other_sans"]:
        if rule == "*":
            return True
        oid, _, glob = rule.partition(";UTF8:")
        if oid == name.type_id.dotted_string and _glob(glob, value):
            return True
    return False


def _rendered(role: Mapping[str, Any], field: str, facts: Facts) -> Iterator[str]:
    entries: Sequence[str] = role[field]
    is_uri = field == "allowed_uri_sans"
    for entry in entries:
        if not role[f"{field}_template"]:
            yield entry
            continue
        values = [(name, facts.get(name)) for name in re.findall(r"\{\{\s*([^\s}]+)\s*\}\}", entry)]
        if all(_is_plain(name, value, entry, role, is_uri) for name, value in values):
            filled = entry
            for name, value in values:
                filled = re.sub(r"\{\{\s*" + re.escape(name) + r"\s*\}\}", str(value), filled)
            yield filled


def _is_plain(name: str, value: object, entry: str, role: Mapping[str, Any], is_uri: bool) -> bool:
    if not isinstance(value, str) or not value:
        return False
    if name == "spiffe_id":
        return True
    if "*" in value and not role["allow_globs_in_identity_templates"]:
        return False
    if is_uri:
        return not re.search(r"[^A-Za-z0-9._~*-]", value) and value not in (".", "..")
    return "@" not in value or re.fullmatch(r"\{\{[^{}]*\}\}", entry) is not None


def _glob(pattern: str, text: str, flags: int = 0) -> bool:
    expression = re.escape(pattern).replace(r"\*", ".*")
    return re.fullmatch(expression, text, flags | re.DOTALL) is not None


def _svid(certificate: x509.Certificate, role: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    uris = [
        name.value
        for name in san_of(certificate)
        if isinstance(name, x509.UniformResourceIdentifier)
    ]
    ids = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if role["spiffe"] != "none":
        if len(ids) != 1:
            yield f"an X509-SVID with {len(ids)} SPIFFE IDs"
        if not all(uri.startswith(f"spiffe://{facts['trust_domain']}/") for uri in ids):
            yield "a SPIFFE ID of another trust domain"
        if role["spiffe"] == "own" and ids != [facts.get("spiffe_id")]:
            yield "somebody else's SPIFFE ID"
    if not ids:
        return
    if len(uris) != 1:
        yield "a SPIFFE ID is not the only URI"
    if not re.fullmatch(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+", ids[0]):
        yield f"malformed SPIFFE ID {ids[0]}"
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.digital_signature:
        yield "an X509-SVID without digitalSignature"
    if not {SERVER_AUTH, CLIENT_AUTH} <= set(_ext_usages(certificate)):
        yield "an X509-SVID without both TLS usages"
    if not _says_no_ca(certificate):
        yield "an X509-SVID without CA:FALSE"


def _ext_usages(certificate: x509.Certificate) -> list[str]:
    try:
        value = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return []
    return [oid.dotted_string for oid in value]


def _says_no_ca(certificate: x509.Certificate) -> bool:
    try:
        value = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    return not value.ca


def _usages(certificate: x509.Certificate, role: Mapping[str, Any]) -> Iterator[str]:
    named = role["ext_key_usage"]
    flags = {
        "1.3.6.1.5.5.7.3.8": "TimeStamping" in named,
        SERVER_AUTH: role["server_flag"] or "ServerAuth" in named,
        CLIENT_AUTH: role["client_flag"],
        "1.3.6.1.5.5.7.3.3": role["code_signing_flag"],
        "1.3.6.1.5.5.7.3.4": role["email_protection_flag"],
    }
    if set(_ext_usages(certificate)) != {oid for oid, is_set in flags.items() if is_set}:
        yield "extended key usages"
    wanted = {USAGES[name] for name in role["key_usage"]} - IMPOSSIBLE[key_of(certificate)[0]]
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        if role["key_usage"]:
            yield "no key usage"
    else:
        if usage.key_cert_sign or usage.crl_sign:
            yield "usages of a CA"
        if {name for name in USAGES.values() if getattr(usage, name)} != wanted:
            yield "key usages"
    if role["basic_constraints_valid_for_non_ca"] and not _says_no_ca(certificate):
        yield "no CA:FALSE"


def key_of(certificate: x509.Certificate) -> tuple[str, int]:
    """Returns the type and size of a certificate's key, as roles name them."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ec", key.curve.key_size
    assert isinstance(key, ed25519.Ed25519PublicKey)
    return "ed25519", 0


def _key(certificate: x509.Certificate, role: Mapping[str, Any]) -> Iterator[str]:
    key_type, bits = key_of(certificate)
    least = role["key_bits"] or {"rsa": 2048, "ec": 256, "ed25519": 0}[key_type]
    if role["key_type"] not in (key_type, "any") or (key_type != "ed25519" and bits < least):
        yield f"a key {key_type} {bits}"
