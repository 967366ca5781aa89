"""Authenticates the service accounts of one Kubernetes cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping

from meshmint_server.authn.authenticator import Parts, Verified
from meshmint_server.authn.claims import checked_expiry, claim_attributes, instant
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.discovery import ClusterDiscovery, JwksUrl
from meshmint_server.authn.identity_template import KUBERNETES_ALIASES, IdentityTemplate
from meshmint_server.authn.key_sources import KeySource
from meshmint_server.authn.node_proxy import NodeProxies
from meshmint_server.authn.service_account import ServiceAccount
from meshmint_server.authn.settings import KubernetesSettings
from meshmint_server.authn.signature import SignatureCheck, checked_algorithm
from meshmint_server.authn.token import ParsedToken
from meshmint_server.authn.token_review import ApiServerCredential, TokenReviewer
from meshmint_server.authn.watched_file import WatchedFile
from meshmint_server.policy.caller import Attribute, Caller
from meshmint_server.spiffe import SpiffeId, TrustDomain

__all__ = ["KubernetesAuthenticator"]

REVIEW_REMEMBERED_FOR = 10.0  # As the Kubernetes API server itself does.


class KubernetesAuthenticator:
    """Checks projected service-account tokens offline, by TokenReview, or both.

    Attributes:
        node_proxies: Those of its callers that may speak for others.

    Args:
        settings: Its settings.
        trust_domain: Where its callers' SPIFFE IDs are.
        clock: The clock.

    Raises:
        ValueError: The SPIFFE ID template is not in the trust domain.
    """

    def __init__(
        self, settings: KubernetesSettings, trust_domain: TrustDomain, clock: Clock
    ) -> None:
        self.name = settings.name
        self._settings = settings
        self._audiences = frozenset(settings.audiences)
        self._now = clock.now
        self._template = (
            IdentityTemplate.parse(settings.spiffe_id, trust_domain, KUBERNETES_ALIASES)
            if settings.spiffe_id is not None
            else None
        )
        parts = Parts(settings, clock)
        credential = ApiServerCredential(
            WatchedFile(settings.reviewer_token_file), parts.reviewer_purpose
        )
        self._keys: KeySource | None = None
        self._signature: SignatureCheck | None = None
        self._reviewer: TokenReviewer | None = None
        if settings.mode != "token_review":
            self._keys = _key_source(settings, parts, credential)
            self._signature = SignatureCheck(self._keys, settings.algorithms)
        if settings.mode != "jwks":
            self._reviewer = parts.reviewer(settings, credential, self.remember_for)
        self._pods = parts.pods(settings)
        self.node_proxies = NodeProxies(self.name, self._spiffe_id, self._pods)

    @property
    def remember_for(self) -> float:
        """Seconds that a verified token may be remembered."""
        if self._settings.cache_for is not None:
            return self._settings.cache_for
        return math.inf if self._settings.mode == "jwks" else REVIEW_REMEMBERED_FOR

    @property
    def max_remembered(self) -> int:
        """How many verified tokens may be remembered."""
        return self._settings.max_remembered

    def basis(self) -> object:
        """The keys at hand."""
        return self._keys.current() if self._keys else None

    async def verify(self, token: ParsedToken, *, is_known: bool) -> Verified:
        """The service account that the token speaks for.

        Args:
            token: The token.
            is_known: It held not long ago: strangers must not keep it waiting.

        Raises:
            Unauthenticated: It speaks for none.
            VerifierUnavailable: That cannot be told at present.
        """
        basis = None
        if self._signature is not None:
            basis = await self._signature.check(token)
        else:
            checked_algorithm(token, self._settings.algorithms)
        expiry = checked_expiry(
            token.claims,
            audiences=self._audiences,
            leeway=self._settings.leeway,
            now=self._now(),
        )
        account = ServiceAccount.from_claims(token.claims)
        as_of = None
        if self._reviewer is not None:
            as_of = await self._reviewer.review(token, account, is_known=is_known)
        attributes = {**claim_attributes(token.claims), **account.attributes}
        caller = Caller(
            authenticator=self.name,
            subject=account.username,
            attributes=attributes,
            spiffe_id=self._spiffe_id(attributes),
            expires_at=instant(expiry),
        )
        return Verified(caller, basis, as_of)

    def _spiffe_id(self, attributes: Mapping[str, Attribute]) -> SpiffeId | None:
        return self._template.render(attributes) if self._template else None

    async def close(self) -> None:
        """Lets go of connections and tasks."""
        await self._pods.close()
        if self._reviewer is not None:
            await self._reviewer.close()
        if self._keys is not None:
            await self._keys.close()


def _key_source(
    settings: KubernetesSettings, parts: Parts, credential: ApiServerCredential
) -> KeySource:
    if settings.jwks_file is not None:
        return parts.jwks_file(settings.jwks_file)
    if settings.jwks_url is not None:
        return parts.remote_keys(
            JwksUrl(parts.keys_client(settings.jwks_ca_file), settings.jwks_url)
        )
    return parts.remote_keys(
        ClusterDiscovery(
            parts.keys_client(settings.ca_file),
            settings.api_server,
            settings.issuer,
            credential.headers_if_any,
            parts.keys_purpose,
        )
    )
