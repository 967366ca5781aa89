"""The secrets of one view, under every name by which an Envoy may ask for them.

A name that stands for nothing has no secret: an empty set of roots is never handed
out, since Envoy takes a validation context without roots for leave to trust anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from meshmint.agent.identities import Bundle, Identity
from meshmint.agent.sockets.feed import View
from meshmint.agent.sockets.spiffe_ids import trust_domain_id
from meshmint.keys import private_key_pem
from meshmint.third_party.envoy.config.core.v3.base_pb2 import DataSource
from meshmint.third_party.envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    TlsCertificate,
)
from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import (  # noqa: E501
    SPIFFECertValidatorConfig,
)

__all__ = ["ALL", "DEFAULT", "ROOTCA", "TYPE_URL", "NamedSecret", "Secrets"]

TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

# The names that the SPIRE agent answers to, so that configurations can stay as they are.
DEFAULT = "default"
ROOTCA = "ROOTCA"
ALL = "ALL"

_SPIFFE_VALIDATOR = "envoy.tls.cert_validator.spiffe"


@dataclass(frozen=True, slots=True)
class NamedSecret:
    """One secret under one name.

    Attributes:
        name: The name.
        version: The same for the same content, also after a restart; says nothing of a key.
        packed: The `Secret` as it goes out.
    """

    name: str
    version: str
    packed: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a secret is made: equal ones make equal secrets.

    Attributes:
        make: Makes it of a name and what it is of.
        of: One identity, or bundles.
    """

    make: Callable[..., NamedSecret]
    of: tuple[Identity | Bundle, ...]


class Secrets:
    """What there is to ask for.

    Args:
        view: What the socket shows.
        before: The secrets of the view before: what has not changed is not made again.
    """

    def __init__(self, view: View, before: Secrets | None = None) -> None:
        self._recipes: dict[str, _Recipe] = {}
        self._made: dict[str, NamedSecret] = {}
        trusted = {name: one for name, one in sorted(view.bundles.items()) if one.roots}
        for identity in view.identities:
            self._add(identity.name, _certificate, identity)
        for identity in view.identities:
            if identity.spiffe_id:
                # Several may have one SPIFFE ID: it stands for the first of them.
                self._add(identity.spiffe_id, _certificate, identity)
        for name, bundle in trusted.items():
            self._add(trust_domain_id(name), _validation_by_spiffe_id, bundle)
        # Whatever a certificate is called, these names mean what they mean everywhere.
        for reserved in (DEFAULT, ROOTCA, ALL):
            self._recipes.pop(reserved, None)
        if view.identities:
            first = view.identities[0]
            self._add(DEFAULT, _certificate, first)
            if first.trust_domain in trusted:
                self._add(ROOTCA, _validation, trusted[first.trust_domain])
        if trusted:
            self._add(ALL, _validation_by_spiffe_id, *trusted.values())
        self.everything = tuple(
            name for name in self._recipes if name not in {DEFAULT, ROOTCA, ALL}
        )
        """What whoever asks for everything gets: each certificate by its name and by its
        SPIFFE ID, each bundle by its trust domain."""
        if before is not None:
            for name, made in before._made.items():
                if self._recipes.get(name) == before._recipes[name]:
                    self._made[name] = made

    def get(self, name: str) -> NamedSecret | None:
        """The secret of that name, if there is one."""
        made = self._made.get(name)
        if made is None and (recipe := self._recipes.get(name)):
            made = self._made[name] = recipe.make(name, *recipe.of)
        return made

    def _add(self, name: str, make: Callable[..., NamedSecret], *of: Identity | Bundle) -> None:
        self._recipes.setdefault(name, _Recipe(make, of))


def _certificate(name: str, identity: Identity) -> NamedSecret:
    chain = (identity.certificate, *identity.chain)
    secret = Secret(
        name=name,
        tls_certificate=TlsCertificate(
            certificate_chain=_inline(_pem(chain)),
            private_key=_inline(private_key_pem(identity.key).encode("ascii")),
        ),
    )
    # The certificate stands for its key.
    return NamedSecret(name, _version("certificate", map(_der, chain)), _packed(secret))


def _validation(name: str, bundle: Bundle) -> NamedSecret:
    secret = Secret(
        name=name,
        validation_context=CertificateValidationContext(trusted_ca=_inline(_pem(bundle.roots))),
    )
    return NamedSecret(name, _version("roots", map(_der, bundle.roots)), _packed(secret))


def _validation_by_spiffe_id(name: str, *bundles: Bundle) -> NamedSecret:
    """Each trust domain's roots vouch for its own SPIFFE IDs alone."""
    config = SPIFFECertValidatorConfig(
        trust_domains=[
            SPIFFECertValidatorConfig.TrustDomain(
                name=one.trust_domain, trust_bundle=_inline(_pem(one.roots))
            )
            for one in bundles
        ]
    )
    secret = Secret(
        name=name,
        validation_context=CertificateValidationContext(
            custom_validator_config=TypedExtensionConfig(
                name=_SPIFFE_VALIDATOR, typed_config=_packed(config)
            )
        ),
    )
    parts = (part for one in bundles for part in (one.trust_domain.encode(), *map(_der, one.roots)))
    return NamedSecret(name, _version("bundles", parts), _packed(secret))


def _version(kind: str, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:32]


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message, deterministic=True)
    return packed


def _inline(content: bytes) -> DataSource:
    return DataSource(inline_bytes=content)


def _pem(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
