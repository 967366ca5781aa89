"""A certificate that somebody presents: what it is, and which issuer of ours signed it.

Nothing that it says counts before the issuer's signature on it has been checked,
and none of its own key's work is done before: both are its maker's choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from cryptography import x509

from meshmint_server.authority import Issuer, has_signed
from meshmint_server.errors import InvalidRequest, NotFound, Violation
from meshmint_server.policy import decode_pem_block

__all__ = ["find_signer", "read_certificate"]

# With 1,000 of the longest DNS names, the most that a role grants, it has half of that.
MAX_BYTES = 512 * 1024
# What a serial number that is given by itself may have; RFC 5280 section 4.1.2.2 has 20.
_MOST_SERIAL_OCTETS = 32
_LABELS = frozenset({"CERTIFICATE"})
# What cryptography raises at bytes that are not what they should be.
_MALFORMED = (ValueError, TypeError, OverflowError, x509.InvalidVersion)


def read_certificate(pem: str) -> x509.Certificate:
    """Reads a certificate from PEM: one CERTIFICATE block, nothing around it.

    Raises:
        InvalidRequest: It is anything else, over 512 KiB, or no certificate.
    """
    try:
        der = decode_pem_block(pem, _LABELS, "certificate", max_bytes=MAX_BYTES)
    except ValueError as error:
        raise _malformed(str(error)) from None
    try:
        with warnings.catch_warnings():
            # The parser warns of serial numbers that RFC 5280 forbids; they are refused below.
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            serial_number = certificate.serial_number
    except _MALFORMED:
        raise _malformed("it is no X.509 certificate, or is cut short") from None
    if serial_number <= 0:
        raise _malformed("its serial number is not positive (RFC 5280 section 4.1.2.2)")
    if serial_number.bit_length() > 8 * _MOST_SERIAL_OCTETS:
        # It goes into the log of who is refused, whoever made it up.
        raise _malformed(f"its serial number is longer than {_MOST_SERIAL_OCTETS} octets")
    return certificate


def find_signer(certificate: x509.Certificate, issuers: Iterable[Issuer]) -> Issuer:
    """The issuer whose key signed the certificate, for a certificate that is no CA's.

    Raises:
        NotFound: None of these issuers did.
        InvalidRequest: It is the certificate of a CA, or cannot be read.
    """
    known = tuple(issuers)
    if any(certificate == issuer.certificate for issuer in known):
        raise _of_a_ca()
    for issuer in known:
        if has_signed(issuer.certificate, certificate):
            _check_leaf(certificate)
            return issuer
    raise NotFound(
        "No issuer of this service signed that certificate, or the issuer is not published any "
        "more. 'meshmint inspect' shows its issuer."
    )


def _check_leaf(certificate: x509.Certificate) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return
    except (*_MALFORMED, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise _malformed("its extensions cannot be read") from None
    if constraints.value.ca:
        raise _of_a_ca()


def _of_a_ca() -> InvalidRequest:
    return InvalidRequest(
        "This is the certificate of a CA. The CA above it revokes it, such as the offline root: "
        "see the guide on setting up the CA.",
        reason="CERTIFICATE_OF_CA",
        violations=[Violation("certificate", "send the certificate of a workload")],
    )


def _malformed(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"The certificate cannot be used: {description}.",
        violations=[Violation("certificate", description)],
    )
