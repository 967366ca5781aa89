"""Why a certificate is revoked."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["RevocationReason"]


class RevocationReason(IntEnum):
    """CRLReason (RFC 5280 section 5.3.1), as far as a leaf is revoked for good for it.

    Left out are those of CAs and attribute authorities, and certificateHold: nothing is
    ever taken back.
    """

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    PRIVILEGE_WITHDRAWN = 9
