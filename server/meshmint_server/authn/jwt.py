"""Authenticates by JWTs of any issuer whose public keys can be had."""

from __future__ import annotations

import math

from meshmint_server.authn.authenticator import Parts, Verified
from meshmint_server.authn.claims import checked_expiry, claim_attributes, instant
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.discovery import JwksUrl, OpenIdDiscovery
from meshmint_server.authn.identity_template import IdentityTemplate
from meshmint_server.authn.key_set import parse_pem
from meshmint_server.authn.key_sources import KeySource, StaticKeys
from meshmint_server.authn.refusal import Refusal, refuse
from meshmint_server.authn.settings import JwtSettings
from meshmint_server.authn.signature import SignatureCheck
from meshmint_server.authn.token import ParsedToken
from meshmint_server.policy.caller import Caller
from meshmint_server.spiffe import TrustDomain

__all__ = ["JwtAuthenticator"]

MAX_SUBJECT = 1024


class JwtAuthenticator:
    """Checks JWTs with the issuer's keys.

    Args:
        settings: Its settings.
        trust_domain: Where its callers' SPIFFE IDs are.
        clock: The clock.

    Raises:
        ValueError: The SPIFFE ID template is not in the trust domain.
    """

    def __init__(self, settings: JwtSettings, trust_domain: TrustDomain, clock: Clock) -> None:
        self.name = settings.name
        self._settings = settings
        self._audiences = frozenset(settings.audiences)
        self._now = clock.now
        self._template = (
            IdentityTemplate.parse(settings.spiffe_id, trust_domain, {})
            if settings.spiffe_id is not None
            else None
        )
        self._keys = _key_source(settings, Parts(settings, clock))
        self._signature = SignatureCheck(self._keys, settings.algorithms)

    @property
    def remember_for(self) -> float:
        """Seconds that a verified token may be remembered."""
        return math.inf if self._settings.cache_for is None else self._settings.cache_for

    @property
    def max_remembered(self) -> int:
        """How many verified tokens may be remembered."""
        return self._settings.max_remembered

    def basis(self) -> object:
        """The keys at hand."""
        return self._keys.current()

    async def verify(self, token: ParsedToken, *, is_known: bool) -> Verified:
        """The caller that the token speaks for.

        Raises:
            Unauthenticated: It speaks for none.
            VerifierUnavailable: That cannot be told at present.
        """
        basis = await self._signature.check(token)
        expiry = checked_expiry(
            token.claims,
            audiences=self._audiences,
            leeway=self._settings.leeway,
            now=self._now(),
        )
        subject = token.claims.get("sub")
        # Printable, as it goes into logs and records; some databases take no NUL.
        if (
            not isinstance(subject, str)
            or not 0 < len(subject) <= MAX_SUBJECT
            or not subject.isprintable()
        ):
            raise refuse(
                Refusal.CREDENTIAL_MALFORMED,
                f"the token has no subject ('sub') of 1 to {MAX_SUBJECT} printable characters",
            )
        attributes = claim_attributes(token.claims)
        caller = Caller(
            authenticator=self.name,
            subject=subject,
            attributes=attributes,
            spiffe_id=self._template.render(attributes) if self._template else None,
            expires_at=instant(expiry),
        )
        return Verified(caller, basis)

    async def close(self) -> None:
        """Lets go of connections and tasks."""
        await self._keys.close()


def _key_source(settings: JwtSettings, parts: Parts) -> KeySource:
    if settings.discovery_url is not None:
        return parts.remote_keys(
            OpenIdDiscovery(
                parts.keys_client(settings.ca_file),
                settings.discovery_url,
                settings.issuer,
                parts.keys_purpose,
            )
        )
    if settings.jwks_url is not None:
        return parts.remote_keys(JwksUrl(parts.keys_client(settings.ca_file), settings.jwks_url))
    if settings.jwks_file is not None:
        return parts.jwks_file(settings.jwks_file)
    if settings.public_key_files:
        return parts.pem_files(settings.public_key_files)
    return StaticKeys(parse_pem([text.encode() for text in settings.public_keys]))
