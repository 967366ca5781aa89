"""Which names a certificate gets: subject and SANs, from what was asked and the role.

Every name goes through here, whether it comes from the request, from a CSR or
from the caller's own identity.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass

from cryptography import x509

from meshmint_server.policy.caller import Caller
from meshmint_server.policy.domains import DomainSet, is_local_host
from meshmint_server.policy.findings import Findings
from meshmint_server.policy.names import (
    DnsName,
    EmailAddress,
    MalformedName,
    parse_dns_name,
    parse_email,
    parse_ip,
)
from meshmint_server.policy.request import CertificateRequest, Names, OtherName
from meshmint_server.policy.role import Role
from meshmint_server.policy.san_parsing import (
    Parsed,
    count_names,
    parse_names,
    spell,
    to_general_name,
)
from meshmint_server.policy.subject import (
    MAX_COMMON_NAME,
    check_serial_number,
    check_user_id,
)
from meshmint_server.policy.uri_grants import grant_uris
from meshmint_server.policy.uris import Uri
from meshmint_server.spiffe import SpiffeId, TrustDomain

__all__ = ["GrantedNames", "decide_names"]

_DOTTED = re.compile(r"[A-Za-z0-9._-]+")

MAX_SANS = 1000
MAX_USER_IDS = 16


@dataclass(frozen=True, slots=True)
class GrantedNames:
    """The names of a certificate; meaningless if something was found wrong."""

    common_name: str
    serial_number: str
    user_ids: tuple[str, ...]
    sans: tuple[x509.GeneralName, ...]
    spiffe_id: SpiffeId | None


@dataclass(frozen=True, slots=True)
class _Source:
    """Where names come from: the fields' prefix, and the names."""

    prefix: str
    names: Names


def decide_names(
    role: Role,
    caller: Caller,
    request: CertificateRequest,
    trust_domain: TrustDomain,
    findings: Findings,
) -> GrantedNames:
    """Decides the names."""
    beside = _Source("names", request.names)
    from_csr = None if request.csr is None else _Source("csr", request.csr.names)
    for source in (beside, from_csr):
        if source is not None and count_names(source.names) > MAX_SANS:
            findings.malformed(source.prefix, f"a certificate has at most {MAX_SANS} names")
            return GrantedNames("", "", (), (), None)
    cn_source = san_source = beside
    if from_csr is not None:
        cn_source = from_csr if role.use_csr_common_name else beside
        san_source = from_csr if role.use_csr_sans else beside
        _refuse_names_beside_csr(role, request.names, findings)
    granting = _Granting(role, caller, trust_domain, findings, request.names)
    granting.take_common_name(cn_source)
    granting.take_sans(san_source)
    granting.take_serial_number(beside, from_csr)
    granting.take_user_ids(beside, from_csr)
    if from_csr is not None:
        granting.check_rest_of_csr(from_csr, request.csr.ignored_subject if request.csr else ())
    return granting.result()


def _refuse_names_beside_csr(role: Role, names: Names, findings: Findings) -> None:
    if role.use_csr_common_name and names.common_name:
        findings.malformed(
            "names.common_name", "the role takes the common name from the CSR; leave it unset"
        )
    if role.use_csr_sans and count_names(names):
        findings.malformed("names", "the role takes the SANs from the CSR; set none beside it")


class _Granting:
    """The names of one decision while they are being gathered."""

    def __init__(
        self,
        role: Role,
        caller: Caller,
        trust_domain: TrustDomain,
        findings: Findings,
        asked: Names,
    ) -> None:
        self._role = role
        self._caller = caller
        self._trust_domain = trust_domain
        self._findings = findings
        self._excludes_cn = asked.exclude_common_name_from_sans
        self._common_name = ""
        self._serial_number = ""
        self._user_ids: tuple[str, ...] = ()
        self._spiffe_id: SpiffeId | None = None
        # Names in the order of the certificate, each once.
        self._sans: dict[Parsed, None] = {}
        self._rendered_domains: DomainSet | None = None

    def result(self) -> GrantedNames:
        has_identity = self._common_name or self._sans or self._serial_number or self._user_ids
        if not has_identity and self._findings.is_clean:
            self._findings.malformed("names", "ask for at least one name")
        sans = tuple(map(to_general_name, self._sans)) if self._findings.is_clean else ()
        return GrantedNames(
            self._common_name, self._serial_number, self._user_ids, sans, self._spiffe_id
        )

    # Common name

    def take_common_name(self, source: _Source) -> None:
        text, field = source.names.common_name, f"{source.prefix}.common_name"
        if not text:
            if self._role.require_cn:
                self._findings.outside(field, "the role requires a common name")
            return
        if not text.isprintable() or text != text.strip():
            self._findings.malformed(
                field, "a common name has no control characters and no spaces around it"
            )
            return
        self._common_name = self._check_common_name(text, field)
        # In bytes, which is stricter than RFC 5280 and what verifiers in C have room for.
        if len(self._common_name.encode()) > MAX_COMMON_NAME:
            self._findings.malformed(
                field,
                f"a common name has at most {MAX_COMMON_NAME} characters (RFC 5280 appendix A.1), "
                "fewer where they are not ASCII; put longer names into the SANs",
            )

    def _check_common_name(self, text: str, field: str) -> str:
        """Returns the common name in normal form, and adds its SAN."""
        role = self._role
        is_unchecked = role.cn_validations == ("disabled",)
        try:
            name = _parse_common_name(text)
        except MalformedName as error:
            if is_unchecked:
                return text
            if role.enforce_hostnames or _means_to_be_a_name(text):
                self._findings.malformed(field, str(error))
            elif not self._allows_text(text):
                self._findings.outside(field, "the role does not allow this common name")
            return text
        kind = "email" if isinstance(name, EmailAddress) else "hostname"
        if not is_unchecked and kind not in role.cn_validations:
            self._findings.outside(
                field, f"by its cn_validations the role allows no {kind} as common name"
            )
        # As in Vault, a name that is no host name stands in the subject alone.
        becomes_san = not self._excludes_cn and not (
            isinstance(name, DnsName) and not name.is_hostname
        )
        if (becomes_san or not is_unchecked) and self._grants(name, field) and becomes_san:
            self._sans[name] = None
        return spell(name)

    def _allows_text(self, text: str) -> bool:
        role = self._role
        return "hostname" in role.cn_validations and (
            role.allow_any_name
            or role.domains.allows_text(text)
            or self._render_domains().allows_text(text)
        )

    # SANs

    def take_sans(self, source: _Source) -> None:
        uris: dict[SpiffeId | Uri, str] = {}
        if count_names(source.names):
            for asked in parse_names(source.names, source.prefix):
                if asked.parsed is None:
                    self._findings.malformed(asked.field, asked.problem)
                elif isinstance(asked.parsed, SpiffeId | Uri):
                    uris.setdefault(asked.parsed, asked.field)
                elif self._grants(asked.parsed, asked.field):
                    self._sans[asked.parsed] = None
        granted, self._spiffe_id = grant_uris(
            self._role,
            self._caller,
            uris,
            f"{source.prefix}.uris",
            trust_domain=self._trust_domain,
            findings=self._findings,
        )
        self._sans.update(dict.fromkeys(granted))

    def _grants(self, name: Parsed, field: str) -> bool:
        """Tells whether the role allows a name that is no URI; notes why not."""
        if isinstance(name, DnsName | EmailAddress):
            problem = self._problem_of_domain(name)
        elif isinstance(name, OtherName):
            problem = "" if self._role.other_names.allows(name) else "the role does not allow it"
        elif isinstance(name, ipaddress.IPv4Address | ipaddress.IPv6Address):
            problem = self._problem_of_ip(name)
        else:
            raise TypeError(name)
        if problem:
            self._findings.outside(field, f"{spell(name)}: {problem}")
        return not problem

    def _problem_of_domain(self, name: DnsName | EmailAddress) -> str:
        role = self._role
        host = name.host if isinstance(name, EmailAddress) else name
        if host.is_wildcard and not role.allow_wildcard_certificates:
            return "the role allows no wildcard"
        if role.enforce_hostnames and not host.is_hostname:
            return "the role allows only host names: letters, digits and inner hyphens"
        if role.allow_any_name:
            return ""
        if role.allow_localhost and is_local_host(name, subdomains=role.allow_subdomains):
            return ""
        if role.domains.allows(name):
            return ""
        if role.domain_templates and self._render_domains().allows(name):
            return ""
        return "the role does not allow this name"

    def _problem_of_ip(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        if not self._role.allow_ip_sans:
            return "the role allows no IP address"
        networks = self._role.ip_networks
        if networks and not any(address in network for network in networks):
            return "the role does not allow this IP address"
        return ""

    def _render_domains(self) -> DomainSet:
        """Renders the role's domain templates; what cannot be rendered grants nothing."""
        if self._rendered_domains is None:
            entries = []
            for template in self._role.domain_templates:
                text = template.render(
                    self._caller,
                    self._trust_domain,
                    lambda _, value, is_bare=template.is_bare: (  # type: ignore[misc]
                        ("*" not in value or self._role.allow_globs_in_identity_templates)
                        and ("@" not in value or is_bare)
                    ),
                )
                if text is None:
                    continue
                try:
                    entries.append(self._role.normalise_domain(text))
                except MalformedName:
                    continue
            self._rendered_domains = self._role.domain_set(tuple(entries))
        return self._rendered_domains

    # The rest of the subject

    def take_serial_number(self, beside: _Source, from_csr: _Source | None) -> None:
        wanted, field = beside.names.subject_serial_number, "names.subject_serial_number"
        in_csr = from_csr.names.subject_serial_number if from_csr else ""
        if wanted and in_csr and wanted != in_csr:
            self._findings.malformed(field, "the CSR has another serialNumber; set it in one place")
        if not wanted:
            wanted, field = in_csr, "csr.subject_serial_number"
        if not wanted:
            return
        try:
            check_serial_number(wanted)
        except ValueError as error:
            self._findings.malformed(field, str(error))
            return
        if not any(glob.matches(wanted) for glob in self._role.serial_number_globs):
            self._findings.outside(field, "the role does not allow this serialNumber")
        self._serial_number = wanted

    def take_user_ids(self, beside: _Source, from_csr: _Source | None) -> None:
        wanted = [(f"names.user_ids[{i}]", text) for i, text in enumerate(beside.names.user_ids)]
        if from_csr:
            wanted += [
                (f"csr.user_ids[{i}]", text) for i, text in enumerate(from_csr.names.user_ids)
            ]
        if len(wanted) > MAX_USER_IDS:
            self._findings.malformed("names.user_ids", f"at most {MAX_USER_IDS} can be asked for")
            return
        for field, text in wanted:
            try:
                check_user_id(text)
            except ValueError as error:
                self._findings.malformed(field, str(error))
                continue
            if not any(glob.matches(text.lower()) for glob in self._role.user_id_globs):
                self._findings.outside(field, "the role does not allow this user id")
        self._user_ids = tuple(dict.fromkeys(text for _, text in wanted))

    # What a CSR carries beside what the role takes from it

    def check_rest_of_csr(self, from_csr: _Source, ignored_subject: tuple[str, ...]) -> None:
        if ignored_subject:
            self._findings.warn(
                f"the role decides the subject; of the CSR's, {', '.join(ignored_subject)} "
                "was left out"
            )
        if not self._role.use_csr_common_name and from_csr.names.common_name:
            self._check_unused_common_name(from_csr.names.common_name)
        if self._role.use_csr_sans:
            return
        for asked in parse_names(from_csr.names, from_csr.prefix):
            if asked.parsed is None:
                self._findings.malformed(asked.field, asked.problem)
            elif asked.parsed not in self._sans:
                self._findings.outside(
                    asked.field,
                    f"{spell(asked.parsed)}: the role takes names from the request, not from the "
                    "CSR; ask for it in names, or leave it out of the CSR",
                )

    def _check_unused_common_name(self, text: str) -> None:
        with suppress(MalformedName):
            text = spell(_parse_common_name(text))
        if text != self._common_name:
            self._findings.outside(
                "csr.common_name",
                "the role takes the common name from the request, not from the CSR; ask for it in "
                "names, or leave it out of the CSR",
            )


def _means_to_be_a_name(text: str) -> bool:
    """Tells a broken address, wildcard or dotted name from text that never was a name."""
    return "@" in text or "*" in text or ("." in text and bool(_DOTTED.fullmatch(text)))


def _parse_common_name(
    text: str,
) -> DnsName | EmailAddress | ipaddress.IPv4Address | ipaddress.IPv6Address:
    if "@" in text:
        return parse_email(text)
    try:
        return parse_ip(text)
    except MalformedName:
        return parse_dns_name(text)
