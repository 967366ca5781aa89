"""The one way from a credential to a caller.

A token's issuer only chooses who checks it; nothing else of a token is used
before its authenticator has verified it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshmint_server.authn.authenticator import Authenticator, Verified
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.jwt import JwtAuthenticator
from meshmint_server.authn.kubernetes import KubernetesAuthenticator
from meshmint_server.authn.refusal import Refusal, quoted, refuse
from meshmint_server.authn.settings import JwtSettings, KubernetesSettings, refuse_conflicts
from meshmint_server.authn.token import ParsedToken, digest_of, parse_token
from meshmint_server.errors import Unauthenticated, VerifierUnavailable
from meshmint_server.policy.caller import Caller
from meshmint_server.spiffe import TrustDomain

__all__ = ["Authenticators", "OnCheck"]

MAX_REMEMBERED = 10_000

# Called with the authenticator's name ("" if none was chosen) and the outcome:
# "verified", "remembered", or the reason of the refusal. Both are bounded sets.
OnCheck = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A verified token.

    Attributes:
        caller: Whom it speaks for.
        authenticator: Who verified it.
        basis: What that rested on; the entry is void when it is another one.
        expires_at: The token's expiry, seconds since the epoch.
        forget_at: The authenticator's limit, monotonic seconds.
    """

    caller: Caller
    authenticator: Authenticator
    basis: object
    expires_at: float
    forget_at: float


class Authenticators:
    """All configured authenticators, and the tokens that they lately verified."""

    def __init__(
        self,
        by_issuer: dict[str, Authenticator],
        *,
        on_check: OnCheck,
        clock: Clock,
        max_remembered: int,
    ) -> None:
        self._by_issuer = by_issuer
        self._on_check = on_check
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._max_remembered = max_remembered
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    @classmethod
    def build(
        cls,
        settings: Sequence[KubernetesSettings | JwtSettings],
        trust_domain: TrustDomain,
        *,
        on_check: OnCheck | None = None,
        clock: Clock | None = None,
        max_remembered: int = MAX_REMEMBERED,
    ) -> Authenticators:
        """Builds all authenticators. Does no I/O: what they depend on may start later.

        Args:
            settings: One for each.
            trust_domain: Where callers' SPIFFE IDs are.
            on_check: Told of every check, for metrics; must not raise.
            clock: The clock.
            max_remembered: How many verified tokens are remembered.

        Raises:
            ValueError: Two share a name or an issuer, or a SPIFFE ID template
                is not in the trust domain.
        """
        refuse_conflicts(settings)
        clock = clock or Clock()
        by_issuer: dict[str, Authenticator] = {}
        for one in settings:
            if isinstance(one, KubernetesSettings):
                by_issuer[one.issuer] = KubernetesAuthenticator(one, trust_domain, clock)
            else:
                by_issuer[one.issuer] = JwtAuthenticator(one, trust_domain, clock)
        return cls(
            by_issuer,
            on_check=on_check or _ignore,
            clock=clock,
            max_remembered=max_remembered,
        )

    async def authenticate(self, token: str | None) -> Caller:
        """The caller that a token speaks for.

        Args:
            token: The bearer token, without "Bearer "; None if there was none.

        Raises:
            Unauthenticated: It speaks for none; reason and message say why.
            VerifierUnavailable: That cannot be told at present.
        """
        name = ""
        try:
            digest = digest_of(token or "")
            remembered = self._remembered.get(digest)
            if remembered is not None:
                if self._holds(remembered):
                    self._remembered.move_to_end(digest)
                    self._on_check(remembered.authenticator.name, "remembered")
                    return remembered.caller
                del self._remembered[digest]
            parsed = parse_token(token or "", digest)
            authenticator = self._choose(parsed)
            name = authenticator.name
            verified = await authenticator.verify(parsed)
        except (Unauthenticated, VerifierUnavailable) as error:
            self._on_check(name, error.reason)
            raise
        self._remember(parsed.digest, verified, authenticator)
        self._on_check(name, "verified")
        return verified.caller

    async def close(self) -> None:
        """Lets go of connections and tasks."""
        await asyncio.gather(*(one.close() for one in self._by_issuer.values()))

    def _choose(self, token: ParsedToken) -> Authenticator:
        issuer = token.claims.get("iss")
        if not isinstance(issuer, str):
            raise refuse(
                Refusal.CREDENTIAL_MALFORMED, "the token names no issuer ('iss'), or not as text"
            )
        authenticator = self._by_issuer.get(issuer)
        if authenticator is None:
            raise refuse(
                Refusal.ISSUER_UNKNOWN,
                f"the token's issuer {quoted(issuer)} is not configured here; "
                "use a token of a configured issuer, or ask the operator to add this one",
            )
        return authenticator

    def _holds(self, remembered: _Remembered) -> bool:
        return (
            self._now() < remembered.expires_at
            and self._monotonic() < remembered.forget_at
            and remembered.authenticator.basis() is remembered.basis
        )

    def _remember(self, digest: bytes, verified: Verified, authenticator: Authenticator) -> None:
        if authenticator.remember_for <= 0 or self._max_remembered <= 0:
            return
        self._remembered[digest] = _Remembered(
            verified.caller,
            authenticator,
            verified.basis,
            verified.caller.expires_at.timestamp(),
            self._monotonic() + authenticator.remember_for,
        )
        self._remembered.move_to_end(digest)
        if len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


def _ignore(authenticator: str, outcome: str) -> None:
    """Counts nothing."""
