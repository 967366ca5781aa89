"""What a role grants a caller. Pure: no I/O, no clock and no randomness of its own."""

from meshmint_server.policy.caller import Attribute, Caller
from meshmint_server.policy.callers import CallerMatcher
from meshmint_server.policy.choose import choose_jwt_svid_role, choose_role, still_chosen
from meshmint_server.policy.csr import parse_csr, parse_csr_der
from meshmint_server.policy.decide import Bounds, Decider, decide
from meshmint_server.policy.decision import Decision, Grant
from meshmint_server.policy.durations import LONGEST
from meshmint_server.policy.globs import Glob
from meshmint_server.policy.jwt_svid import (
    MOST_AUDIENCES,
    JwtSvidDecision,
    JwtSvidRequest,
    decide_jwt_svid,
)
from meshmint_server.policy.jwt_svid_rules import LONGEST_TTL, JwtSvidRules
from meshmint_server.policy.other_names import decode_other_name
from meshmint_server.policy.pem import decode_pem_block
from meshmint_server.policy.request import (
    CertificateRequest,
    CsrContents,
    KeyAlgorithm,
    Names,
    OtherName,
    PublicKey,
    Validity,
)
from meshmint_server.policy.reserved import ReservedNames
from meshmint_server.policy.role import PolicyIdentifier, Role
from meshmint_server.policy.sole_name import only_dns_name, only_spiffe_id

__all__ = [
    "LONGEST",
    "LONGEST_TTL",
    "MOST_AUDIENCES",
    "Attribute",
    "Bounds",
    "Caller",
    "CallerMatcher",
    "CertificateRequest",
    "CsrContents",
    "Decider",
    "Decision",
    "Glob",
    "Grant",
    "JwtSvidDecision",
    "JwtSvidRequest",
    "JwtSvidRules",
    "KeyAlgorithm",
    "Names",
    "OtherName",
    "PolicyIdentifier",
    "PublicKey",
    "ReservedNames",
    "Role",
    "Validity",
    "choose_jwt_svid_role",
    "choose_role",
    "decide",
    "decide_jwt_svid",
    "decode_other_name",
    "decode_pem_block",
    "only_dns_name",
    "only_spiffe_id",
    "parse_csr",
    "parse_csr_der",
    "still_chosen",
]
