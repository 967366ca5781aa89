"""What a caller gets: the outcome of policy, and all that issuance may use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from meshmint_server.policy.other_names import decode_other_name
from meshmint_server.policy.request import KeyAlgorithm, PublicKey
from meshmint_server.spiffe import SpiffeId

__all__ = ["Decision", "Grant"]

_FEW_NAMES = 8
_SHORT_WARNINGS = 1024


@dataclass(frozen=True)
class Grant:
    """What a role grants to all requests of one shape: all but the time and the key.

    Attributes:
        role: Name of the role that grants it.
        subject: Distinguished name; may be empty.
        sans: Subject alternative names, in order; may be empty.
        spiffe_id: The one SPIFFE ID among the SANs, if any.
        key_usage: The keyUsage extension; None leaves it out.
        ext_key_usages: The extendedKeyUsage extension; empty leaves it out.
        policies: The certificatePolicies extension; empty leaves it out.
        basic_constraints: Whether to write CA:FALSE.
        issuer_ref: Name of the issuer; None is the active one.
        signature_bits: 256, 384 or 512; 0 lets the issuer's key decide.
        use_pss: Whether an RSA issuer signs with PSS.
        is_recorded: False only for a role with no_store.
        warnings: What was changed or left out, for people.
    """

    role: str
    subject: x509.Name
    sans: tuple[x509.GeneralName, ...]
    spiffe_id: SpiffeId | None
    key_usage: x509.KeyUsage | None
    ext_key_usages: tuple[x509.ObjectIdentifier, ...]
    policies: tuple[x509.PolicyInformation, ...]
    basic_constraints: bool
    issuer_ref: str | None
    signature_bits: int
    use_pss: bool
    is_recorded: bool
    warnings: tuple[str, ...]

    @cached_property
    def is_small(self) -> bool:
        """Whether thousands of the kind may be kept in memory: few names, and little to warn of."""
        return len(self.sans) <= _FEW_NAMES and sum(map(len, self.warnings)) <= _SHORT_WARNINGS

    @cached_property
    def subject_text(self) -> str:
        """The subject as RFC 4514 writes it."""
        return self.subject.rfc4514_string()

    @cached_property
    def common_name(self) -> str | None:
        """The subject's common name, if it has one."""
        found = self.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if found else None

    @cached_property
    def spiffe_id_text(self) -> str | None:
        """The SPIFFE ID, if there is one."""
        return None if self.spiffe_id is None else str(self.spiffe_id)

    @cached_property
    def name_texts(self) -> tuple[str, ...]:
        """The subject alternative names with their kinds, such as ``DNS:www.example.com``."""
        return tuple(map(_name_text, self.sans))


class Decision(NamedTuple):
    """A granted request. Immutable, complete, and independent of any issuer.

    Attributes:
        grant: What the certificate says, but for the rest.
        key: The kind of key to make (Issue), or the caller's key (Sign).
        not_before: Start, UTC, whole seconds.
        not_after: End, UTC, whole seconds.
        warnings: All that was changed or left out, for people.
    """

    grant: Grant
    key: KeyAlgorithm | PublicKey
    not_before: datetime
    not_after: datetime
    warnings: tuple[str, ...]


def _name_text(name: x509.GeneralName) -> str:
    match name:
        case x509.DNSName():
            return f"DNS:{name.value}"
        case x509.UniformResourceIdentifier():
            return f"URI:{name.value}"
        case x509.IPAddress():
            return f"IP:{name.value}"
        case x509.RFC822Name():
            return f"email:{name.value}"
        case x509.OtherName():
            return f"other:{name.type_id.dotted_string};UTF8:{decode_other_name(name).value}"
        case _:
            raise TypeError(f"policy granted a name of an unknown type: {type(name).__name__}")
