"""Whether a role's fields can work together, and what its author should know.

A role that could never grant anything, or would grant something else than it
says, is refused when it is written, not when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography.x509.oid import ExtendedKeyUsageOID

from meshmint_server.errors import Violation
from meshmint_server.policy import subject, usages
from meshmint_server.policy.jwt_svid_rules import check_rules
from meshmint_server.policy.names import MalformedName
from meshmint_server.policy.other_names import OtherNameRules
from meshmint_server.policy.templates import InvalidTemplate, Template
from meshmint_server.policy.uris import AnyUri, SpiffePattern, WebPattern, parse_pattern
from meshmint_server.spiffe import TrustDomain

if TYPE_CHECKING:
    from meshmint_server.policy.role import Role

__all__ = ["check", "warnings"]

_LONGEST_BACK_DATING = timedelta(days=50 * 365)
_KEY_BITS = {"rsa": (2048, 3072, 4096), "ec": (256, 384, 521)}


def check(role: Role) -> list[Violation]:
    """Returns everything that is wrong with a role whose single fields are fine."""
    checks: tuple[Callable[[Role], Iterable[Violation]], ...] = (
        _unsupported,
        _keys,
        _usages,
        _ocsp_signing,
        _lifetimes,
        _common_name,
        _domains,
        _uris,
        _other_patterns,
        _subject,
        _policies,
        _svid,
        _jwt_svid,
    )
    return [violation for one in checks for violation in one(role)]


def _unsupported(role: Role) -> Iterable[Violation]:
    if role.generate_lease:
        yield Violation(
            "generate_lease",
            "there are no leases; remove the field: certificates end by not_after",
        )
    if role.no_store_metadata:
        yield Violation(
            "no_store_metadata",
            "there is no certificate metadata; remove the field, or set no_store to keep no record",
        )
    if role.allow_token_displayname:
        yield Violation(
            "allow_token_displayname",
            "callers have no display name; use a template in allowed_domains instead",
        )
    if role.serial_number_source not in ("", "json-csr"):
        yield Violation(
            "serial_number_source",
            "only \"json-csr\" is supported: the request's serial number, else the CSR's",
        )
    if len(role.issuer_ref) > 128 or not role.issuer_ref.isprintable():
        yield Violation("issuer_ref", "an issuer's name has at most 128 printable characters")


def _keys(role: Role) -> Iterable[Violation]:
    bits = role.key_bits
    if role.key_type == "any":
        if bits:
            yield Violation(
                "key_bits", 'leave it unset with key_type "any"; least are rsa 2048 and ec 256'
            )
    elif role.key_type == "rsa" and bits == 8192:
        yield Violation(
            "key_bits",
            "making an rsa key of 8192 bits takes seconds of CPU, so that a few callers could "
            "stop the service; use 4096 (Sign accepts larger keys)",
        )
    elif role.key_type in _KEY_BITS and bits and bits not in _KEY_BITS[role.key_type]:
        sizes = ", ".join(str(size) for size in _KEY_BITS[role.key_type])
        yield Violation("key_bits", f"{role.key_type} keys have {sizes} bits here")


def _usages(role: Role) -> Iterable[Violation]:
    only = role.key_usages & {"encipher_only", "decipher_only"}
    if only and "key_agreement" not in role.key_usages:
        yield Violation(
            "key_usage", f"{usages.spell_key_usages(only)} means nothing without KeyAgreement"
        )
    elif role.key_type != "any" and role.key_usages and not role.key_usage_of[role.key_type]:
        yield Violation(
            "key_usage", f"an {role.key_type} key can have none of these; add DigitalSignature"
        )


def _ocsp_signing(role: Role) -> Iterable[Violation]:
    # Whoever has it can call every certificate of the issuer good, or revoked.
    if ExtendedKeyUsageOID.OCSP_SIGNING in role.ext_key_usages:
        is_named = any(
            usages.parse_ext_key_usage(name) == ExtendedKeyUsageOID.OCSP_SIGNING
            for name in role.ext_key_usage
        )
        yield Violation(
            "ext_key_usage" if is_named else "ext_key_usage_oids",
            "no role grants OCSPSigning: who had it could answer for every certificate of the "
            "issuer; this service answers itself",
        )


def _lifetimes(role: Role) -> Iterable[Violation]:
    if role.ttl and role.max_ttl and role.ttl > role.max_ttl:
        yield Violation("ttl", '"ttl" must not be longer than "max_ttl"')
    if role.not_before_duration > _LONGEST_BACK_DATING:
        yield Violation(
            "not_before_duration",
            "at most 50 years: certificates have no time before 1950 (RFC 5280 section 4.1.2.5)",
        )
    if role.ttl and role.not_after:
        yield Violation("ttl", "set either ttl or not_after, not both")
    if role.not_before and role.not_after and role.not_before >= role.not_after:
        yield Violation("not_after", "the end must lie after not_before")
    if role.not_after and role.not_after_ceiling and role.not_after > role.not_after_ceiling:
        yield Violation("not_after", "the end lies beyond the role's own not_after_bound")


def _common_name(role: Role) -> Iterable[Violation]:
    kinds = set(role.cn_validations)
    unknown = kinds - {"email", "hostname", "disabled"}
    if unknown:
        yield Violation("cn_validations", 'only "email", "hostname" and "disabled" are known')
    elif "disabled" in kinds and len(kinds) > 1:
        yield Violation("cn_validations", '"disabled" stands alone')
    elif not kinds and role.require_cn:
        yield Violation(
            "cn_validations", "empty allows no common name, and require_cn asks for one"
        )
    if role.require_cn and "disabled" not in kinds and not _grants_a_common_name(role):
        yield Violation(
            "require_cn",
            "no common name is ever allowed; set allowed_domains with allow_bare_domains, "
            "allow_subdomains or allow_glob_domains, or set require_cn to false",
        )


def _grants_a_common_name(role: Role) -> bool:
    has_domains = role.allowed_domains and (
        role.allow_bare_domains or role.allow_subdomains or role.allow_glob_domains
    )
    return role.allow_any_name or role.allow_localhost or role.allow_ip_sans or bool(has_domains)


def _domains(role: Role) -> Iterable[Violation]:
    for index, entry in enumerate(role.allowed_domains):
        field = f"allowed_domains[{index}]"
        try:
            sample = _sample(entry, "allowed_domains_template", role.allowed_domains_template)
            role.normalise_domain(sample)
        except (InvalidTemplate, MalformedName) as error:
            yield Violation(field, str(error))


def _uris(role: Role) -> Iterable[Violation]:
    allows_spiffe = False
    for index, entry in enumerate(role.allowed_uri_sans):
        field = f"allowed_uri_sans[{index}]"
        try:
            sample = _sample(entry, "allowed_uri_sans_template", role.allowed_uri_sans_template)
            pattern = parse_pattern(sample)
        except (InvalidTemplate, MalformedName) as error:
            yield Violation(field, str(error))
        else:
            allows_spiffe = allows_spiffe or not isinstance(pattern, WebPattern)
    if role.spiffe == "matching" and not allows_spiffe:
        yield Violation(
            "allowed_uri_sans",
            'spiffe "matching" needs at least one spiffe:// pattern, such as spiffe://example.org/*',
        )
    if role.spiffe == "own" and role.allowed_uri_sans:
        yield Violation(
            "allowed_uri_sans",
            'spiffe "own" grants the caller\'s own SPIFFE ID and no other URI; remove the '
            'patterns, or set spiffe to "matching"',
        )


def _sample(entry: str, flag: str, is_template: bool) -> str:
    """Returns an entry as it might be rendered."""
    if is_template:
        return Template.parse(entry).sample()
    if "{{" in entry or "}}" in entry:
        raise InvalidTemplate(f"this looks like a template; set {flag}")
    return entry


def _other_patterns(role: Role) -> Iterable[Violation]:
    for index, entry in enumerate(role.allowed_other_sans):
        try:
            OtherNameRules.parse((entry,))
        except ValueError as error:
            yield Violation(f"allowed_other_sans[{index}]", str(error))


def _subject(role: Role) -> Iterable[Violation]:
    for field in subject.SUBJECT_FIELDS:
        for index, value in enumerate(getattr(role, field)):
            try:
                subject.check_subject_value(field, value)
            except ValueError as error:
                yield Violation(f"{field}[{index}]", str(error))


def _policies(role: Role) -> Iterable[Violation]:
    oids = [policy.oid for policy in role.policy_identifiers]
    for index, oid in enumerate(oids):
        if oid in oids[:index]:
            yield Violation(
                f"policy_identifiers[{index}]",
                "a policy stands in a certificate once (RFC 5280 section 4.2.1.4)",
            )


def _svid(role: Role) -> Iterable[Violation]:
    """The X509-SVID standard, sections 4 and 5, for roles that always grant a SPIFFE ID."""
    if role.spiffe == "none":
        return
    if "digital_signature" not in role.key_usages:
        yield Violation("key_usage", "an X509-SVID must have DigitalSignature")
    if not role.has_both_tls_usages:
        yield Violation(
            "server_flag" if not role.server_flag else "client_flag",
            "an X509-SVID has both serverAuth and clientAuth; leave server_flag and client_flag on",
        )


def _jwt_svid(role: Role) -> Iterable[Violation]:
    return () if role.jwt_svid is None else check_rules(role.jwt_svid)


def warnings(role: Role, trust_domain: TrustDomain) -> tuple[str, ...]:
    """Returns what is allowed and probably not meant."""
    return tuple(_warnings(role, trust_domain))


def _warnings(role: Role, trust_domain: TrustDomain) -> Iterable[str]:
    if not role.callers:
        yield "callers is empty: nobody can use this role"
    if any(matcher.is_open for matcher in role.callers):
        yield "a matcher in callers is empty: every authenticated caller can use this role"
    for pattern in role.uri_patterns:
        if isinstance(pattern, SpiffePattern) and pattern.trust_domain != trust_domain:
            yield (
                f"allowed_uri_sans names the trust domain {pattern.trust_domain}, and this "
                f"service is of {trust_domain}: "
                + (
                    "the pattern grants nothing"
                    if role.is_x509_svid
                    else "verifiers of that trust domain will not trust these certificates"
                )
            )
    if any(isinstance(pattern, AnyUri) for pattern in role.uri_patterns):
        yield 'allowed_uri_sans has "*": callers can ask for every SPIFFE ID of this trust domain'
    flags = role.allow_bare_domains or role.allow_subdomains or role.allow_glob_domains
    if role.allowed_domains and not flags and not role.allow_any_name:
        yield (
            "allowed_domains has no effect without allow_bare_domains, allow_subdomains or "
            "allow_glob_domains"
        )
    if not role.allow_glob_domains and any("*" in entry for entry in role.allowed_domains):
        yield 'allowed_domains has a "*" that is no glob, as allow_glob_domains is off'
    if role.allow_any_name:
        yield "allow_any_name lets callers ask for every DNS name"
    if role.key_type == "ed25519" and role.key_bits:
        yield "key_bits has no effect: ed25519 keys have one size"
    if role.jwt_svid is not None and any(
        set(pattern) == {"*"} for pattern in role.jwt_svid.audiences
    ):
        yield 'jwt_svid.audiences has "*": callers can ask for tokens for every audience'
    if role.no_store:
        yield "no_store keeps no record: such certificates cannot be found or revoked later"
