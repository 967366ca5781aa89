"""Whether a path of CA certificates may stand above our leaves: every reason against it.

Rules are RFC 5280's and the X509-SVID standard's. What is let through here is
what verifiers of leaves will accept, so each rule that some verifier enforces is
enforced, and nothing is repaired. Pure: no I/O, and the time comes as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshmint_server.authority.path import Path, fault_of_signature, is_self_signed, shown
from meshmint_server.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

__all__ = ["faults_of_path"]

E = TypeVar("E", bound=x509.ExtensionType)

_SMALLEST_RSA = 2048
_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})


def faults_of_path(path: Path, trust_domain: TrustDomain, now: datetime) -> list[str]:
    """Every reason, one sentence each, why `path` is not fit; empty if it is."""
    faults: list[str] = []
    for position, certificate in enumerate(path.upwards):
        is_root = certificate in path.roots
        faults += _faults_of_validity(certificate, now)
        faults += _faults_of_authority(certificate, is_own=position == 0, is_root=is_root)
        faults += _faults_of_strength(certificate, is_root=is_root)
        faults += _faults_of_constraints(certificate, trust_domain)
        faults += _faults_of_spiffe_id(certificate, trust_domain, is_own=position == 0)
        faults += _unknown_critical(certificate)
    faults += _faults_of_path_lengths(path)
    faults += _faults_of_identifiers(path)
    faults += [
        f"{shown(other)} has no part in this chain. Give this issuer's chain alone."
        for other in path.others
    ]
    return faults


def _extension(certificate: x509.Certificate, kind: type[E]) -> x509.Extension[E] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _faults_of_validity(certificate: x509.Certificate, now: datetime) -> Iterator[str]:
    if now < certificate.not_valid_before_utc:
        yield f"{shown(certificate)} is not valid before {_time(certificate.not_valid_before_utc)}."
    if now > certificate.not_valid_after_utc:
        yield f"{shown(certificate)} expired at {_time(certificate.not_valid_after_utc)}."


def _faults_of_authority(
    certificate: x509.Certificate, *, is_own: bool, is_root: bool
) -> Iterator[str]:
    # RFC 5280 sections 4.2.1.9 and 4.2.1.3; X509-SVID section 4.
    name = shown(certificate)
    basic = _extension(certificate, x509.BasicConstraints)
    if basic is None or not basic.value.ca:
        yield f"{name} is not a CA: it needs the basic constraint CA:TRUE."
    elif not basic.critical and not is_root:
        yield f"{name} has basic constraints that are not critical (RFC 5280 section 4.2.1.9)."
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None:
        if is_own:
            yield f"{name} has no key usage: it needs keyCertSign and cRLSign."
    else:
        if not usage.value.key_cert_sign:
            yield f"{name} may not sign certificates: its key usage lacks keyCertSign."
        if is_own and not usage.value.crl_sign:
            # RFC 5280 section 4.2.1.3: verifiers refuse its CRLs otherwise.
            yield f"{name} may not sign CRLs: its key usage lacks cRLSign."
    extended = _extension(certificate, x509.ExtendedKeyUsage)
    if extended is not None and not is_root:
        allowed = set(extended.value)
        wanted = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in allowed and not wanted <= allowed:
            yield (
                f"{name} is limited to extended key usages without serverAuth and clientAuth: "
                "verifiers would refuse what is signed below it."
            )


def _faults_of_strength(certificate: x509.Certificate, *, is_root: bool) -> Iterator[str]:
    name = shown(certificate)
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _SMALLEST_RSA:
            yield f"{name} has an RSA key of {key.key_size} bits: {_SMALLEST_RSA} is the least."
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            yield f"{name} has a key on the curve {key.curve.name}: use P-256, P-384 or P-521."
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        yield f"{name} has a key that is neither RSA, EC nor Ed25519."
    if is_root:
        return  # nobody rests on a root's own signature
    weakness = fault_of_signature(certificate)
    if weakness is not None:
        yield weakness


def _faults_of_path_lengths(path: Path) -> Iterator[str]:
    # RFC 5280 section 4.2.1.9: how many CA certificates may follow, self-issued ones aside.
    below = 0
    for certificate in path.upwards:
        basic = _extension(certificate, x509.BasicConstraints)
        limit = basic.value.path_length if basic is not None and basic.value.ca else None
        if limit is not None and below > limit:
            yield (
                f"{shown(certificate)} allows {limit} CA certificates below it (path length), "
                f"and there are {below}."
            )
        if certificate.subject != certificate.issuer:
            below += 1


def _faults_of_identifiers(path: Path) -> Iterator[str]:
    # RFC 5280 sections 4.2.1.1 and 4.2.1.2: verifiers choose issuers by these.
    for certificate in path.upwards:
        name = shown(certificate)
        is_own = certificate == path.certificate
        if is_own and _extension(certificate, x509.SubjectKeyIdentifier) is None:
            yield f"{name} has no subject key identifier (RFC 5280 section 4.2.1.2)."
        if is_self_signed(certificate):
            continue
        authority = _extension(certificate, x509.AuthorityKeyIdentifier)
        if authority is None or authority.value.key_identifier is None:
            if is_own:
                yield f"{name} has no authority key identifier (RFC 5280 section 4.2.1.1)."
            continue
        for issuer in path.upwards:
            subject = _extension(issuer, x509.SubjectKeyIdentifier)
            if (
                issuer.subject == certificate.issuer
                and subject is not None
                and subject.value.digest != authority.value.key_identifier
            ):
                yield (
                    f"{name} has an authority key identifier that is not the subject key "
                    f"identifier of {shown(issuer)}."
                )


def _faults_of_constraints(
    certificate: x509.Certificate, trust_domain: TrustDomain
) -> Iterator[str]:
    # RFC 5280 section 4.2.1.10: a URI constraint is about the host, here the trust domain.
    constraints = _extension(certificate, x509.NameConstraints)
    if constraints is None:
        return
    permitted = _uri_subtrees(constraints.value.permitted_subtrees)
    excluded = _uri_subtrees(constraints.value.excluded_subtrees)
    if permitted and not any(_is_within(trust_domain.name, tree) for tree in permitted):
        yield (
            f"{shown(certificate)} permits URI names in {', '.join(permitted)} only: "
            f"no SPIFFE ID of the trust domain {trust_domain} would be valid below it."
        )
    for tree in excluded:
        # Verifiers differ on whether a host without a leading period covers what is
        # below it; an exclusion is taken at its widest.
        if _is_within(trust_domain.name, tree) or _is_within(
            trust_domain.name, "." + tree.removeprefix(".")
        ):
            yield (
                f"{shown(certificate)} excludes URI names in {tree}: "
                f"no SPIFFE ID of the trust domain {trust_domain} would be valid below it."
            )


def _uri_subtrees(trees: list[x509.GeneralName] | None) -> list[str]:
    return [
        tree.value.lower()
        for tree in trees or ()
        if isinstance(tree, x509.UniformResourceIdentifier)
    ]


def _is_within(host: str, tree: str) -> bool:
    """A leading period asks for one or more labels more; an empty tree holds everything."""
    if tree.startswith("."):
        return host.endswith(tree) and host != tree
    return not tree or host == tree


def _faults_of_spiffe_id(
    certificate: x509.Certificate, trust_domain: TrustDomain, *, is_own: bool
) -> Iterator[str]:
    # X509-SVID sections 2 and 4.1 (signing certificates), SPIFFE-ID section 2.
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    spiffe_uris = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if not spiffe_uris:
        return
    if len(uris) > 1:
        yield f"{shown(certificate)} has a SPIFFE ID and other URI names: it may have one URI only."
    for uri in spiffe_uris:
        try:
            spiffe_id = SpiffeId.parse(uri)
        except InvalidSpiffeId as error:
            yield f"{shown(certificate)} has the SPIFFE ID '{uri}', which is malformed: {error}."
            continue
        if spiffe_id.segments:
            yield (
                f"{shown(certificate)} has the SPIFFE ID '{uri}' with a path: the ID of a CA "
                "has none (X509-SVID section 4.1)."
            )
        if is_own and spiffe_id.trust_domain != trust_domain:
            yield (
                f"{shown(certificate)} has the SPIFFE ID '{uri}', which is not of the trust "
                f"domain {trust_domain}."
            )


def _unknown_critical(certificate: x509.Certificate) -> Iterator[str]:
    for extension in certificate.extensions:
        if extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
            yield (
                f"{shown(certificate)} has the critical extension {extension.oid.dotted_string}, "
                "which verifiers do not know and would refuse."
            )


def _time(value: datetime) -> str:
    return f"{value:%Y-%m-%dT%H:%M:%SZ}"
