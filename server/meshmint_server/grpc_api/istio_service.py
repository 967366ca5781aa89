"""`istio.v1.auth.IstioCertificateService`, as pilot-agent and ztunnel speak it.

Translates, calls the mint, translates back: which role decides stands in the configuration,
and the role decides. Clients hear the codes that make them ask again where that may help,
and one constant text wherever the question is who they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf import struct_pb2
from meshmint.third_party.istio import ca_pb2 as pb
from meshmint.third_party.istio.ca_pb2_grpc import IstioCertificateServiceServicer

from meshmint_server.errors import (
    ImpersonationDenied,
    InvalidRequest,
    IssuerExpired,
    IssuerNotReady,
    MeshmintError,
    Unauthenticated,
    Unavailable,
    Violation,
)
from meshmint_server.grpc_api.edge import Call, Edge, rpc
from meshmint_server.issuance import Issued, Mint
from meshmint_server.policy import (
    LONGEST,
    Caller,
    CertificateRequest,
    Validity,
    only_spiffe_id,
    parse_csr,
)

__all__ = ["IstioRules", "IstioService"]

SERVICE = pb.DESCRIPTOR.services_by_name["IstioCertificateService"].full_name

# gRPC writes every key in lower case; the agents call it ClusterID.
_CLUSTER_ID = "clusterid"
_CERT_SIGNER = "CertSigner"
_IMPERSONATED = "ImpersonatedIdentity"


@dataclass(frozen=True, slots=True)
class IstioRules:
    """What the configuration says of Istio.

    Attributes:
        role: Name of the role that decides.
        authenticators: Names of those whose callers are served.
        clusters: Names of authenticators by cluster id; empty: the id means nothing.
        cert_signers: Names of roles by the signer that a request may ask for.
        node_accounts: Service accounts of node proxies, ``namespace/name``.
    """

    role: str
    authenticators: frozenset[str]
    clusters: dict[str, str] = field(default_factory=dict)
    cert_signers: dict[str, str] = field(default_factory=dict)
    node_accounts: frozenset[str] = frozenset()


def _in_istios_words(error: MeshmintError) -> MeshmintError:
    if isinstance(error, Unauthenticated):
        return Unauthenticated("The request could not be authenticated.")
    if isinstance(error, ImpersonationDenied):
        return ImpersonationDenied("The caller may not ask for this identity.")
    if isinstance(error, IssuerNotReady | IssuerExpired):
        # Agents ask again after UNAVAILABLE, and not after FAILED_PRECONDITION.
        return Unavailable("There is no issuer to sign at present.", reason=error.reason)
    return error


class IstioService(IstioCertificateServiceServicer):
    """Certificates for Istio's data plane."""

    def __init__(self, edge: Edge, mint: Mint, rules: IstioRules) -> None:
        self.edge = edge
        self._mint = mint
        self._rules = rules

    @rpc("IstioCertificateService/CreateCertificate", in_words_of=_in_istios_words)
    async def CreateCertificate(  # noqa: N802
        self, request: pb.IstioCertificateRequest, call: Call
    ) -> pb.IstioCertificateResponse:
        """A certificate for the caller, or for a pod beside it."""
        caller = await call.authenticate(among=self._authenticators(call))
        with call.writing_down(caller):
            identity = _text(request.metadata, _IMPERSONATED)
            role = self._role(_text(request.metadata, _CERT_SIGNER))
        if identity:
            actor, call = caller, call.through(caller)
            caller = await call.speak_for(actor, identity, self._rules.node_accounts)
        issued = await self._mint.issue(
            caller,
            role,
            lambda: _read(request, caller),
            origin=call.origin,
            deadline=call.deadline,
        )
        return _response(issued)

    def _authenticators(self, call: Call) -> frozenset[str]:
        """Whose callers may have sent this: what names its cluster must be of that cluster."""
        match call.values(_CLUSTER_ID):
            case [cluster] if cluster and self._rules.clusters:
                named = self._rules.clusters.get(cluster)
            case _:
                return self._rules.authenticators
        return frozenset() if named is None else frozenset({named})

    def _role(self, signer: str) -> str:
        if not signer:
            return self._rules.role
        role = self._rules.cert_signers.get(signer)
        if role is None:
            description = (
                "no role stands for this signer: leave it out, or have an operator add it to "
                "istio.cert_signers"
            )
            raise InvalidRequest(
                f"The signer asked for is not known here: {description}.",
                violations=[Violation(f"metadata.{_CERT_SIGNER}", description)],
            )
        return role


def _text(metadata: struct_pb2.Struct, key: str) -> str:
    """A text in the request's metadata; agents send some that are empty, and mean none."""
    value = metadata.fields.get(key)
    if value is None or value.WhichOneof("kind") in (None, "null_value"):
        return ""
    if value.WhichOneof("kind") != "string_value":
        raise InvalidRequest(
            f"The request is malformed: metadata.{key}: must be text.",
            violations=[Violation(f"metadata.{key}", "must be text")],
        )
    return value.string_value


def _read(request: pb.IstioCertificateRequest, caller: Caller) -> CertificateRequest:
    csr = only_spiffe_id(parse_csr(request.csr), caller.spiffe_id)
    ttl = None
    if request.validity_duration > 0:
        longest = int(LONGEST.total_seconds())
        ttl = timedelta(seconds=min(request.validity_duration, longest))
    return CertificateRequest(csr=csr, validity=Validity(ttl=ttl))


def _response(issued: Issued) -> pb.IstioCertificateResponse:
    """The certificate, then its issuers one by one, then all roots in one text.

    Agents take the roots that they trust from the last element, whole; ztunnel reads one
    certificate of each other element.
    """
    issuer = issued.issuer
    chain = (issued.certificate_pem, issuer.certificate_pem, *issuer.chain_pem)
    roots = "".join(map(_on_lines, issuer.trust_bundle_pem))
    return pb.IstioCertificateResponse(cert_chain=(*map(_on_lines, chain), roots))


def _on_lines(pem: str) -> str:
    # Agents put them one behind the other as they are.
    return pem if pem.endswith("\n") else pem + "\n"
