"""Certificates, keys and bundles as bytes: PEM and DER.

Nothing in here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshmint.agent.identities import Bundle, Identity
from meshmint.agent.outputs.errors import OutputError
from meshmint.keys import PrivateKey

__all__ = ["bundle_of", "certificates", "content_of", "federated"]

# SPIFFE ID, section 2.1, as far as it fits into the name of a file.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,220}")


def certificates(some: Iterable[x509.Certificate], encoding: Encoding) -> bytes:
    """Certificates, one after the other."""
    return b"".join(one.public_bytes(encoding) for one in some)


def _private_key(key: PrivateKey, encoding: Encoding) -> bytes:
    return key.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())


_CONTENT: Mapping[str, Callable[[Identity, Bundle, Encoding], bytes]] = {
    "certificate": lambda own, _, encoding: own.certificate.public_bytes(encoding),
    "chain": lambda own, _, encoding: certificates(own.chain, encoding),
    "fullchain": lambda own, _, encoding: certificates((own.certificate, *own.chain), encoding),
    "key": lambda own, _, encoding: _private_key(own.key, encoding),
    "bundle": lambda _, bundle, encoding: certificates(bundle.roots, encoding),
    "combined": lambda own, _, encoding: (
        _private_key(own.key, encoding) + certificates((own.certificate, *own.chain), encoding)
    ),
}


def content_of(kind: str, identity: Identity, bundle: Bundle, encoding: Encoding) -> bytes:
    """What a file of this kind holds.

    Args:
        kind: A field of `PemFiles`.
        identity: The certificate.
        bundle: That of its trust domain.
        encoding: PEM or DER.
    """
    return _CONTENT[kind](identity, bundle, encoding)


def bundle_of(identity: Identity, bundles: Mapping[str, Bundle], path: str) -> Bundle:
    """The bundle of the certificate's own trust domain.

    Raises:
        OutputError: It is not there, or is empty: who verifies with it would trust nobody.
    """
    bundle = bundles.get(identity.trust_domain)
    if bundle is None or not bundle.roots:
        raise OutputError(
            path,
            f"the trust bundle of {identity.trust_domain!r} is not there yet: it is written as "
            "soon as the service hands it out",
        )
    return bundle


def federated(
    wanted: str | tuple[str, ...], own: str, bundles: Mapping[str, Bundle]
) -> list[Bundle]:
    """The bundles of other trust domains that are wanted and there.

    Args:
        wanted: Their names, or "all".
        own: The trust domain that is none of them.
        bundles: All, by trust domain.
    """
    return [
        bundle
        for name, bundle in sorted(bundles.items())
        if name != own
        and (wanted == "all" or name in wanted)
        and _TRUST_DOMAIN.fullmatch(name)
        and bundle.roots
    ]
