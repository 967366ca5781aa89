"""The one way from a credential to a caller.

A token's issuer only chooses who checks it; nothing else of a token is used
before its authenticator has verified it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

from meshmint_server.authn.authenticator import Authenticator
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.jwt import JwtAuthenticator
from meshmint_server.authn.kubernetes import KubernetesAuthenticator
from meshmint_server.authn.refusal import Refusal, quoted, refuse
from meshmint_server.authn.remembered import RememberedTokens
from meshmint_server.authn.settings import JwtSettings, KubernetesSettings, refuse_conflicts
from meshmint_server.authn.token import ParsedToken, digest_if_sound, parse_token
from meshmint_server.errors import ImpersonationDenied, Unauthenticated, VerifierUnavailable
from meshmint_server.policy.caller import Caller
from meshmint_server.spiffe import TrustDomain

__all__ = ["Authenticators", "CheckCounter"]

# Given an authenticator's name ("" if none was chosen) and an outcome ("verified",
# "remembered", or the reason of the refusal), both from bounded sets, it gives what
# counts one such check. It is asked once for each, not at every check.
CheckCounter = Callable[[str, str], Callable[[], object]]
Limit = Callable[[], AbstractAsyncContextManager[object]]


class Authenticators:
    """All configured authenticators, and the tokens that they lately verified."""

    def __init__(
        self, by_issuer: dict[str, Authenticator], *, counter: CheckCounter, clock: Clock
    ) -> None:
        self._by_issuer = by_issuer
        self._counter = counter
        self._counters: dict[tuple[str, str], Callable[[], object]] = {}
        self._remembered = {
            one.name: RememberedTokens(one, counter(one.name, "remembered"), clock)
            for one in by_issuer.values()
        }
        self._memories = tuple(self._remembered.values())
        self._node_proxies = {
            one.name: one.node_proxies
            for one in by_issuer.values()
            if isinstance(one, KubernetesAuthenticator)
        }

    @classmethod
    def build(
        cls,
        settings: Sequence[KubernetesSettings | JwtSettings],
        trust_domain: TrustDomain,
        *,
        counter: CheckCounter | None = None,
        clock: Clock | None = None,
    ) -> Authenticators:
        """Builds all authenticators. Does no I/O: what they depend on may start later.

        Args:
            settings: One for each.
            trust_domain: Where callers' SPIFFE IDs are.
            counter: Gives what counts the checks, for metrics; none of it may raise.
            clock: The clock.

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
        return cls(by_issuer, counter=counter or _no_counter, clock=clock)

    async def authenticate(
        self,
        token: str | None,
        *,
        within: Limit = nullcontext,
        among: Collection[str] | None = None,
    ) -> Caller:
        """The caller that a token speaks for.

        Args:
            token: The bearer token, without "Bearer "; None if there was none.
            among: Names of the authenticators that count here; None: all.
            within: Limits what may have to be waited for. Not used for a token that is
                remembered, which waits for nothing and is most requests.

        Raises:
            Unauthenticated: It speaks for none; reason and message say why.
            VerifierUnavailable: That cannot be told at present.
        """
        digest = digest_if_sound(token)
        if digest is not None:
            for memory in self._memories:
                known = memory.recall(digest)
                if known is not None and (among is None or known.authenticator in among):
                    return known
        name = ""
        try:
            parsed = parse_token(token or "", digest)
            authenticator = self._choose(parsed)
            name = authenticator.name
            if among is not None and name not in among:
                raise refuse(
                    Refusal.ISSUER_UNKNOWN, "tokens of this token's issuer do not count here"
                )
            async with within():
                caller = await self._verified(parsed, authenticator)
        except (Unauthenticated, VerifierUnavailable) as error:
            self._count(name, error.reason)
            raise
        self._count(name, "verified")
        return caller

    async def speak_for(
        self,
        actor: Caller,
        identity: str,
        accounts: Collection[str],
        *,
        within: Limit = nullcontext,
    ) -> Caller:
        """The service account for which a node's proxy asks.

        Args:
            actor: The proxy, as `authenticate` gave it.
            identity: The SPIFFE ID that it asks for.
            accounts: The service accounts of proxies that may do so, ``namespace/name``.
            within: Limits what may have to be waited for.

        Raises:
            InvalidRequest: It is no SPIFFE ID.
            ImpersonationDenied: The proxy may not ask for it.
            VerifierUnavailable: That cannot be told at present.
        """
        proxies = self._node_proxies.get(actor.authenticator)
        if proxies is None:
            raise ImpersonationDenied(
                f"{actor.subject} asks for another identity, and is no service account."
            )
        async with within():
            return await proxies.speak_for(actor, identity, accounts)

    async def close(self) -> None:
        """Lets go of connections and tasks."""
        await asyncio.gather(*(one.close() for one in self._by_issuer.values()))

    async def _verified(self, token: ParsedToken, authenticator: Authenticator) -> Caller:
        memory = self._remembered[authenticator.name]
        try:
            verified = await authenticator.verify(token, is_known=token.digest in memory)
        except Unauthenticated:
            memory.forget(token.digest)
            raise
        memory.remember(token.digest, verified)
        return verified.caller

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

    def _count(self, name: str, outcome: str) -> None:
        count = self._counters.get((name, outcome))
        if count is None:
            count = self._counters[name, outcome] = self._counter(name, outcome)
        count()


def _no_counter(authenticator: str, outcome: str) -> Callable[[], object]:
    """Counts nothing."""
    return int
