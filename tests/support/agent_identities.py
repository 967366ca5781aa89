"""What an agent would hold: identities of software CAs, and bundles, in pictures to publish."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from meshmint.agent.identities import Bundle, Identities, Identity, Picture
from meshmint.agent.sockets import JwtSvid, SocketSettings, serve_socket
from meshmint.keys import KeyAlgorithm, generate_key
from support.pki import Authority, make_root

__all__ = ["Domain", "TokenMaker", "picture", "served"]


class Domain:
    """A trust domain with its root, its issuer and a key for JWT-SVIDs."""

    def __init__(self, name: str = "example.org") -> None:
        self.name = name
        self.root = make_root(f"Root of {name}")
        self.issuer = self.root.make_intermediate(f"Issuer of {name}")
        self.jwt_key = ec.generate_private_key(ec.SECP256R1())

    def identity(
        self,
        name: str = "web",
        path: str | None = "/ns/shop/sa/web",
        *,
        key: KeyAlgorithm = "ec-p256",
        dns_names: Sequence[str] = (),
        lifetime: timedelta = timedelta(hours=1),
    ) -> Identity:
        """A new certificate with a new key; without a path it has no SPIFFE ID."""
        spiffe_id = None if path is None else f"spiffe://{self.name}{path}"
        private_key = generate_key(key)
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in dns_names]
        if spiffe_id:
            names.append(x509.UniformResourceIdentifier(spiffe_id))
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.issuer.certificate.subject)
            .public_key(private_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_LEAF_USAGE, critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.issuer.key.public_key()),
                critical=False,
            )
            .sign(self.issuer.key, hashes.SHA256())
        )
        return Identity(
            name=name,
            spiffe_id=spiffe_id,
            certificate=certificate,
            chain=(self.issuer.certificate,),
            key=private_key,
            trust_domain=self.name,
        )

    def bundle(self, *further: Authority, sequence: int = 1) -> Bundle:
        """The root, and others beside it, with the key for JWT-SVIDs."""
        return Bundle(
            trust_domain=self.name,
            roots=(self.root.certificate, *(one.certificate for one in further)),
            jwt_keys=jwk_set(self.jwt_key.public_key()),
            sequence=sequence,
        )

    def token(
        self,
        subject: str,
        audiences: Sequence[str],
        *,
        lifetime: timedelta = timedelta(minutes=5),
        headers: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A JWT-SVID."""
        now = datetime.now(UTC)
        payload = {
            "sub": subject,
            "aud": list(audiences),
            "exp": now + lifetime,
            "iat": now,
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in payload.items() if value is not None},
            self.jwt_key,
            algorithm="ES256",
            headers={"kid": "one", **(headers or {})},
        )


def jwk_set(*keys: Any, use: str = "jwt-svid", key_ids: Sequence[str] = ("one", "two")) -> bytes:
    """Public EC keys as a JWK set."""
    entries = []
    for key, key_id in zip(keys, key_ids, strict=False):
        entry = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key))
        entries.append({**entry, "kid": key_id, "use": use})
    return json.dumps({"keys": entries}).encode()


class TokenMaker:
    """A source of JWT-SVIDs that a test holds in its hands.

    Attributes:
        calls: What it was asked for.
        error: What it raises instead.
        begun: One for each call, when it has begun.
        gate: Open if it answers at once.
    """

    def __init__(self, *domains: Domain, lifetime: timedelta = timedelta(minutes=5)) -> None:
        self._domains = {domain.name: domain for domain in domains}
        self.lifetime = lifetime
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch_jwt_svid(self, identity: Identity, audiences: Sequence[str]) -> JwtSvid:
        """A new token."""
        self.calls.append((identity.name, tuple(audiences)))
        self.begun.put_nowait(None)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        assert identity.spiffe_id
        token = self._domains[identity.trust_domain].token(
            identity.spiffe_id, audiences, lifetime=self.lifetime, jti=str(len(self.calls))
        )
        return JwtSvid(identity.spiffe_id, token, datetime.now(UTC) + self.lifetime)


def picture(*identities: Identity, bundles: Sequence[Bundle]) -> Picture:
    """All that the agent holds."""
    return Picture(identities, {bundle.trust_domain: bundle for bundle in bundles})


@contextlib.asynccontextmanager
async def served(
    directory: Path,
    identities: Identities,
    tokens: TokenMaker | None = None,
    **settings: Any,
) -> AsyncIterator[str]:
    """Serves a socket in the directory; yields its address for gRPC."""
    path = directory / "agent.sock"
    made = SocketSettings.model_validate({"path": str(path), **settings})
    async with serve_socket(made, identities, tokens or TokenMaker()):
        yield f"unix:{path}"


_LEAF_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
