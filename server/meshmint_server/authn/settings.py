"""The settings of authenticators. Wrong ones are refused here, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from meshmint_server.authn.identity_template import KUBERNETES_ALIASES, IdentityTemplate
from meshmint_server.authn.key_set import parse_pem
from meshmint_server.spiffe import TrustDomain

__all__ = [
    "AuthenticatorSettings",
    "JwtSettings",
    "KubernetesSettings",
    "refuse_conflicts",
    "refuse_url_but_https",
    "shared_identities",
]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError("expected a duration such as 10, '10s', '5m' or '24h'")
    return float(match[1]) * _UNITS[match[2] or "s"]


def refuse_url_but_https(url: str) -> str:
    """Gives the URL back if tokens and keys may travel over it.

    Raises:
        ValueError: It is not an https URL, or holds a credential, query or fragment.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or not url.isascii() or not url.isprintable():
        raise ValueError("expected an https:// URL; plain http is never used")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold a credential")
    if parts.port == 0:  # And a ValueError of its own for a port that cannot be.
        raise ValueError("a URL must not have the port 0")
    if parts.query or parts.fragment:
        raise ValueError("a URL here has no query and no fragment")
    return url


def _refuse_repeated(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("a value appears twice")
    return values


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
HttpsUrl = Annotated[str, AfterValidator(refuse_url_but_https)]
AlgorithmName = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Text = Annotated[str, Field(min_length=1, max_length=1024)]


class _Settings(BaseModel):
    """What all authenticators have.

    Attributes:
        name: The name that roles, logs and metrics use.
        issuer: The ``iss`` of the tokens; no other authenticator may have it.
        audiences: A token must be for one of these.
        algorithms: The signature algorithms taken.
        spiffe_id: Template of the caller's own SPIFFE ID; None gives it none.
        leeway: Seconds by which clocks may differ.
        cache_for: Seconds that a verified token is remembered; None leaves it
            to the kind. Never past the token's expiry.
        refresh_interval: Seconds after which fetched keys are fetched again.
        unknown_key_cool_down: Least seconds between looks for an unknown key id.
        max_stale: Seconds that fetched keys are used while their URL is down.
        timeout: Seconds to connect, and between parts of an answer.
        max_waiting: Calls of one worker that may wait for keys, and as many for
            reviews, known callers and others apart; more are told at once to
            come back.
        max_remembered: Verified tokens that one worker remembers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"\A[a-z0-9][a-z0-9._-]{0,62}\z")]
    issuer: Text
    audiences: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_refuse_repeated)]
    algorithms: Annotated[
        tuple[AlgorithmName, ...], Field(min_length=1), AfterValidator(_refuse_repeated)
    ] = ("RS256", "ES256")
    spiffe_id: str | None = None
    leeway: Annotated[SecondsOrZero, Field(le=300)] = 10.0
    cache_for: SecondsOrZero | None = None
    refresh_interval: Seconds = 300.0
    unknown_key_cool_down: Seconds = 30.0
    max_stale: Seconds = 86400.0
    timeout: Annotated[Seconds, Field(le=60)] = 5.0
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    max_remembered: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000


class KubernetesSettings(_Settings):
    """Service-account tokens of one Kubernetes cluster.

    Keys come from jwks_file, from jwks_url, or, with neither, from the API
    server's own discovery.

    Attributes:
        mode: ``jwks`` checks tokens offline; ``token_review`` asks the API
            server, which also knows of deleted pods; ``both`` does both.
        jwks_file: A JWK set, read again when changed.
        jwks_url: A JWK set, fetched without a credential.
        jwks_ca_file: Roots for jwks_url; None takes the system's.
        api_server: The API server, for TokenReview and discovery.
        ca_file: Roots for the API server, read again when changed.
        reviewer_token_file: Our credential at the API server, read again when changed.
        max_reviews: TokenReviews of one worker under way at one time. A quarter
            of them is kept for callers that were known a moment ago. As many
            look-ups of pods, for node proxies, beside them.
    """

    kind: Literal["kubernetes"] = "kubernetes"
    spiffe_id: str | None = "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
    mode: Literal["jwks", "token_review", "both"] = "jwks"
    jwks_file: Path | None = None
    jwks_url: HttpsUrl | None = None
    jwks_ca_file: Path | None = None
    api_server: HttpsUrl = "https://kubernetes.default.svc"
    ca_file: Path = SERVICE_ACCOUNT / "ca.crt"
    reviewer_token_file: Path = SERVICE_ACCOUNT / "token"
    max_reviews: Annotated[int, Field(ge=1, le=1000)] = 16

    @model_validator(mode="after")
    def _refuse_what_does_not_go_together(self) -> Self:
        if self.jwks_file and self.jwks_url:
            raise ValueError("set jwks_file or jwks_url, not both")
        if self.jwks_ca_file and not self.jwks_url:
            raise ValueError("jwks_ca_file is for jwks_url, which is not set")
        if self.mode == "token_review" and (self.jwks_file or self.jwks_url):
            raise ValueError(
                "mode token_review uses no keys: remove jwks_file and jwks_url, or set mode both"
            )
        _check_template(self.spiffe_id, KUBERNETES_ALIASES)
        return self


class JwtSettings(_Settings):
    """JWTs of any issuer. Keys come from exactly one place.

    Attributes:
        discovery_url: The issuer's base URL; OpenID discovery finds the keys.
        jwks_url: A JWK set.
        jwks_file: A JWK set, read again when changed.
        public_keys: Public keys or certificates, PEM text.
        public_key_files: The same in files, read again when changed.
        ca_file: Roots for discovery_url and jwks_url, read again when changed;
            None takes the system's.
    """

    kind: Literal["jwt"] = "jwt"
    discovery_url: HttpsUrl | None = None
    jwks_url: HttpsUrl | None = None
    jwks_file: Path | None = None
    public_keys: tuple[str, ...] = ()
    public_key_files: tuple[Path, ...] = ()
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _refuse_what_does_not_go_together(self) -> Self:
        sources = {
            "discovery_url": self.discovery_url,
            "jwks_url": self.jwks_url,
            "jwks_file": self.jwks_file,
            "public_keys": self.public_keys,
            "public_key_files": self.public_key_files,
        }
        given = [name for name, value in sources.items() if value]
        if len(given) != 1:
            raise ValueError(
                f"set exactly one of {', '.join(sources)}; "
                + (f"these are set: {', '.join(given)}" if given else "none is set")
            )
        if self.ca_file and not (self.discovery_url or self.jwks_url):
            raise ValueError("ca_file is for discovery_url and jwks_url, and neither is set")
        if self.public_keys:
            parse_pem([text.encode() for text in self.public_keys])
        _check_template(self.spiffe_id, {})
        return self


AuthenticatorSettings = Annotated[KubernetesSettings | JwtSettings, Field(discriminator="kind")]


def refuse_conflicts(settings: Sequence[KubernetesSettings | JwtSettings]) -> None:
    """Checks settings against each other.

    Raises:
        ValueError: Two share a name or an issuer, so that a token would not
            say which of them is meant.
    """
    for attribute in ("name", "issuer"):
        seen: set[str] = set()
        for one in settings:
            value: str = getattr(one, attribute)
            if value in seen:
                raise ValueError(f"two authenticators have the {attribute} {value!r}")
            seen.add(value)


def shared_identities(settings: Sequence[KubernetesSettings | JwtSettings]) -> Iterator[str]:
    """Authenticators whose callers cannot be told apart by SPIFFE ID, a sentence for each template.

    Whoever can make a namespace and a service account in one of two clusters could pose as
    those of the other. It may be meant, so it is no conflict.
    """
    sharing: dict[str, list[str]] = {}
    for one in settings:
        if one.spiffe_id is not None:
            template = one.spiffe_id
            if isinstance(one, KubernetesSettings):
                for alias, attribute in KUBERNETES_ALIASES.items():
                    template = template.replace(f"{{{alias}}}", f"{{{attribute}}}")
            sharing.setdefault(template, []).append(one.name)
    for names in sharing.values():
        if len(names) > 1:
            first, *others = (f"'{name}'" for name in names)
            yield (
                f"The authenticators {first} and {', '.join(others)} make SPIFFE IDs by the same "
                "template: who administers one of them can pose as callers of the other."
            )


def _check_template(template: str | None, aliases: dict[str, str]) -> None:
    if template is not None:
        IdentityTemplate.parse(template, TrustDomain("example.org"), aliases, any_domain=True)
