"""SPIFFE IDs as text: which trust domain one belongs to (SPIFFE-ID.md section 2)."""

from __future__ import annotations

import re

__all__ = ["trust_domain_id", "trust_domain_of"]

_MAX_ID = 2048
_MAX_TRUST_DOMAIN = 255
_FORM = re.compile(r"spiffe://(?P<domain>[a-z0-9._-]+)(?P<path>(?:/[a-zA-Z0-9._-]+)*)")


def trust_domain_of(spiffe_id: str) -> str | None:
    """The trust domain of a workload's SPIFFE ID; None if it is not one."""
    if len(spiffe_id) > _MAX_ID:
        return None
    match = _FORM.fullmatch(spiffe_id)
    if match is None or not match["path"] or len(match["domain"]) > _MAX_TRUST_DOMAIN:
        return None
    if {".", ".."} & set(match["path"].split("/")):
        return None
    return match["domain"]


def trust_domain_id(trust_domain: str) -> str:
    """The SPIFFE ID of a trust domain itself."""
    return f"spiffe://{trust_domain}"
