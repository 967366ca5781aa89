"""TLS certificates of the listeners. That an address is free or reached is not tried."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from meshmint_server.authority import expiry_of
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.permissions import secret_file_faults
from meshmint_server.cli.doctor.words import duration_words, moment_words
from meshmint_server.config import BundleEndpointSettings, TlsSettings

__all__ = ["check_bundle_endpoint", "check_tls"]

_TLS = "tls"
_BUNDLE_ENDPOINT = "bundle_endpoint"
_RENEW = "Have it renewed, into the same files; the service takes it up without a restart."


def check_tls(tls: TlsSettings, now: datetime) -> Iterator[Finding]:
    """The gRPC listener, as its mode asks."""
    if tls.mode == "none":
        yield ok(_TLS, "There is no TLS, so the service listens on this machine only.")
    elif tls.certificate is not None and tls.key is not None:
        yield from _files(_TLS, tls.certificate, tls.key, now)
    elif not tls.dns_names and not tls.ip_addresses:
        yield error(
            _TLS,
            "The service's own certificate would have no name: no client could verify it.",
            "Set 'tls.dns_names' or 'tls.ip_addresses' to what clients call it.",
        )
    else:
        names = ", ".join((*tls.dns_names, *tls.ip_addresses))
        yield ok(_TLS, f"The service issues its own certificate, for {names}.")


def check_bundle_endpoint(endpoint: BundleEndpointSettings, now: datetime) -> Iterator[Finding]:
    """The SPIFFE bundle endpoint, if there is one, as its profile asks."""
    if endpoint.listen is None:
        return
    if endpoint.certificate is not None and endpoint.key is not None:
        yield from _files(_BUNDLE_ENDPOINT, endpoint.certificate, endpoint.key, now)
    else:
        yield ok(_BUNDLE_ENDPOINT, "The service issues its own certificate for it.")


def _files(
    subject: str, certificate_file: Path, key_file: Path, now: datetime
) -> Iterator[Finding]:
    """A certificate and its key in files that somebody else renews."""
    yield from secret_file_faults(subject, key_file, "the TLS key")
    leaf = key = None
    try:
        leaf = x509.load_pem_x509_certificates(certificate_file.read_bytes())[0]
    except OSError as fault:
        yield _unreadable(subject, certificate_file, fault)
    except ValueError:
        yield error(subject, f"{certificate_file} holds no certificate in PEM.", _RENEW)
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
    except OSError as fault:
        yield _unreadable(subject, key_file, fault)
    except TypeError:
        yield error(
            subject,
            f"The key in {key_file} is encrypted, and there is nobody to ask for its passphrase.",
            "Write it unencrypted, for the service's user alone (mode 0600).",
        )
    except (ValueError, UnsupportedAlgorithm):
        yield error(subject, f"{key_file} holds no private key in PEM.", _RENEW)
    if leaf is None:
        return
    faults = [*_certificate(subject, leaf, certificate_file, now)]
    if key is not None:
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
            faults.append(
                error(
                    subject,
                    f"The key in {key_file} is not that of the first certificate in "
                    f"{certificate_file}.",
                    "Write the pair that belongs together; the leaf comes first in the chain.",
                )
            )
    yield from faults
    if key is not None and not faults:
        left = expiry_of(leaf, now).left
        yield ok(
            subject,
            f"Certificate and key belong together, for {', '.join(_names(leaf))}; "
            f"{duration_words(left)} are left.",
        )


def _certificate(
    subject: str, leaf: x509.Certificate, file: Path, now: datetime
) -> Iterator[Finding]:
    expiry = expiry_of(leaf, now)
    ends = moment_words(expiry.not_after)
    if expiry.is_over:
        yield error(subject, f"The certificate in {file} expired at {ends}.", _RENEW)
    elif now < expiry.not_before:
        begins = moment_words(expiry.not_before)
        yield error(subject, f"The certificate in {file} is not valid before {begins}.", _RENEW)
    elif expiry.is_near:
        left = duration_words(expiry.left)
        yield warning(subject, f"The certificate in {file} expires at {ends}, in {left}.", _RENEW)
    if not _names(leaf):
        yield error(
            subject,
            f"The certificate in {file} has no DNS name and no IP address (subject alternative "
            "name): no client can verify it.",
            "Have it issued for the names that clients call.",
        )


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _unreadable(subject: str, path: Path, fault: OSError) -> Finding:
    return error(
        subject,
        f"{path} cannot be read: {fault.strerror}.",
        "Put it there, readable for the service's user.",
    )
