"""Verifies a token's signature with its issuer's keys, and with no others.

``jku``, ``x5u``, ``x5c`` and ``jwk`` in a header are never looked at: a token
does not choose the key that vouches for it (RFC 8725 section 3.10).
"""

from __future__ import annotations

from collections.abc import Collection

from meshmint_server.authn.claims import issued_at
from meshmint_server.authn.key_set import KeySet
from meshmint_server.authn.key_sources import KeySource
from meshmint_server.authn.refusal import Refusal, quoted, refuse
from meshmint_server.authn.token import ParsedToken

__all__ = ["SignatureCheck", "checked_algorithm"]


def checked_algorithm(token: ParsedToken, algorithms: Collection[str]) -> str:
    """The token's algorithm, which is one of those given.

    Raises:
        Unauthenticated: It is another, or the header has critical extensions.
    """
    algorithm = token.header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise refuse(
            Refusal.SIGNATURE_INVALID,
            f"the token's algorithm {quoted(algorithm)} is not accepted; "
            f"expected one of {', '.join(sorted(algorithms))}",
        )
    if "crit" in token.header:
        # RFC 7515 section 4.1.11: not understood, so the token must be refused.
        raise refuse(
            Refusal.CREDENTIAL_MALFORMED,
            "the token's header has critical extensions ('crit'), and none is supported",
        )
    return algorithm


class SignatureCheck:
    """The signature check of one authenticator."""

    def __init__(self, keys: KeySource, algorithms: Collection[str]) -> None:
        self._keys = keys
        self._algorithms = frozenset(algorithms)

    async def check(self, token: ParsedToken) -> KeySet:
        """Returns the keys that the answer rests on if one of them signed the token.

        Raises:
            Unauthenticated: None did.
            VerifierUnavailable: The keys cannot be had.
        """
        algorithm = checked_algorithm(token, self._algorithms)
        kid = token.header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise refuse(Refusal.CREDENTIAL_MALFORMED, "the token's key id ('kid') is not a string")
        keys = self._keys.current()
        if keys is None:
            keys = await self._keys.load()
        if self._signed_by(keys, kid, algorithm, token):
            return keys
        known = keys.candidates(kid, algorithm)
        if not known or kid is None or any(key.kid is None for key in known):
            # It may be a new key: an id that is new, or no id that would tell.
            newer = await self._keys.newer_than(
                keys, made_at=None if known else issued_at(token.claims)
            )
            if newer is not keys:
                keys = newer
                if self._signed_by(keys, kid, algorithm, token):
                    return keys
        if not keys.candidates(kid, algorithm):
            raise refuse(
                Refusal.SIGNATURE_INVALID,
                f"the token's issuer publishes no {algorithm} key with the id {quoted(kid)}; "
                "get a new token",
            )
        raise refuse(
            Refusal.SIGNATURE_INVALID,
            "the token's signature does not verify with its issuer's keys",
        )

    @staticmethod
    def _signed_by(keys: KeySet, kid: str | None, algorithm: str, token: ParsedToken) -> bool:
        return any(
            key.verifies(token.signature, token.signing_input, algorithm)
            for key in keys.candidates(kid, algorithm)
        )
