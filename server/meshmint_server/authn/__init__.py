"""Credentials to callers.

A token is chosen an authenticator by its issuer, verified, and becomes a
Caller. What cannot be told is VerifierUnavailable, never Unauthenticated.
"""

from meshmint_server.authn.authenticators import Authenticators, OnCheck
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.refusal import Refusal
from meshmint_server.authn.settings import (
    AuthenticatorSettings,
    JwtSettings,
    KubernetesSettings,
    refuse_conflicts,
)

__all__ = [
    "AuthenticatorSettings",
    "Authenticators",
    "Clock",
    "JwtSettings",
    "KubernetesSettings",
    "OnCheck",
    "Refusal",
    "refuse_conflicts",
]
