"""Stands in for a cluster's token issuer: service-account tokens and their JWK set.

The tokens have the claims of real projected service-account tokens, and the
service checks them as it checks real ones, offline against the JWK set.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from meshmint_server.cli.dev.state import StateDirectory, write_file

__all__ = ["ADMIN", "AUDIENCE", "ISSUER", "WORKLOAD", "ServiceAccount", "TokenIssuer"]

ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
AUDIENCE: Final = "meshmint"
LIFETIME: Final = timedelta(hours=24)

# So that the same service account has the same UID after a restart.
_UIDS = uuid.UUID("6f0d9a52-1d8e-4d43-9d0a-5a4f6f0c7c11")


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A Kubernetes service account."""

    namespace: str
    name: str

    @property
    def file_name(self) -> str:
        """Name of its token file."""
        return f"{self.namespace}-{self.name}.token"


WORKLOAD: Final = ServiceAccount("shop", "cart")
ADMIN: Final = ServiceAccount("meshmint-system", "admin")


class TokenIssuer:
    """Mints tokens with a key that the state directory keeps."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        if not state.issuer_key.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            write_file(
                state.issuer_key,
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
                mode=0o600,
            )
        self._pem = state.issuer_key.read_bytes()
        loaded = serialization.load_pem_private_key(self._pem, None)
        assert isinstance(loaded, rsa.RSAPrivateKey)  # noqa: S101 - we made it
        public = loaded.public_key()
        self._key_id = _fingerprint(public)
        jwk = RSAAlgorithm.to_jwk(public, as_dict=True)
        jwk |= {"kid": self._key_id, "use": "sig", "alg": "RS256"}
        write_file(state.jwks, json.dumps({"keys": [jwk]}, indent=2) + "\n", mode=0o644)

    def write_tokens(self) -> None:
        """Mints fresh tokens for both service accounts into their files."""
        self._state.tokens.mkdir(mode=0o700, exist_ok=True)
        for account in (WORKLOAD, ADMIN):
            write_file(self.token_file(account), self.mint(account) + "\n", mode=0o600)

    def token_file(self, account: ServiceAccount) -> Path:
        """Where the token of a service account is."""
        return self._state.tokens / account.file_name

    def mint(self, account: ServiceAccount, *, lifetime: timedelta = LIFETIME) -> str:
        """A token as the kubelet would mount it."""
        now = datetime.now(UTC)
        claims = {
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": f"system:serviceaccount:{account.namespace}:{account.name}",
            "iat": now,
            "nbf": now,
            "exp": now + lifetime,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {
                "namespace": account.namespace,
                "node": {"name": "development", "uid": _uid("node", "development")},
                "pod": {
                    "name": f"{account.name}-0",
                    "uid": _uid("pod", account.namespace, account.name),
                },
                "serviceaccount": {
                    "name": account.name,
                    "uid": _uid("serviceaccount", account.namespace, account.name),
                },
            },
        }
        return jwt.encode(claims, self._pem, algorithm="RS256", headers={"kid": self._key_id})


def _uid(*parts: str) -> str:
    return str(uuid.uuid5(_UIDS, "/".join(parts)))


def _fingerprint(public: rsa.RSAPublicKey) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()[:32]
