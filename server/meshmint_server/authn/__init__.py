"""Credentials to callers.

A token is chosen an authenticator by its issuer, verified, and becomes a
Caller. What cannot be told is VerifierUnavailable, never Unauthenticated.
"""

from meshmint_server.authn.authenticators import Authenticators, CheckCounter
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.examination import FileExamination, examine_files, urls_of
from meshmint_server.authn.refusal import Refusal
from meshmint_server.authn.service_account import is_namespace, is_object_name
from meshmint_server.authn.settings import (
    AuthenticatorSettings,
    JwtSettings,
    KubernetesSettings,
    refuse_conflicts,
    shared_identities,
)

__all__ = [
    "AuthenticatorSettings",
    "Authenticators",
    "CheckCounter",
    "Clock",
    "FileExamination",
    "JwtSettings",
    "KubernetesSettings",
    "Refusal",
    "examine_files",
    "is_namespace",
    "is_object_name",
    "refuse_conflicts",
    "shared_identities",
    "urls_of",
]
