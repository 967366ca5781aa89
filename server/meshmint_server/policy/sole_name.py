"""CSRs of protocols in which a caller asks for one name: its own.

Such a CSR says nothing that the caller's identity does not say already, so any further name
in it is a mistake or an attempt, and is refused here instead of being left to a role that may
grant it to somebody who asks for it by name. Never grants anything: that is the role's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshmint_server.errors import PolicyViolated, PreconditionFailed, Violation
from meshmint_server.policy.request import CsrContents, Names
from meshmint_server.spiffe import SpiffeId

__all__ = ["only_dns_name", "only_spiffe_id"]


def only_spiffe_id(csr: CsrContents, own: SpiffeId | None) -> CsrContents:
    """Gives the CSR back if it names nothing but the caller's SPIFFE ID, or nothing at all.

    Raises:
        PolicyViolated: It names something else; carries every such name.
    """
    names = csr.names
    violations = list(_beside(names, but=("uris",)))
    for index, uri in enumerate(names.uris):
        if own is None or uri != str(own):
            violations.append(
                Violation(f"csr.uris[{index}]", "is not the caller's own SPIFFE ID; leave it out")
            )
    if len(names.uris) > 1:
        violations.append(Violation("csr.uris", "name the caller's own SPIFFE ID alone"))
    if violations:
        raise PolicyViolated(
            "The CSR names more than the caller's own identity. "
            f"{violations[0].field}: {violations[0].description}.",
            violations=violations,
        )
    return csr


def only_dns_name(csr: CsrContents, own: str) -> CsrContents:
    """The CSR if it names nothing but this DNS name, without the common name that repeats it.

    A common name has at most 64 characters, and a SAN has room for every such name: the
    certificate says it there alone.

    Raises:
        PreconditionFailed: It does not name it, or names something else; carries every fault.
    """
    names = csr.names
    violations = list(_beside(names, but=("common_name", "dns_names")))
    if names.dns_names != (own,):
        violations.append(Violation("csr.dns_names", f"name {own} and nothing else"))
    if names.common_name not in ("", own):
        violations.append(Violation("csr.common_name", f"leave it out, or make it {own}"))
    if violations:
        raise PreconditionFailed(
            "The CSR is not one for the caller's own identity alone. "
            f"{violations[0].field}: {violations[0].description}.",
            reason="CSR_MISMATCH",
            violations=violations,
        )
    return replace(csr, names=replace(names, common_name=""))


def _beside(names: Names, *, but: tuple[str, ...]) -> Iterator[Violation]:
    """A violation for each kind of name that the CSR has beside those."""
    kinds = {
        "common_name": names.common_name,
        "dns_names": names.dns_names,
        "ip_addresses": names.ip_addresses,
        "uris": names.uris,
        "email_addresses": names.email_addresses,
        "other_names": names.other_names,
        "subject_serial_number": names.subject_serial_number,
        "user_ids": names.user_ids,
    }
    for kind, found in kinds.items():
        if found and kind not in but:
            yield Violation(f"csr.{kind}", "this protocol has no such name; leave it out")
