"""`io.linkerd.proxy.identity.Identity`, as Linkerd's proxy speaks it.

CSR and certificates are DER, whatever the protocol's own comments say, and the token is in
the message. Translates, calls the mint, translates back; the identity is made of the
authenticated caller and only compared with the one that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint.third_party.linkerd import identity_pb2 as pb
from meshmint.third_party.linkerd.identity_pb2_grpc import IdentityServicer

from meshmint_server.errors import (
    InvalidRequest,
    IssuerExpired,
    IssuerNotReady,
    MeshmintError,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
    Violation,
)
from meshmint_server.grpc_api import translate
from meshmint_server.grpc_api.edge import Call, Edge, rpc
from meshmint_server.issuance import Issued, Mint
from meshmint_server.policy import Caller, CertificateRequest, only_dns_name, parse_csr_der

__all__ = ["LinkerdRules", "LinkerdService"]

SERVICE = pb.DESCRIPTOR.services_by_name["Identity"].full_name

_NOT_AUTHENTICATED = "The token could not be authenticated."


@dataclass(frozen=True, slots=True)
class LinkerdRules:
    """What the configuration says of Linkerd.

    Attributes:
        role: Name of the role that decides.
        authenticators: Names of those whose callers are served.
        suffix: What follows service account and namespace in an identity, such as
            ``serviceaccount.identity.linkerd.cluster.local``.
    """

    role: str
    authenticators: frozenset[str]
    suffix: str

    def identity_of(self, caller: Caller) -> str | None:
        """The identity of a service account; None for a caller that is none."""
        parts = [
            caller.attributes.get(f"kubernetes.{name}") for name in ("service_account", "namespace")
        ]
        texts = [part for part in parts if isinstance(part, str) and part]
        return ".".join((*texts, self.suffix)) if len(texts) == len(parts) else None


def _in_linkerds_words(error: MeshmintError) -> MeshmintError:
    if isinstance(error, Unauthenticated):
        if error.reason == "CREDENTIAL_MALFORMED":
            return InvalidRequest(
                "The token cannot be read.", violations=[Violation("token", "no token")]
            )
        return PreconditionFailed(_NOT_AUTHENTICATED, reason=Unauthenticated.default_reason)
    if isinstance(error, IssuerNotReady | IssuerExpired):
        return Unavailable("There is no issuer to sign at present.", reason=error.reason)
    return error


class LinkerdService(IdentityServicer):
    """Certificates for Linkerd's proxies."""

    def __init__(self, edge: Edge, mint: Mint, rules: LinkerdRules) -> None:
        self.edge = edge
        self._mint = mint
        self._rules = rules

    @rpc("Identity/Certify", in_words_of=_in_linkerds_words)
    async def Certify(self, request: pb.CertifyRequest, call: Call) -> pb.CertifyResponse:  # noqa: N802
        """A certificate for the proxy's own identity."""
        with call.writing_down():
            _refuse_missing(request)
        # What is no text has no form of a token either, and is refused as such.
        token = request.token.decode("ascii", "replace")
        caller = await replace(call, token=token).authenticate(among=self._rules.authenticators)
        issued = await self._mint.issue(
            caller,
            self._rules.role,
            lambda: self._read(request, caller),
            origin=call.origin,
            deadline=call.deadline,
        )
        return _response(issued)

    def _read(self, request: pb.CertifyRequest, caller: Caller) -> CertificateRequest:
        own = self._rules.identity_of(caller)
        if own is None or request.identity != own:
            description = f"must be {own}" if own else "there is none for this caller"
            raise PreconditionFailed(
                "The identity asked for is not the one of the token's service account: "
                f"{description}.",
                reason="IDENTITY_MISMATCH",
                violations=[Violation("identity", description)],
            )
        csr = parse_csr_der(request.certificate_signing_request)
        return CertificateRequest(csr=only_dns_name(csr, own))


def _refuse_missing(request: pb.CertifyRequest) -> None:
    violations = [
        Violation(name, "must not be empty")
        for name in ("identity", "token", "certificate_signing_request")
        if not getattr(request, name)
    ]
    if violations:
        raise InvalidRequest(
            f"The request is malformed: {violations[0].field} must not be empty.",
            violations=violations,
        )


def _response(issued: Issued) -> pb.CertifyResponse:
    issuer = issued.issuer
    return pb.CertifyResponse(
        leaf_certificate=_der(issued.certificate_pem),
        intermediate_certificates=map(_der, (issuer.certificate_pem, *issuer.chain_pem)),
        valid_until=translate.timestamp(issued.not_after),
    )


def _der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
