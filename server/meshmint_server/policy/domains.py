"""Which DNS names and e-mail addresses a role's domains allow.

The semantics are Vault's (allow_bare_domains, allow_subdomains,
allow_glob_domains), but case never matters and names come in normal form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshmint_server.policy.globs import Glob
from meshmint_server.policy.names import (
    DnsName,
    EmailAddress,
    MalformedName,
    parse_dns_name,
    parse_email,
)

__all__ = ["DomainSet", "normalise_domain"]

_LOCAL_HOSTS = frozenset({"localhost", "localdomain"})


def normalise_domain(entry: str, *, is_glob: bool, any_text: bool) -> str:
    """Brings one entry of allowed_domains into the form that names are compared in.

    Args:
        entry: A domain, e-mail address or, if is_glob, a glob over these.
        is_glob: Whether "*" is a glob's.
        any_text: Whether an entry that is no host name may stand as it is
            (enforce_hostnames off).

    Raises:
        MalformedName: No name could ever equal the entry.
    """
    if is_glob and "*" in entry:
        if entry.endswith("."):
            raise MalformedName("leave out the trailing dot: names in certificates have none")
        return ".".join(_normalise_label(label) for label in entry.split("."))
    try:
        parsed = parse_email(entry) if "@" in entry else parse_dns_name(entry)
    except MalformedName:
        if "*" in entry:
            raise MalformedName("set allow_glob_domains to read the '*' as a glob") from None
        if any_text and entry.isprintable() and entry.strip() == entry:
            return entry.lower()
        raise
    if isinstance(parsed, DnsName) and not parsed.is_hostname and not any_text:
        raise MalformedName("it is not a host name, and enforce_hostnames is on")
    return parsed.text.lower()


def _normalise_label(label: str) -> str:
    if label.isascii():
        if not label.isprintable():
            raise MalformedName("it has a control character")
        return label.lower()
    if "*" in label:
        raise MalformedName("a label with '*' has only ASCII characters")
    return parse_dns_name(label).text


@dataclass(frozen=True, slots=True)
class DomainSet:
    """Domains in normal form with the flags that say how they are read."""

    exact: frozenset[str]
    globs: tuple[Glob, ...]
    allow_bare: bool
    allow_subdomains: bool

    @classmethod
    def build(
        cls, domains: Iterable[str], *, bare: bool, subdomains: bool, globs: bool
    ) -> DomainSet:
        """Makes a set of domains that normalise_domain has been through."""
        entries = tuple(domains)
        return cls(
            exact=frozenset(entries),
            globs=tuple(Glob(entry) for entry in entries if globs and "*" in entry),
            allow_bare=bare,
            allow_subdomains=subdomains,
        )

    def allows(self, name: DnsName | EmailAddress) -> bool:
        """Tells whether a domain of the set allows the name."""
        host = name.host if isinstance(name, EmailAddress) else name
        full = name.text.lower()
        if self.allow_bare and (
            full in self.exact or (host is not name and host.text in self.exact)
        ):
            return True
        if self.allow_subdomains and self._is_below(host):
            return True
        return any(glob.matches(full) for glob in self.globs)

    def allows_text(self, text: str) -> bool:
        """Tells whether a domain of the set allows a text that is no host name."""
        folded = text.lower()
        if self.allow_bare and folded in self.exact:
            return True
        return any(glob.matches(folded) for glob in self.globs)

    def _is_below(self, host: DnsName) -> bool:
        if host.is_wildcard and host.base in self.exact:
            return True
        parent = host.base
        while True:
            _, dot, parent = parent.partition(".")
            if not dot:
                return False
            if parent in self.exact:
                return True


def is_local_host(name: DnsName | EmailAddress, *, subdomains: bool) -> bool:
    """Tells whether allow_localhost covers the name; names below only with subdomains."""
    base = name.host.base if isinstance(name, EmailAddress) else name.base
    if base in _LOCAL_HOSTS:
        return True
    return subdomains and base.endswith((".localhost", ".localdomain"))
