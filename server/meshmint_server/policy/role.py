"""Role: who may get which certificates, with which keys, for how long.

Field names and meanings are those of Vault's PKI roles; docs/reference/roles.md
tells where this is stricter. A role that exists has been checked whole: what
could never work was refused when it was written.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from meshmint_server.errors import InvalidRole, Violation
from meshmint_server.policy import durations, role_checks, subject, usages
from meshmint_server.policy.caller import Caller
from meshmint_server.policy.callers import CallerMatcher
from meshmint_server.policy.domains import DomainSet, normalise_domain
from meshmint_server.policy.globs import Glob
from meshmint_server.policy.jwt_svid_rules import JwtSvid
from meshmint_server.policy.other_names import OtherNameRules
from meshmint_server.policy.request import KeyAlgorithm
from meshmint_server.policy.role_fields import (
    CommaList,
    Duration,
    ExtKeyUsages,
    IpNetworks,
    KeyUsages,
    Lifetime,
    NotAfterBound,
    Oids,
    PolicyIdentifier,
    PolicyIdentifiers,
    RoleName,
    SignatureBits,
    Time,
)
from meshmint_server.policy.templates import Template
from meshmint_server.policy.uris import UriPattern, parse_pattern
from meshmint_server.spiffe import TrustDomain

__all__ = ["CallerMatcher", "PolicyIdentifier", "Role"]

_OFF_FOR_X509_SVIDS = ("require_cn", "allow_localhost", "allow_ip_sans")
_DEFAULT_BITS = {"rsa": 2048, "ec": 256}


class Role(BaseModel):
    """One role. Immutable; what depends on nothing but the role is worked out once.

    Every field is described in docs/reference/roles.md and in role.proto.

    Raises:
        InvalidRole: The fields are fine one by one and cannot work together.
        pydantic.ValidationError: A field is malformed; from_document translates it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RoleName
    callers: tuple[CallerMatcher, ...] = ()
    spiffe: Literal["own", "matching", "none"] = "none"

    ttl: Lifetime = None
    max_ttl: Lifetime = None
    ttl_over_max: Literal["clamp", "refuse"] = "clamp"
    not_before_duration: Duration = timedelta(seconds=30)
    not_before: Time = None
    not_before_bound: Literal["permit", "duration", "forbid"] = "permit"
    not_after: Time = None
    not_after_bound: NotAfterBound = "permit"

    allow_localhost: bool = True
    allowed_domains: CommaList = ()
    allowed_domains_template: bool = False
    allow_globs_in_identity_templates: bool = False
    allow_bare_domains: bool = False
    allow_subdomains: bool = False
    allow_glob_domains: bool = False
    allow_wildcard_certificates: bool = True
    allow_any_name: bool = False
    allow_token_displayname: bool = False
    enforce_hostnames: bool = True
    allow_ip_sans: bool = True
    allowed_ip_sans_cidr: IpNetworks = ()
    allowed_uri_sans: CommaList = ()
    allowed_uri_sans_template: bool = False
    allowed_other_sans: CommaList = ()
    allowed_serial_numbers: CommaList = ()
    allowed_user_ids: CommaList = ()

    server_flag: bool = True
    client_flag: bool = True
    code_signing_flag: bool = False
    email_protection_flag: bool = False
    key_type: Literal["rsa", "ec", "ed25519", "any"] = "rsa"
    key_bits: Annotated[int, Field(ge=0, le=65_536)] = 0
    signature_bits: SignatureBits = 0
    use_pss: bool = False
    key_usage: KeyUsages = usages.DEFAULT_KEY_USAGES
    ext_key_usage: ExtKeyUsages = ()
    ext_key_usage_oids: Oids = ()

    use_csr_common_name: bool = True
    use_csr_sans: bool = True
    require_cn: bool = True
    cn_validations: CommaList = ("email", "hostname")
    ou: CommaList = ()
    organization: CommaList = ()
    country: CommaList = ()
    locality: CommaList = ()
    province: CommaList = ()
    street_address: CommaList = ()
    postal_code: CommaList = ()
    policy_identifiers: PolicyIdentifiers = ()
    basic_constraints_valid_for_non_ca: bool = False

    generate_lease: bool = False
    no_store: bool = False
    no_store_metadata: bool = False
    serial_number_source: str = ""
    issuer_ref: str = "default"

    jwt_svid: JwtSvid = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        # An empty YAML value means the default.
        given = {field: value for field, value in values.items() if value is not None}
        if given.get("spiffe") in ("own", "matching"):
            # An X509-SVID role grants a SPIFFE ID, and other names only when asked to.
            given = {**dict.fromkeys(_OFF_FOR_X509_SVIDS, False), **given}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        violations = role_checks.check(self)
        if violations:
            raise _invalid(self.name, violations)
        return self

    @classmethod
    def from_document(cls, document: Mapping[str, object] | str | bytes) -> Self:
        """Reads a role from a mapping (of YAML, say) or JSON text.

        Raises:
            InvalidRole: With every violation that could be found.
        """
        if isinstance(document, str | bytes):
            try:
                document = json.loads(document)
            except ValueError:
                raise InvalidRole("The role is not a JSON document.") from None
        if not isinstance(document, Mapping):
            raise InvalidRole("The role is not a mapping of fields to values.")
        name = str(document.get("name", ""))
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            raise _invalid(name, _translate(error)) from None

    def document(self) -> str:
        """Writes the role as canonical JSON: sorted keys, only what is not the default."""
        bare: dict[str, object] = {"name": self.name, "spiffe": self.spiffe}
        # Both are what the defaults of other fields hang on, or stand in for a role.
        default = {
            field: info.get_default(call_default_factory=True)
            for field, info in type(self).model_fields.items()
        }
        default |= dict.fromkeys(_OFF_FOR_X509_SVIDS, self.spiffe == "none")
        written = self.model_dump(mode="json")
        kept = {
            field: value
            for field, value in written.items()
            if field == "name" or getattr(self, field) != default[field]
        }
        bare.update(kept)
        if self.spiffe == "none":
            del bare["spiffe"]
        for matcher in kept.get("callers", ()):
            for field in [field for field, value in matcher.items() if not value]:
                del matcher[field]
        return json.dumps(bare, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def warnings(self, trust_domain: TrustDomain) -> tuple[str, ...]:
        """Returns what an operator should know of a role that is fine as such."""
        return role_checks.warnings(self, trust_domain)

    def is_for(self, caller: Caller) -> bool:
        """Tells whether the caller may use the role."""
        return any(matcher.matches(caller) for matcher in self.callers)

    # What follows is worked out once per role, on first use.

    @cached_property
    def is_x509_svid(self) -> bool:
        """Whether every certificate of the role carries a SPIFFE ID."""
        return self.spiffe != "none"

    @cached_property
    def key_algorithm(self) -> KeyAlgorithm | None:
        """The kind of key that Issue makes; None if callers choose."""
        if self.key_type == "any":
            return None
        if self.key_type == "ed25519":
            return KeyAlgorithm.ED25519
        return KeyAlgorithm((self.key_type, self.minimum_key_bits))

    @cached_property
    def minimum_key_bits(self) -> int:
        """Size of the key, and the least size of a CSR's; 0 if the kind has one size."""
        return self.key_bits or _DEFAULT_BITS.get(self.key_type, 0)

    @cached_property
    def domains(self) -> DomainSet:
        """The domains that are not templates."""
        return self.domain_set(self._split_domains[0])

    @cached_property
    def domain_templates(self) -> tuple[Template, ...]:
        """The domains that are."""
        return self._split_domains[1]

    @cached_property
    def _split_domains(self) -> tuple[tuple[str, ...], tuple[Template, ...]]:
        plain, templates = _split_templates(self.allowed_domains, self.allowed_domains_template)
        return tuple(self.normalise_domain(entry) for entry in plain), templates

    def normalise_domain(self, entry: str) -> str:
        """Brings a rendered entry of allowed_domains into normal form.

        Raises:
            MalformedName: No name could equal it.
        """
        return normalise_domain(
            entry, is_glob=self.allow_glob_domains, any_text=not self.enforce_hostnames
        )

    def domain_set(self, entries: tuple[str, ...]) -> DomainSet:
        """Makes a set of entries in normal form, read by the role's flags."""
        return DomainSet.build(
            entries,
            bare=self.allow_bare_domains,
            subdomains=self.allow_subdomains,
            globs=self.allow_glob_domains,
        )

    @cached_property
    def uri_patterns(self) -> tuple[UriPattern, ...]:
        """The URI patterns that are not templates."""
        return tuple(parse_pattern(entry) for entry in self._split_uris[0])

    @cached_property
    def uri_templates(self) -> tuple[Template, ...]:
        """The URI patterns that are."""
        return self._split_uris[1]

    @cached_property
    def _split_uris(self) -> tuple[tuple[str, ...], tuple[Template, ...]]:
        return _split_templates(self.allowed_uri_sans, self.allowed_uri_sans_template)

    @cached_property
    def ip_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks of allowed_ip_sans_cidr."""
        return tuple(ipaddress.ip_network(text, strict=False) for text in self.allowed_ip_sans_cidr)

    @cached_property
    def other_names(self) -> OtherNameRules:
        """What allowed_other_sans allows."""
        return OtherNameRules.parse(self.allowed_other_sans)

    @cached_property
    def serial_number_globs(self) -> tuple[Glob, ...]:
        """What allowed_serial_numbers allows."""
        return tuple(Glob(text) for text in self.allowed_serial_numbers)

    @cached_property
    def user_id_globs(self) -> tuple[Glob, ...]:
        """What allowed_user_ids allows, in lower case: UIDs are compared without case."""
        return tuple(Glob(text.lower()) for text in self.allowed_user_ids)

    @cached_property
    def key_usages(self) -> frozenset[str]:
        """The key usages, in x509.KeyUsage's attribute names."""
        return usages.key_usage_attributes(self.key_usage)

    @cached_property
    def key_usage_of(self) -> Mapping[str, x509.KeyUsage | None]:
        """The keyUsage extension by key type, without what such a key cannot have."""
        return {
            key_type: usages.build_key_usage(self.key_usages & possible)
            for key_type, possible in usages.KEY_USAGES_OF.items()
        }

    @cached_property
    def ext_key_usages(self) -> tuple[x509.ObjectIdentifier, ...]:
        """The extended key usages: flags, names and object identifiers together."""
        flags = (
            (self.server_flag, ExtendedKeyUsageOID.SERVER_AUTH),
            (self.client_flag, ExtendedKeyUsageOID.CLIENT_AUTH),
            (self.code_signing_flag, ExtendedKeyUsageOID.CODE_SIGNING),
            (self.email_protection_flag, ExtendedKeyUsageOID.EMAIL_PROTECTION),
        )
        wanted = [oid for is_set, oid in flags if is_set]
        wanted += [usages.parse_ext_key_usage(name) for name in self.ext_key_usage]
        wanted += [usages.parse_oid(text) for text in self.ext_key_usage_oids]
        return tuple(dict.fromkeys(wanted))

    @cached_property
    def has_both_tls_usages(self) -> bool:
        """Whether serverAuth and clientAuth are both set, as an X509-SVID needs."""
        tls = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        return tls <= set(self.ext_key_usages)

    @cached_property
    def bare_subject(self) -> x509.Name:
        """The subject of certificates for which the caller adds nothing to it."""
        return x509.Name(self.subject_attributes)

    @cached_property
    def subject_attributes(self) -> tuple[x509.NameAttribute[str], ...]:
        """The role's part of the subject."""
        return subject.role_attributes(
            {field: getattr(self, field) for field in subject.SUBJECT_FIELDS}
        )

    @cached_property
    def policies(self) -> tuple[x509.PolicyInformation, ...]:
        """The certificatePolicies extension's content."""
        return tuple(policy.build() for policy in self.policy_identifiers)

    @cached_property
    def not_after_ceiling(self) -> datetime | None:
        """The time that not_after_bound names, if it names one."""
        if self.not_after_bound in ("permit", "ttl-limited", "forbid"):
            return None
        return durations.parse_time(self.not_after_bound)

    @cached_property
    def issuer(self) -> str | None:
        """Name of the issuer; None is the active one."""
        return None if self.issuer_ref in ("", "default") else self.issuer_ref


def _split_templates(
    entries: tuple[str, ...], is_template: bool
) -> tuple[tuple[str, ...], tuple[Template, ...]]:
    if not is_template:
        return entries, ()
    plain = tuple(entry for entry in entries if "{" not in entry and "}" not in entry)
    return plain, tuple(Template.parse(entry) for entry in entries if entry not in plain)


def _invalid(name: str, violations: list[Violation]) -> InvalidRole:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return InvalidRole(
        f"Role {name!r} cannot work: {first.field}: {first.description}{more}",
        violations=violations,
    )


def _translate(error: ValidationError) -> list[Violation]:
    violations = []
    for item in error.errors(include_url=False, include_input=False):
        field = ""
        for part in item["loc"]:
            field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
        if item["type"] == "value_error":
            description = str(item["ctx"]["error"])
        elif item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(field, Role.model_fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            description = f"there is no such field{hint}"
        elif item["type"] == "missing":
            description = "the field is required"
        else:
            description = item["msg"]
        violations.append(Violation(field, description))
    return violations
