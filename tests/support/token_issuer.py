"""Makes tokens: what a Kubernetes cluster or an OIDC provider would sign, and what none should."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

__all__ = ["PrivateKey", "TokenIssuer", "replace_file"]

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

DEFAULT_AUDIENCE = "meshmint"


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file the way kubelet does: whole, by a rename."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    new.write_bytes(content)
    new.rename(path)


class TokenIssuer:
    """A token issuer: its keys, its JWK set in a file, and its tokens.

    Args:
        directory: Where ``jwks.json`` and ``public.pem`` go.
        issuer: The ``iss`` of its tokens.
        audience: The ``aud`` of its tokens unless a call says otherwise.
        algorithm: RS256, ES256, EdDSA, …; decides the first key's kind.
    """

    def __init__(
        self,
        directory: Path,
        *,
        issuer: str = "https://cluster.test",
        audience: str = DEFAULT_AUDIENCE,
        algorithm: str = "ES256",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.issuer = issuer
        self.audience = audience
        self.algorithm = algorithm
        self.keys: dict[str, PrivateKey] = {}
        self.jwks_file = directory / "jwks.json"
        self.public_key_file = directory / "public.pem"
        self.rotate()

    @property
    def kid(self) -> str:
        """Id of the key that signs: the newest."""
        return next(reversed(self.keys))

    @property
    def key(self) -> PrivateKey:
        """The key that signs."""
        return self.keys[self.kid]

    def rotate(self, *, keep_old: bool = False) -> str:
        """Makes a new key to sign with, and writes the files. Returns its id."""
        if not keep_old:
            self.keys.clear()
        kid = f"key-{uuid.uuid4().hex[:8]}"
        self.keys[kid] = _make_key(self.algorithm)
        self.write_files()
        return kid

    def jwks(self) -> dict[str, Any]:
        """The JWK set with all current public keys."""
        return {
            "keys": [
                {**_jwk(key), "kid": kid, "use": "sig", "alg": self.algorithm}
                for kid, key in self.keys.items()
            ]
        }

    def public_pem(self) -> bytes:
        """The newest public key, PEM."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def write_files(self) -> None:
        """Writes jwks_file and public_key_file, each by a rename."""
        replace_file(self.jwks_file, json.dumps(self.jwks()).encode())
        replace_file(self.public_key_file, self.public_pem())

    def kubernetes_claims(
        self,
        namespace: str = "shop",
        service_account: str = "cart",
        *,
        audience: str | list[str] | None = None,
        ttl: float = 600,
        service_account_uid: str | None = None,
        pod: str | None = "cart-7c9",
        pod_uid: str = "9a1f0c3e-0000-4000-8000-00000000f00d",
        node: str | None = "node-1",
    ) -> dict[str, Any]:
        """The claims of a projected service-account token."""
        now = int(time.time())
        details: dict[str, Any] = {
            "namespace": namespace,
            "serviceaccount": {
                "name": service_account,
                "uid": service_account_uid or uid_of(namespace, service_account),
            },
        }
        if pod is not None:
            details["pod"] = {"name": pod, "uid": pod_uid}
        if node is not None:
            details["node"] = {"name": node, "uid": uid_of("node", node)}
        return {
            "aud": [self.audience] if audience is None else audience,
            "exp": now + ttl,
            "iat": now,
            "nbf": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": details,
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
        }

    def kubernetes_token(
        self,
        namespace: str = "shop",
        service_account: str = "cart",
        *,
        audience: str | list[str] | None = None,
        ttl: float = 600,
        **overrides: Any,
    ) -> str:
        """A projected service-account token.

        Args:
            namespace: The service account's namespace.
            service_account: Its name.
            audience: Its ``aud``; None is the issuer's own.
            ttl: Seconds until it expires; negative for an expired one.
            overrides: Claims by name; None leaves a claim out.
        """
        claims = self.kubernetes_claims(namespace, service_account, audience=audience, ttl=ttl)
        return self.jwt(claims | overrides)

    def jwt(
        self,
        claims: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
        key: PrivateKey | bytes | None = None,
        algorithm: str | None = None,
        ttl: float = 600,
    ) -> str:
        """A signed JWT.

        Args:
            claims: Claims over the defaults (iss, aud, sub, iat, exp); None leaves one out.
            headers: Headers over the defaults (typ, kid); None leaves one out.
            key: The key to sign with, instead of the newest.
            algorithm: The algorithm, instead of the issuer's.
            ttl: Seconds until it expires.
        """
        now = int(time.time())
        defaults = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "someone",
            "iat": now,
            "exp": now + ttl,
        }
        payload = _without_none({**defaults, **(claims or {})})
        header = _without_none({"typ": "JWT", "kid": self.kid, **(headers or {})})
        return jwt.PyJWS().encode(
            json.dumps(payload).encode(),
            key if key is not None else self.key,
            algorithm=algorithm or self.algorithm,
            headers=header,
        )


def uid_of(*names: str) -> str:
    """The UID that this test world gives an object of these names."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, "/".join(names)))


def _make_key(algorithm: str) -> PrivateKey:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _jwk(key: PrivateKey) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return {**RSAAlgorithm.to_jwk(public, as_dict=True), "key_ops": ["verify"]}
    if isinstance(public, ec.EllipticCurvePublicKey):
        return ECAlgorithm.to_jwk(public, as_dict=True)
    return OKPAlgorithm.to_jwk(public, as_dict=True)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
