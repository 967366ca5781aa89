"""Settings that cannot work are refused, and the message says which and why."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from meshmint_server.authn import (
    Authenticators,
    AuthenticatorSettings,
    JwtSettings,
    KubernetesSettings,
)
from meshmint_server.spiffe import TrustDomain
from pydantic import TypeAdapter, ValidationError

SETTINGS: TypeAdapter[KubernetesSettings | JwtSettings] = TypeAdapter(AuthenticatorSettings)
BASE = {"name": "a", "issuer": "https://a.test", "audiences": ["meshmint"]}
KUBERNETES = {**BASE, "kind": "kubernetes"}
JWT = {**BASE, "kind": "jwt"}
PRIVATE_KEY = (
    ec.generate_private_key(ec.SECP256R1())
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)


def test_the_least_settings_have_sensible_defaults() -> None:
    settings = SETTINGS.validate_python(KUBERNETES)

    assert isinstance(settings, KubernetesSettings)
    assert settings.mode == "jwks"
    assert settings.algorithms == ("RS256", "ES256")
    assert settings.leeway == 10
    assert settings.api_server == "https://kubernetes.default.svc"
    assert settings.spiffe_id == "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def test_durations_are_seconds_or_text() -> None:
    settings = SETTINGS.validate_python(
        {**KUBERNETES, "leeway": "1m", "timeout": 2.5, "max_stale": "12h", "cache_for": "0s"}
    )

    assert (settings.leeway, settings.timeout) == (60, 2.5)
    assert (settings.max_stale, settings.cache_for) == (43200, 0)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({**KUBERNETES, "audiences": []}, "audiences"),
        ({**KUBERNETES, "audiences": [""]}, "audiences"),
        ({**KUBERNETES, "audiences": ["a", "a"]}, "twice"),
        ({**BASE, "kind": "spiffe"}, "kubernetes"),
        (BASE, "kind"),
        ({**KUBERNETES, "nmae": "a"}, "nmae"),
        ({**KUBERNETES, "name": "A b"}, "name"),
        ({**KUBERNETES, "name": "a\n"}, "name"),
        ({**KUBERNETES, "issuer": ""}, "issuer"),
        ({**KUBERNETES, "algorithms": []}, "algorithms"),
        ({**KUBERNETES, "algorithms": ["HS256"]}, "RS256"),
        ({**KUBERNETES, "algorithms": ["none"]}, "RS256"),
        ({**KUBERNETES, "leeway": -1}, "leeway"),
        ({**KUBERNETES, "leeway": "1y"}, "duration"),
        ({**KUBERNETES, "timeout": 0}, "timeout"),
        ({**KUBERNETES, "timeout": float("nan")}, "timeout"),
        ({**KUBERNETES, "mode": "offline"}, "token_review"),
        ({**KUBERNETES, "api_server": "http://10.0.0.1"}, "https://"),
        ({**KUBERNETES, "api_server": "https://user:pass@10.0.0.1"}, "credential"),
        ({**KUBERNETES, "jwks_url": "http://a.test/jwks"}, "https://"),
        ({**KUBERNETES, "jwks_url": "https:///jwks"}, "https://"),
        ({**KUBERNETES, "jwks_url": "https://a.test/jwks#x"}, "fragment"),
        ({**KUBERNETES, "jwks_url": "https://a.test:99999/jwks"}, "[Pp]ort"),
        ({**KUBERNETES, "jwks_url": "https://a.test:0/jwks"}, "port 0"),
        ({**KUBERNETES, "jwks_url": "https://a.test/j", "jwks_file": "/j"}, "not both"),
        ({**KUBERNETES, "jwks_ca_file": "/ca"}, "jwks_url"),
        ({**KUBERNETES, "mode": "token_review", "jwks_file": "/j"}, "token_review"),
        (JWT, "exactly one"),
        ({**JWT, "jwks_file": "/j", "jwks_url": "https://a.test/j"}, "jwks_url, jwks_file"),
        ({**JWT, "jwks_file": "/j", "ca_file": "/ca"}, "ca_file"),
        ({**JWT, "discovery_url": "http://a.test"}, "https://"),
        ({**JWT, "public_keys": ["not a key"]}, "PEM"),
        ({**JWT, "public_keys": [PRIVATE_KEY]}, "private key"),
        ({**JWT, "jwks_file": "/j", "spiffe_id": "spiffe://{trust_domain}"}, "starts with"),
        ({**JWT, "jwks_file": "/j", "spiffe_id": "https://x/{claims.sub}"}, "starts with"),
        ({**JWT, "jwks_file": "/j", "spiffe_id": "spiffe://{trust_domain}/all"}, "same ID"),
        (
            {
                **JWT,
                "jwks_file": "/j",
                "spiffe_id": "spiffe://{trust_domain}/{claims.a}-{claims.b}",
            },
            "at most one",
        ),
        (
            {**JWT, "jwks_file": "/j", "spiffe_id": "spiffe://{trust_domain}/{namespace}"},
            "no attribute",
        ),
        (
            {**JWT, "jwks_file": "/j", "spiffe_id": "spiffe://{trust_domain}/{claims.sub}/"},
            "no empty segment",
        ),
        (
            {**JWT, "jwks_file": "/j", "spiffe_id": "spiffe://{trust_domain}/{claims.sub"},
            "at most one",
        ),
    ],
)
def test_wrong_settings_are_refused_with_the_reason(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SETTINGS.validate_python(settings)


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ({}, {"name": "b"}, "issuer 'https://a.test'"),
        ({}, {"issuer": "https://b.test"}, "name 'a'"),
    ],
)
async def test_two_authenticators_may_not_share_name_or_issuer(
    first: dict[str, str], second: dict[str, str], complaint: str
) -> None:
    settings = [
        SETTINGS.validate_python({**KUBERNETES, **first}),
        SETTINGS.validate_python({**JWT, "jwks_file": "/j", **second}),
    ]

    with pytest.raises(ValueError, match=complaint):
        Authenticators.build(settings, TrustDomain("example.org"))


async def test_a_template_of_another_trust_domain_is_refused_at_build() -> None:
    settings = SETTINGS.validate_python(
        {**JWT, "jwks_file": "/j", "spiffe_id": "spiffe://other.org/x/{claims.sub}"}
    )

    with pytest.raises(ValueError, match=r"example\.org"):
        Authenticators.build([settings], TrustDomain("example.org"))


def test_settings_cannot_be_changed() -> None:
    settings = SETTINGS.validate_python(KUBERNETES)

    with pytest.raises(ValidationError):
        settings.name = "b"
