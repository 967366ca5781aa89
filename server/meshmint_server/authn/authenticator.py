"""What every kind of authenticator is, and the part that the kinds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from meshmint_server import telemetry
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.https import HttpsClient
from meshmint_server.authn.key_set import KeySet, parse_jwks, parse_pem
from meshmint_server.authn.key_sources import FileKeys
from meshmint_server.authn.pods import Pods
from meshmint_server.authn.remote_keys import Freshness, JwksFetch, RemoteKeys
from meshmint_server.authn.settings import JwtSettings, KubernetesSettings
from meshmint_server.authn.token import ParsedToken
from meshmint_server.authn.token_review import ApiServerCredential, ReviewLimits, TokenReviewer
from meshmint_server.authn.watched_file import WatchedFile
from meshmint_server.policy.caller import Caller

__all__ = ["Authenticator", "Parts", "Verified"]


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that holds.

    Attributes:
        caller: Whom it speaks for.
        basis: What that rests on; see Authenticator.basis.
        as_of: When that was found out, monotonic seconds; None for right now.
    """

    caller: Caller
    basis: object
    as_of: float | None = None


class Authenticator(Protocol):
    """Turns the tokens of one issuer into callers."""

    @property
    def name(self) -> str:
        """Its configured name."""

    @property
    def remember_for(self) -> float:
        """Seconds that a verified token may be remembered; may be infinite."""

    @property
    def max_remembered(self) -> int:
        """How many verified tokens may be remembered."""

    def basis(self) -> object:
        """What its answers rest on; another object when they may no longer hold. Cheap."""

    async def verify(self, token: ParsedToken, *, is_known: bool) -> Verified:
        """The caller that the token speaks for.

        Args:
            token: The token.
            is_known: It held not long ago: strangers must not keep it waiting.

        Raises:
            Unauthenticated: It speaks for none.
            VerifierUnavailable: That cannot be told at present.
        """

    async def close(self) -> None:
        """Lets go of connections and tasks."""


class Parts:
    """Makes the parts of an authenticator from its settings."""

    def __init__(self, settings: KubernetesSettings | JwtSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self.keys_purpose = f"the keys of authenticator '{settings.name}'"
        self.reviewer_purpose = f"the token reviewer of authenticator '{settings.name}'"
        self.pods_purpose = f"the API server of authenticator '{settings.name}'"

    def keys_client(self, ca_file: Path | None) -> HttpsClient:
        """A client that fetches keys, and trusts the roots in the file."""
        return self._client(ca_file, self.keys_purpose, "keys")

    def reviewer(
        self, settings: KubernetesSettings, credential: ApiServerCredential, vouched_for: float
    ) -> TokenReviewer:
        """A token reviewer, whose yes counts for so many seconds."""
        return TokenReviewer(
            self._client(settings.ca_file, self.reviewer_purpose, "review"),
            api_server=settings.api_server,
            credential=credential,
            audiences=settings.audiences,
            limits=_limits(settings, vouched_for),
            purpose=self.reviewer_purpose,
            clock=self._clock,
        )

    def pods(self, settings: KubernetesSettings) -> Pods:
        """The pods of the cluster."""
        return Pods(
            self._client(settings.ca_file, self.pods_purpose, "pods"),
            api_server=settings.api_server,
            credential=ApiServerCredential(
                WatchedFile(settings.reviewer_token_file), self.pods_purpose
            ),
            limits=_limits(settings, 0.0),
            purpose=self.pods_purpose,
            clock=self._clock,
        )

    def jwks_file(self, path: Path) -> FileKeys:
        """Keys from a JWK set in a file."""
        return self._files((path,), lambda contents: parse_jwks(contents[0]))

    def pem_files(self, paths: Sequence[Path]) -> FileKeys:
        """Keys from PEM files."""
        return self._files(paths, parse_pem)

    def remote_keys(self, source: JwksFetch) -> RemoteKeys:
        """Keys that are fetched."""
        return RemoteKeys(
            source,
            freshness=Freshness(
                refresh_interval=self._settings.refresh_interval,
                cool_down=self._settings.unknown_key_cool_down,
                max_stale=self._settings.max_stale,
            ),
            leeway=self._settings.leeway,
            max_waiting=self._settings.max_waiting,
            purpose=self.keys_purpose,
            clock=self._clock,
        )

    def _client(self, ca_file: Path | None, purpose: str, asked_for: str) -> HttpsClient:
        return HttpsClient(
            purpose=purpose,
            ca_file=WatchedFile(ca_file) if ca_file else None,
            timeout=self._settings.timeout,
            observe=partial(_observe, self._settings.name, asked_for),
            clock=self._clock,
        )

    def _files(self, paths: Sequence[Path], parse: Callable[[Sequence[bytes]], KeySet]) -> FileKeys:
        return FileKeys(paths, parse, purpose=self.keys_purpose, clock=self._clock)


def _limits(settings: KubernetesSettings, vouched_for: float) -> ReviewLimits:
    return ReviewLimits(
        reviews=settings.max_reviews,
        waiting=settings.max_waiting,
        patience=settings.timeout,
        vouched_for=vouched_for,
    )


def _observe(authenticator: str, asked_for: str, outcome: str, seconds: float) -> None:
    telemetry.VERIFIER_SECONDS.labels(authenticator, asked_for, outcome).observe(seconds)
