"""What a caller gets: the outcome of policy, and all that issuance may use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from meshmint_server.policy.request import KeyAlgorithm, PublicKey
from meshmint_server.spiffe import SpiffeId

__all__ = ["Decision"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A granted request. Immutable, complete, and independent of any issuer.

    Attributes:
        role: Name of the role that grants it.
        subject: Distinguished name; may be empty.
        sans: Subject alternative names, in order; may be empty.
        spiffe_id: The one SPIFFE ID among the SANs, if any.
        not_before: Start, UTC, whole seconds.
        not_after: End, UTC, whole seconds.
        key: The kind of key to make (Issue), or the caller's key (Sign).
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
    not_before: datetime
    not_after: datetime
    key: KeyAlgorithm | PublicKey
    key_usage: x509.KeyUsage | None
    ext_key_usages: tuple[x509.ObjectIdentifier, ...]
    policies: tuple[x509.PolicyInformation, ...]
    basic_constraints: bool
    issuer_ref: str | None
    signature_bits: int
    use_pss: bool
    is_recorded: bool
    warnings: tuple[str, ...]
