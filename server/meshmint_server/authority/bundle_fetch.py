"""How another trust domain's bundle is fetched (SPIFFE Federation, section 5.2).

What makes a bundle believable is who serves it, so the server is verified before
anything is asked: by the web's PKI, or as the one X509-SVID that the configuration
names. Nothing of the environment, no proxy and no cookie has a say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

import httpx
from cryptography import x509

from meshmint_server.spiffe import SpiffeId

__all__ = ["FetchFailed", "fetch_over_spiffe", "fetch_over_web"]

_LARGEST = 1024 * 1024
_SECONDS = 20.0
_MOST_REDIRECTS = 3
_TEMPORARY = frozenset({302, 303, 307})
# Mozilla's "intermediate" for TLS 1.2, as our own listeners have it.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class FetchFailed(Exception):
    """The bundle could not be had, or not from whom it must come; the message says why."""


async def fetch_over_web(url: str, ca: bytes | None) -> bytes:
    """The document at a URL whose server the web's PKI vouches for (section 5.2.1).

    Args:
        url: https.
        ca: PEM of the roots to trust in place of the system's.

    Raises:
        FetchFailed: It could not be had.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is None:
            context.load_default_certs()
        else:  # an empty file is an error, and never the system's roots
            context.load_verify_locations(cadata=ca.decode("ascii"))
    except (OSError, ValueError) as error:
        raise FetchFailed("its CA file holds no certificates in PEM") from error
    return await _fetch(url, _tightened(context))


async def fetch_over_spiffe(url: str, spiffe_id: SpiffeId, roots: Sequence[bytes]) -> bytes:
    """The document at a URL whose server is one X509-SVID (section 5.2.2).

    Args:
        url: https; its host name is for the network alone.
        spiffe_id: Whom the server must be.
        roots: DER; the bundle of that SPIFFE ID's trust domain.

    Raises:
        FetchFailed: It could not be had.
    """
    if not roots:
        raise FetchFailed(f"the bundle of {spiffe_id.trust_domain} trusts nobody")

    class EndpointTls(ssl.SSLObject):
        """Fails the handshake with anybody else, so that a stranger sees no request."""

        def do_handshake(self) -> None:
            super().do_handshake()
            _require_spiffe_id(self.getpeercert(binary_form=True), spiffe_id)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslobject_class = EndpointTls
    context.check_hostname = False  # the SPIFFE ID stands in its place
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a root here need not be self-signed
    try:
        context.load_verify_locations(cadata=b"".join(roots))
    except OSError as error:
        raise FetchFailed(
            f"the bundle of {spiffe_id.trust_domain} holds what TLS does not take"
        ) from error
    return await _fetch(url, _tightened(context))


def _tightened(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    return context


async def _fetch(url: str, context: ssl.SSLContext) -> bytes:
    try:
        # One limit for all of it: a server that sends a byte now and then ends here, too.
        async with (
            asyncio.timeout(_SECONDS),
            httpx.AsyncClient(
                verify=context, trust_env=False, follow_redirects=False, timeout=_SECONDS
            ) as client,
        ):
            for _ in range(_MOST_REDIRECTS + 1):
                found = await _get(client, url)
                if isinstance(found, bytes):
                    return found
                url = found
    except (TimeoutError, httpx.TimeoutException) as error:
        raise FetchFailed(f"it did not answer within {_SECONDS:.0f} seconds") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise FetchFailed(_cause(error)) from error
    raise FetchFailed(f"it redirects more than {_MOST_REDIRECTS} times")


async def _get(client: httpx.AsyncClient, url: str) -> bytes | str:
    """The document, or the URL that it is to be had at for now."""
    headers = {"accept": "application/json", "accept-encoding": "identity", "connection": "close"}
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code in _TEMPORARY:
            return _target(url, response.headers.get("location"))
        if response.status_code != httpx.codes.OK:
            raise FetchFailed(f"it answered HTTP {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FetchFailed("it compresses its answer unasked")
        document = bytearray()
        async for part in response.aiter_raw():
            document += part
            if len(document) > _LARGEST:
                raise FetchFailed(f"its answer is larger than {_LARGEST} bytes")
        return bytes(document)


def _target(url: str, location: str | None) -> str:
    """Where a temporary redirect leads; the same server must be found there (section 5.2)."""
    try:
        target = urljoin(url, location or "")
        parts = urlsplit(target)
        is_fit = bool(parts.hostname) and parts.port != 0  # a port over 65535 is a ValueError
    except ValueError:
        is_fit = False
    if not location or not is_fit or parts.scheme != "https" or "@" in parts.netloc:
        raise FetchFailed("it redirects to what is no https URL")
    return target


def _require_spiffe_id(certificate: bytes | None, spiffe_id: SpiffeId) -> None:
    """Refuses a leaf that is not this X509-SVID (X509-SVID, section 5.2)."""
    try:
        extensions = x509.load_der_x509_certificate(certificate or b"").extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise FetchFailed("its server's certificate has no SPIFFE ID") from error
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [str(spiffe_id)]:
        raise FetchFailed(f"its server is not {spiffe_id}")
    if any(_makes_a_ca(extension.value) for extension in extensions):
        raise FetchFailed("its server shows the certificate of a CA")


def _makes_a_ca(value: x509.ExtensionType) -> bool:
    if isinstance(value, x509.BasicConstraints):
        return value.ca
    return isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign)


def _cause(error: BaseException) -> str:
    """What went wrong below, without what a stranger's server wrote."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its server's certificate does not verify: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or 'no handshake'}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectError):
        return "it cannot be reached"
    return f"the connection failed: {type(error).__name__}"
