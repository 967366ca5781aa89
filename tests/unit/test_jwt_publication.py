"""What verifiers that know OpenID Connect are told of the keys, below whatever path."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from meshmint_server.http_api import JwtPublication, build_http_api
from meshmint_server.spiffe import JwtKey

KEY = JwtKey(
    "jwt-1",
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
)


def client(path: str = "", keys: tuple[JwtKey, ...] = (KEY,)) -> httpx.AsyncClient:
    book: Any = SimpleNamespace(published=keys)
    publication = JwtPublication(
        book, True, "https://jwt.example.org" + path, path, timedelta(minutes=5)
    )
    other: Any = SimpleNamespace()
    application = build_http_api(
        other, other, other, other, other, crl_max_age=timedelta(minutes=1), jwt=publication
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(application), base_url="http://127.0.0.1"
    )


@pytest.mark.parametrize("path", ["", "/mesh", "/crl", "/ca", "/ocsp", "/a/b"])
async def test_both_documents_are_below_the_issuers_path_whatever_else_is_there(path: str) -> None:
    async with client(path) as http:
        keys = await http.get(path + "/.well-known/jwks.json")
        assert [key["kid"] for key in keys.json()["keys"]] == ["jwt-1"]
        assert keys.headers["cache-control"] == "public, max-age=300"
        found = (await http.get(path + "/.well-known/openid-configuration")).json()
        assert found["jwks_uri"] == f"https://jwt.example.org{path}/.well-known/jwks.json"


async def test_that_there_is_no_key_yet_is_not_to_be_kept() -> None:
    """The first key signs seconds after it is made: a verifier that asked before asks again."""
    async with client(keys=()) as http:
        answer = await http.get("/.well-known/jwks.json")
        assert answer.json() == {"keys": []}
        assert answer.headers["cache-control"] == "public, max-age=0"
