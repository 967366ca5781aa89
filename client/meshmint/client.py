"""The client that waits: for threads, scripts and the command line."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self, Unpack

from meshmint import operations, stream_operations
from meshmint.calls import Calls
from meshmint.jwt_svid import issue_jwt_svid
from meshmint.keys import KeyAlgorithm, PrivateKey
from meshmint.requests import (
    CertificateOptions,
    CertificateRequest,
    CsrSource,
    IssueRequest,
    SignRequest,
    SvidRequest,
)
from meshmint.results import (
    Chain,
    IssuedCertificate,
    JwtSvid,
    Outcome,
    Revocation,
    SignedCertificate,
    Svid,
    TrustBundle,
)
from meshmint.retry import RetryPolicy
from meshmint.revocation import CertificateSource, RevocationReason
from meshmint.settings import Settings
from meshmint.tls import ClientCertificate, PemSource
from meshmint.tokens import TokenSource

__all__ = ["Client"]


class Client:
    """Gets certificates from Meshmint. Use it as a context manager, or close it.

    One client holds one connection, is cheap to keep and may be used from
    several threads. Every method raises MeshmintError or one of its subclasses,
    and nothing else, for whatever goes wrong with a call.

    Example:
        with Client("meshmint.example.org:8443", token=TokenFile("/run/token")) as client:
            svid = client.request_svid()
            svid.write_files("/run/svid")
    """

    def __init__(
        self,
        target: str,
        *,
        token: TokenSource | None = None,
        root_certificates: PemSource | None = None,
        insecure: bool = False,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
        client_certificate: ClientCertificate | None = None,
        server_name: str | None = None,
        options: Sequence[tuple[str, str | int]] = (),
    ) -> None:
        """Checks the settings; the first call connects.

        Args:
            target: ``host:port``, ``unix:/path`` or another gRPC target.
            token: The credential: the token itself, a TokenFile or path that is
                read again at every attempt, or a function. Only GetChain,
                watch_trust_bundle and revoke with a private key do without.
            root_certificates: Roots that the server's certificate must chain to,
                PEM or the path of a file; None: the system's.
            insecure: Without TLS; only for a loopback address or a unix socket.
            timeout: Seconds for a call with all its retries.
            retry: When to try again; None: the defaults of RetryPolicy.
            client_certificate: For mutual TLS.
            server_name: Name that the server's certificate must have, where it
                differs from the host in ``target``.
            options: Further gRPC channel options.

        Raises:
            UnsafeTransport: ``insecure`` and a target that is not local.
            ConfigurationError: Settings that cannot work.
        """
        self._calls = Calls(
            Settings.of(
                target,
                token=token,
                root_certificates=root_certificates,
                insecure=insecure,
                timeout=timeout,
                retry=retry,
                client_certificate=client_certificate,
                server_name=server_name,
                options=options,
            )
        )

    def request_svid(
        self,
        role: str = "",
        *,
        key_algorithm: KeyAlgorithm = "ec-p256",
        spiffe_id: str | None = None,
        dns_names: Sequence[str] = (),
        ttl: timedelta | None = None,
        timeout: float | None = None,
    ) -> Svid:
        """Gets an X509-SVID for a key that is made here and never travels.

        The answer is only accepted if it is for that key, chains to the trust
        bundle that comes with it, and carries exactly one SPIFFE ID.

        Args:
            role: Name of the role; empty if exactly one fits the caller.
            key_algorithm: Kind of key; the role must allow it.
            spiffe_id: The SPIFFE ID wanted; None: the caller's own.
            dns_names: DNS names wanted beside it.
            ttl: Lifetime wanted; None: the role's.
            timeout: Seconds for this call in place of the client's time-out.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        options: CertificateOptions = {"dns_names": dns_names, "ttl": ttl, "timeout": timeout}
        return self._calls.run(operations.request_svid(role, key_algorithm, spiffe_id, options))

    def request_certificate(
        self,
        role: str = "",
        *,
        key_algorithm: KeyAlgorithm = "ec-p256",
        **options: Unpack[CertificateOptions],
    ) -> IssuedCertificate:
        """Gets a certificate of any kind for a key that is made here and never travels.

        Args:
            role: Name of the role; empty if exactly one fits the caller.
            key_algorithm: Kind of key; the role must allow it.
            **options: Names and validity, see CertificateOptions.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        return self._calls.run(operations.request_certificate(role, key_algorithm, options))

    def sign(
        self, csr: CsrSource, role: str = "", **options: Unpack[CertificateOptions]
    ) -> SignedCertificate:
        """Gets a certificate for the public key of a CSR.

        Args:
            csr: PEM text, PEM or DER bytes, or a parsed CSR.
            role: Name of the role; empty if exactly one fits the caller.
            **options: Validity, and names beside those of the CSR; see CertificateOptions.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        return self._calls.run(operations.sign(csr, role, options))

    def issue(
        self,
        role: str = "",
        *,
        key_algorithm: KeyAlgorithm | None = None,
        **options: Unpack[CertificateOptions],
    ) -> IssuedCertificate:
        """Has the server make the key pair; the private key crosses the network.

        Prefer request_svid or request_certificate wherever the key can be made here.

        Args:
            role: Name of the role; empty if exactly one fits the caller.
            key_algorithm: Kind of key; None: the role decides.
            **options: Names and validity, see CertificateOptions.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        return self._calls.run(operations.issue(role, key_algorithm, options))

    def request_svids(
        self, requests: Iterable[SvidRequest]
    ) -> Generator[Outcome[SvidRequest, Svid], None, None]:
        """Gets many X509-SVIDs over one stream, for keys that are made here and never travel.

        Each as by ``request_svid``, with deadline, retries and checks of its own: a
        request that fails fails alone, and outcomes come in any order. A stream that
        breaks is opened again, and what it left unanswered is sent again; nothing is
        minted twice. At most 256 requests are taken ahead of the outcomes. Close the
        generator to end it early.

        Args:
            requests: What is wanted, with or without an end. Another thread reads it, which
                may wait there for the next one while outcomes come.

        Raises:
            MeshmintError: No stream can be had, and no other would fare better; or the
                server answered what was not asked. It concerns all that have no outcome yet.
        """
        return self._calls.many(stream_operations.REQUEST_SVIDS, requests)

    def request_certificates(
        self, requests: Iterable[CertificateRequest]
    ) -> Generator[Outcome[CertificateRequest, IssuedCertificate], None, None]:
        """Gets many certificates over one stream, for keys that are made here and never travel.

        Each as by ``request_certificate``, and otherwise like ``request_svids``.

        Args:
            requests: What is wanted, with or without an end.

        Raises:
            MeshmintError: As in ``request_svids``.
        """
        return self._calls.many(stream_operations.REQUEST_CERTIFICATES, requests)

    def sign_many(
        self, requests: Iterable[SignRequest]
    ) -> Generator[Outcome[SignRequest, SignedCertificate], None, None]:
        """Gets certificates for the public keys of many CSRs over one stream.

        Each as by ``sign``, and otherwise like ``request_svids``.

        Args:
            requests: What is wanted, with or without an end.

        Raises:
            MeshmintError: As in ``request_svids``.
        """
        return self._calls.many(stream_operations.SIGN_MANY, requests)

    def issue_many(
        self, requests: Iterable[IssueRequest]
    ) -> Generator[Outcome[IssueRequest, IssuedCertificate], None, None]:
        """Has the server make many key pairs over one stream; the private keys cross the network.

        Each as by ``issue``, and otherwise like ``request_svids``.

        Args:
            requests: What is wanted, with or without an end.

        Raises:
            MeshmintError: As in ``request_svids``.
        """
        return self._calls.many(stream_operations.ISSUE_MANY, requests)

    def issue_jwt_svid(
        self,
        audiences: Sequence[str],
        role: str = "",
        *,
        ttl: timedelta | None = None,
        timeout: float | None = None,
    ) -> JwtSvid:
        """Gets a JWT-SVID: a token that says who the caller is, to the audiences named.

        The answer is only accepted if it is a token for exactly these audiences.

        Args:
            audiences: Who is to accept it; one is best. The role must allow each.
            role: Name of the role; empty if exactly one that fits the caller allows
                JWT-SVIDs.
            ttl: Lifetime wanted; None: the role's.
            timeout: Seconds for this call in place of the client's time-out.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        return self._calls.run(issue_jwt_svid(audiences, role, ttl, timeout))

    def revoke(
        self,
        serial_number: str | None = None,
        *,
        certificate: CertificateSource | None = None,
        reason: RevocationReason = "unspecified",
        private_key: PrivateKey | None = None,
        timeout: float | None = None,
    ) -> Revocation:
        """Revokes a certificate for good; one that is revoked already stays as it is.

        Allowed to administrators, to the caller that it was issued to, and to whoever has
        its private key.

        Args:
            serial_number: Hexadecimal, for a certificate that is on record.
            certificate: The certificate itself, instead; needed for roles with no_store.
            reason: Why.
            private_key: The certificate's private key, which proves here that it is at
                hand: no credential is sent, and the key never is.
            timeout: Seconds for this call in place of the client's time-out.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        return self._calls.run(
            operations.revoke(serial_number, certificate, reason, private_key, timeout)
        )

    def get_chain(self, issuer: str = "", *, timeout: float | None = None) -> Chain:
        """Gets an issuer's chain and the trust bundle; needs no credential.

        Args:
            issuer: Name of the issuer; empty: the active one.
            timeout: Seconds for this call in place of the client's time-out.

        Raises:
            MeshmintError: See meshmint.errors for what each subclass means.
        """
        return self._calls.run(operations.get_chain(issuer, timeout))

    def watch_trust_bundle(
        self, trust_domain: str = "", *, timeout: float | None = None
    ) -> Generator[TrustBundle, None, None]:
        """Watches a trust bundle: yields it at once, and at every change, for ever.

        Every bundle is whole and replaces the one before. Streams that break are opened
        again, with the pauses of the RetryPolicy; bundles that are older than the last one
        yielded are left out. Needs no credential. Ends when the
        generator or the client is closed.

        Args:
            trust_domain: Another trust domain that the service federates with; empty: the
                service's own. Never trust the roots of one in the name of another.
            timeout: Seconds to wait for the first bundle in place of the client's time-out.

        Raises:
            MeshmintError: There was no first bundle in time, or something that
                reconnecting does not mend.
        """
        return self._calls.watch(
            operations.watch_trust_bundle(trust_domain, timeout), operations.is_newer
        )

    def close(self) -> None:
        """Closes the connection. The client cannot be used after that."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
