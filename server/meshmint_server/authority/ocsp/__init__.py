"""OCSP (RFC 6960, profiled by RFC 5019): whether a certificate is revoked, asked one at a time.

Answers are signed by delegated keys that live in memory; issuers' keys only sign the
certificates of these. Requests are read here and nowhere else.
"""

from meshmint_server.authority.ocsp.answer import RESPONDER_ROLE, Answer, Delegate
from meshmint_server.authority.ocsp.responder import OcspResponder

__all__ = ["RESPONDER_ROLE", "Answer", "Delegate", "OcspResponder"]
