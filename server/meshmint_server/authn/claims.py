"""The claims that every token must have, and the flat attributes that claims become."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from meshmint_server.authn.refusal import Refusal, quoted, refuse
from meshmint_server.authn.token import Json
from meshmint_server.policy.caller import Attribute

__all__ = ["checked_expiry", "claim_attributes", "instant", "issued_at"]

MAX_ATTRIBUTES = 256
MAX_ATTRIBUTE_CHARACTERS = 32 * 1024
MAX_DEPTH = 8
LAST_INSTANT = 253402300799.0  # The end of the year 9999, where datetime ends too.


def checked_expiry(
    claims: Mapping[str, Json], *, audiences: frozenset[str], leeway: float, now: float
) -> float:
    """Checks aud, exp, nbf and iat (RFC 7519 section 4.1), and returns exp.

    Args:
        claims: The token's claims.
        audiences: The token must be for one of these.
        leeway: Seconds by which clocks may differ.
        now: Seconds since the epoch.

    Raises:
        Unauthenticated: The token is for somebody else, or for another time.
    """
    _check_audience(claims.get("aud"), audiences)
    expiry = _instant(claims, "exp")
    if expiry is None:
        raise refuse(
            Refusal.CREDENTIAL_MALFORMED,
            "the token has no expiry ('exp'); tokens that never expire are not accepted",
        )
    if now >= expiry + leeway:
        raise refuse(
            Refusal.CREDENTIAL_EXPIRED,
            f"the token expired at {instant(expiry):%Y-%m-%dT%H:%M:%SZ}; get a new one",
        )
    for name in ("nbf", "iat"):
        start = _instant(claims, name)
        if start is not None and now < start - leeway:
            raise refuse(
                Refusal.CREDENTIAL_NOT_YET_VALID,
                f"the token is not valid before {instant(start):%Y-%m-%dT%H:%M:%SZ} ('{name}'); "
                "compare the clocks",
            )
    return expiry


def issued_at(claims: Mapping[str, Json]) -> float | None:
    """When the token says it was made (iat), seconds since the epoch; None if it does not.

    Raises:
        Unauthenticated: It says so in no sensible way.
    """
    return _instant(claims, "iat")


def instant(seconds: float) -> datetime:
    """A claim's time as a datetime, UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def claim_attributes(claims: Mapping[str, Json]) -> dict[str, Attribute]:
    """Flattens claims to ``claims.<name>``, nested names joined by dots.

    Strings stay; numbers and booleans become their JSON text; a list of these
    becomes a tuple. Nulls and lists of anything else have no attribute.

    Raises:
        Unauthenticated: There is more than roles could sensibly match, or two
            claims have the same flat name.
    """
    attributes: dict[str, Attribute] = {}
    budget = MAX_ATTRIBUTE_CHARACTERS
    pending: list[tuple[str, Json, int]] = [("claims", dict(claims), 0)]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, dict):
            if depth >= MAX_DEPTH:
                raise refuse(
                    Refusal.CREDENTIAL_MALFORMED,
                    f"the token's claims are nested over {MAX_DEPTH} deep",
                )
            pending.extend((f"{name}.{key}", child, depth + 1) for key, child in value.items())
            continue
        attribute = _texts(value) if isinstance(value, list) else _text(value)
        if attribute is None:
            continue
        size = len(attribute) if isinstance(attribute, str) else sum(map(len, attribute))
        budget -= len(name) + size
        if name in attributes:
            raise refuse(
                Refusal.CREDENTIAL_MALFORMED,
                f"two of the token's claims have the same flat name, {quoted(name)}",
            )
        if len(attributes) >= MAX_ATTRIBUTES or budget < 0:
            raise refuse(
                Refusal.CREDENTIAL_MALFORMED,
                f"the token has over {MAX_ATTRIBUTES} claims, or too long ones",
            )
        attributes[name] = attribute
    return attributes


def _check_audience(aud: Json, audiences: frozenset[str]) -> None:
    found = {aud} if isinstance(aud, str) else aud if isinstance(aud, list) else ()
    named = [one for one in found if isinstance(one, str)]
    if audiences.intersection(named):
        return
    expected = " or ".join(quoted(one) for one in sorted(audiences))
    if not named:
        raise refuse(
            Refusal.AUDIENCE_MISMATCH,
            f"the token has no audience ('aud'); ask for a token with the audience {expected}",
        )
    raise refuse(
        Refusal.AUDIENCE_MISMATCH,
        f"the token is for the audience {quoted(', '.join(named))}; "
        f"ask for a token with the audience {expected}",
    )


def _instant(claims: Mapping[str, Json], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(Refusal.CREDENTIAL_MALFORMED, f"the token's '{name}' is not a number")
    if not 0 <= value <= LAST_INSTANT:
        raise refuse(Refusal.CREDENTIAL_MALFORMED, f"the token's '{name}' is out of range")
    return float(value)


def _texts(values: list[Json]) -> tuple[str, ...] | None:
    texts = tuple(text for value in values if (text := _text(value)) is not None)
    return texts if len(texts) == len(values) else None


def _text(value: Json) -> str | None:
    """A scalar as text; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # What json.dumps writes too; NaN and Infinity were refused.
    return None
