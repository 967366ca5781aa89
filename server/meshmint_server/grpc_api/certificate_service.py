"""`meshmint.v1.CertificateService`: translates, calls issuance or authority, translates back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from meshmint.v1 import certificate_service_pb2 as pb
from meshmint.v1.certificate_service_pb2_grpc import CertificateServiceServicer

from meshmint_server.authority import IssuerBook, JwtKeyBook, TrustBundleFeed
from meshmint_server.grpc_api import translate
from meshmint_server.grpc_api.edge import Call, Edge, rpc, streaming_rpc
from meshmint_server.grpc_api.item_stream import Answer, Draining, ItemCall, ItemStream
from meshmint_server.issuance import Issued, JwtSvids, Mint, Revoker
from meshmint_server.spiffe import TrustDomain, key_set

__all__ = ["CertificateService"]


_Items = TypeVar("_Items", pb.IssueStreamResponse, pb.SignStreamResponse)


class CertificateService(CertificateServiceServicer):
    """Issue, Sign and their streams, IssueJwtSvid, Revoke, GetChain and WatchTrustBundle.

    Attributes:
        draining: To be begun when the server is about to stop.
    """

    def __init__(
        self,
        edge: Edge,
        *,
        mint: Mint,
        revoker: Revoker,
        issuers: IssuerBook,
        bundles: TrustBundleFeed,
        jwt_svids: JwtSvids,
        jwt_keys: JwtKeyBook,
        trust_domain: TrustDomain,
    ) -> None:
        self.edge = edge
        self._mint = mint
        self._revoker = revoker
        self._issuers = issuers
        self._bundles = bundles
        self._jwt_svids = jwt_svids
        self._jwt_keys = jwt_keys
        self._trust_domain = trust_domain
        self.draining = Draining()

    @rpc("CertificateService/Issue")
    async def Issue(self, request: pb.IssueRequest, call: Call) -> pb.IssueResponse:  # noqa: N802
        """Makes a key pair and a certificate for it."""
        caller = await call.authenticate()
        return await self._issue(request, ItemCall(caller, call.origin, call.deadline))

    @rpc("CertificateService/Sign")
    async def Sign(self, request: pb.SignRequest, call: Call) -> pb.SignResponse:  # noqa: N802
        """Issues a certificate for the caller's own key."""
        caller = await call.authenticate()
        return await self._sign(request, ItemCall(caller, call.origin, call.deadline))

    @streaming_rpc("CertificateService/IssueStream")
    async def IssueStream(  # noqa: N802
        self, messages: AsyncIterator[pb.IssueStreamRequest], call: Call
    ) -> AsyncGenerator[pb.IssueStreamResponse, None]:
        """Issue for many requests."""
        stream = ItemStream(call, messages, self._issue, self.draining)
        async with aclosing(stream.answers()) as answers:
            async for some in answers:
                yield _fill_items(pb.IssueStreamResponse(), some)

    @streaming_rpc("CertificateService/SignStream")
    async def SignStream(  # noqa: N802
        self, messages: AsyncIterator[pb.SignStreamRequest], call: Call
    ) -> AsyncGenerator[pb.SignStreamResponse, None]:
        """Sign for many requests."""
        stream = ItemStream(call, messages, self._sign, self.draining)
        async with aclosing(stream.answers()) as answers:
            async for some in answers:
                yield _fill_items(pb.SignStreamResponse(), some)

    async def _issue(self, request: pb.IssueRequest, call: ItemCall) -> pb.IssueResponse:
        issued = await self._mint.issue(
            call.caller,
            request.role,
            lambda: translate.issue_request(request),
            origin=call.origin,
            deadline=call.deadline,
            retryable=translate.retryable(request),
        )
        response = pb.IssueResponse(private_key=issued.private_key_pem or "")
        _fill(response, issued)
        return response

    async def _sign(self, request: pb.SignRequest, call: ItemCall) -> pb.SignResponse:
        issued = await self._mint.issue(
            call.caller,
            request.role,
            lambda: translate.sign_request(request),
            origin=call.origin,
            deadline=call.deadline,
            retryable=translate.retryable(request),
        )
        response = pb.SignResponse()
        _fill(response, issued)
        return response

    @rpc("CertificateService/IssueJwtSvid")
    async def IssueJwtSvid(  # noqa: N802
        self, request: pb.IssueJwtSvidRequest, call: Call
    ) -> pb.IssueJwtSvidResponse:
        """Issues a JWT-SVID of the caller's own SPIFFE ID."""
        caller = await call.authenticate()
        issued = await self._jwt_svids.issue(
            caller,
            request.role,
            lambda: translate.jwt_svid_request(request),
            origin=call.origin,
            deadline=call.deadline,
        )
        return translate.jwt_svid_response(issued)

    @rpc("CertificateService/GetChain")
    async def GetChain(self, request: pb.GetChainRequest, call: Call) -> pb.GetChainResponse:  # noqa: N802
        """The chain and trust bundle; needs no credential."""
        issuer = self._issuers.get(request.issuer) if request.issuer else self._issuers.active()
        return pb.GetChainResponse(
            issuer=issuer.name,
            chain=(issuer.certificate_pem, *issuer.chain_pem),
            trust_bundle=issuer.trust_bundle_pem,
            trust_domain=str(self._trust_domain),
            not_after=translate.timestamp(issuer.not_after),
            jwt_keys=key_set(self._jwt_keys.published, "jwt-svid"),
        )

    @streaming_rpc("CertificateService/WatchTrustBundle")
    async def WatchTrustBundle(  # noqa: N802
        self, request: pb.WatchTrustBundleRequest, _call: Call
    ) -> AsyncGenerator[pb.WatchTrustBundleResponse, None]:
        """A trust bundle, now and at every change; needs no credential."""
        trust_domain = translate.optional_trust_domain(request.trust_domain)
        federated = tuple(map(str, self._bundles.federated_trust_domains))
        async with aclosing(self._bundles.watch(trust_domain)) as bundles:
            async for bundle in bundles:
                response = pb.WatchTrustBundleResponse(
                    trust_domain=str(bundle.trust_domain),
                    trust_bundle=bundle.roots_pem,
                    sequence=bundle.sequence,
                    federated_trust_domains=federated,
                    jwt_keys=bundle.jwt_key_set,
                )
                response.refresh_hint.FromTimedelta(bundle.refresh_hint)
                yield response

    @rpc("CertificateService/Revoke")
    async def Revoke(self, request: pb.RevokeRequest, call: Call) -> pb.RevokeResponse:  # noqa: N802
        """Revokes a certificate; needs no credential with a proof of possession."""
        caller = None if request.proof_of_possession else await call.authenticate()
        revoked = await self._revoker.revoke(
            caller, lambda: translate.revocation_request(request), call.origin
        )
        return translate.revoke_response(revoked)


def _fill_items(message: _Items, answers: list[Answer[Any]]) -> _Items:
    for answer in answers:
        message.items.add(id=answer.id, response=answer.response, error=answer.error)
    return message


def _fill(response: pb.IssueResponse | pb.SignResponse, issued: Issued) -> None:
    issuer = issued.issuer
    response.certificate = issued.certificate_pem
    response.chain.append(issuer.certificate_pem)
    response.chain.extend(issuer.chain_pem)
    response.trust_bundle.extend(issuer.trust_bundle_pem)
    response.serial_number = issued.serial_number
    response.spiffe_id = issued.spiffe_id or ""
    response.not_before.CopyFrom(translate.timestamp(issued.not_before))
    response.not_after.CopyFrom(translate.timestamp(issued.not_after))
    response.role = issued.role
    response.issuer = issuer.name
    response.warnings.extend(issued.warnings)
