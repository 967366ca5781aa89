"""The SPIFFE Workload API (SPIFFE_Workload_API.md, SPIFFE_Workload_Endpoint.md).

Every message of a stream is the whole picture. Translates, and decides nothing but
what the standard decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from meshmint.agent.identities import Identity
from meshmint.agent.sockets.feed import Feed, View
from meshmint.agent.sockets.jwt_svids import JwtSvids
from meshmint.agent.sockets.jwt_validation import TokenRefused, has_keys, validate
from meshmint.agent.sockets.refusals import Refusal, clean, told
from meshmint.agent.sockets.spiffe_ids import trust_domain_id
from meshmint.agent.sockets.turns import Turns
from meshmint.third_party.spiffe import workload_pb2, workload_pb2_grpc

__all__ = ["WorkloadApi", "add_workload_api"]

ServicerContext = grpc.aio.ServicerContext[Any, Any]

# Tokens are kept by their audiences.
_MAX_AUDIENCES = 16
_MAX_AUDIENCE_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class _Served:
    """What of a view is served here.

    Attributes:
        svids: Each with the bundle of its trust domain, the default one first.
        view: What they are of.
    """

    svids: tuple[Identity, ...]
    view: View

    @classmethod
    def of(cls, view: View) -> _Served:
        """What of a view can be served."""
        return cls(
            tuple(i for i in view.identities if i.spiffe_id and _has_roots(view, i.trust_domain)),
            view,
        )


class _Shared:
    """One message for all who stream: encoded once for a view, and another only if it differs."""

    def __init__(self, make: Callable[[_Served], Message]) -> None:
        self._make = make
        self._view: View | None = None
        self._encoded = b""

    def get(self, served: _Served) -> bytes:
        """The same object as long as the message is the same."""
        if self._view is not served.view:
            encoded = self._make(served).SerializeToString(deterministic=True)
            self._view = served.view
            self._encoded = encoded if encoded != self._encoded else self._encoded
        return self._encoded


# Streams are written to, not yielded to: what a cancelled call holds is then let go at
# once, and not when somebody collects a generator. The generated types know only the latter.
class WorkloadApi(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """Serves one socket.

    Args:
        feed: What the socket shows.
        tokens: Where JWT-SVIDs come from.
    """

    def __init__(self, feed: Feed, tokens: JwtSvids) -> None:
        self._feed = feed
        self._tokens = tokens
        self._latest: _Served | None = None
        self._turns = Turns()
        self._svids = _Shared(_x509_svids)
        self._bundles = _Shared(_x509_bundles)
        self._jwt_bundles = _Shared(_jwt_bundles)

    async def FetchX509SVID(  # type: ignore[override]  # noqa: N802, the standard's name
        self, request: workload_pb2.X509SVIDRequest, context: ServicerContext
    ) -> None:
        """Streams the X509-SVIDs with their keys and bundles."""
        await self._stream(context, self._svids)

    async def FetchX509Bundles(  # type: ignore[override]  # noqa: N802
        self, request: workload_pb2.X509BundlesRequest, context: ServicerContext
    ) -> None:
        """Streams the roots of every trust domain."""
        await self._stream(context, self._bundles)

    async def FetchJWTBundles(  # type: ignore[override]  # noqa: N802
        self, request: workload_pb2.JWTBundlesRequest, context: ServicerContext
    ) -> None:
        """Streams the JWK sets of every trust domain."""
        await self._stream(context, self._jwt_bundles)

    async def FetchJWTSVID(  # noqa: N802
        self, request: workload_pb2.JWTSVIDRequest, context: ServicerContext
    ) -> workload_pb2.JWTSVIDResponse:
        """Returns a JWT-SVID for each identity, or for the one asked for."""
        async with told(context):
            _require_header(context)
            _check_audiences(request.audience)
            identities = self._served().svids
            if request.spiffe_id:
                identities = tuple(i for i in identities if i.spiffe_id == request.spiffe_id)
                if not identities:
                    raise Refusal(
                        grpc.StatusCode.PERMISSION_DENIED,
                        f"this socket does not serve {clean(request.spiffe_id)}",
                    )
            return await self._jwt_svids(identities, tuple(request.audience))

    async def ValidateJWTSVID(  # noqa: N802
        self, request: workload_pb2.ValidateJWTSVIDRequest, context: ServicerContext
    ) -> workload_pb2.ValidateJWTSVIDResponse:
        """Says whose a JWT-SVID is, if it holds for the audience."""
        async with told(context):
            _require_header(context)
            _check_audiences((request.audience,))
            if not request.svid:
                raise _missing("svid")
            bundles = self._served().view.bundles
            try:
                token = validate(request.svid, request.audience, bundles)
                claims = Struct()
                claims.update(dict(token.claims))
            except TokenRefused as refused:
                raise Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT, f"the token does not hold: {refused}"
                ) from refused
            except (ValueError, OverflowError, TypeError):
                raise Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "the token does not hold: a claim is no value that protobuf can carry",
                ) from None
            return workload_pb2.ValidateJWTSVIDResponse(spiffe_id=token.spiffe_id, claims=claims)

    async def _stream(self, context: ServicerContext, shared: _Shared) -> None:
        async with told(context):
            _require_header(context)
            sent: bytes | None = None
            with self._feed.listen() as news:
                while True:
                    await news.wait()
                    news.clear()
                    answer = shared.get(self._served())
                    if answer is sent:
                        continue
                    async with self._turns.turn(len(answer)):
                        # While others had their turns it may have become an older one.
                        sent = shared.get(self._served())
                        await context.write(sent)

    async def _jwt_svids(
        self, identities: Iterable[Identity], audiences: tuple[str, ...]
    ) -> workload_pb2.JWTSVIDResponse:
        answer = workload_pb2.JWTSVIDResponse()
        refused: Refusal | None = None
        for identity in identities:
            try:
                svid = await self._tokens.get(identity, audiences)
            except Refusal as refusal:
                # Not every role gives tokens: whoever has one that does gets those.
                if refusal.code is not grpc.StatusCode.PERMISSION_DENIED:
                    raise
                refused = refused or refusal
                continue
            answer.svids.add(spiffe_id=svid.spiffe_id, svid=svid.token, hint=identity.name)
        if not answer.svids and refused is not None:
            raise refused
        return answer

    def _served(self) -> _Served:
        """What there is to serve.

        Raises:
            Refusal: Nothing, and why.
        """
        view = self._feed.view
        if view is None:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                "the agent is starting and has no certificate yet: try again in a moment",
            )
        if self._latest is None or self._latest.view is not view:
            self._latest = _Served.of(view)
        if not self._latest.svids:
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED,
                "this socket has no X509-SVID: none of its certificates is there, or none has a "
                "SPIFFE ID; see the agent's log and 'meshmint agent status'",
            )
        return self._latest


# Not as the generated function does it: there each stream would encode the same picture anew.
def add_workload_api(api: WorkloadApi, server: grpc.aio.Server) -> None:
    """Has a server serve it; its streams write what is encoded already."""
    handlers = {
        "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
            api.FetchX509SVID, request_deserializer=workload_pb2.X509SVIDRequest.FromString
        ),
        "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(
            api.FetchX509Bundles, request_deserializer=workload_pb2.X509BundlesRequest.FromString
        ),
        "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(
            api.FetchJWTBundles, request_deserializer=workload_pb2.JWTBundlesRequest.FromString
        ),
        "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(
            api.FetchJWTSVID,
            request_deserializer=workload_pb2.JWTSVIDRequest.FromString,
            response_serializer=workload_pb2.JWTSVIDResponse.SerializeToString,
        ),
        "ValidateJWTSVID": grpc.unary_unary_rpc_method_handler(
            api.ValidateJWTSVID,
            request_deserializer=workload_pb2.ValidateJWTSVIDRequest.FromString,
            response_serializer=workload_pb2.ValidateJWTSVIDResponse.SerializeToString,
        ),
    }
    name = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


def _has_roots(view: View, trust_domain: str) -> bool:
    bundle = view.bundles.get(trust_domain)
    return bundle is not None and bool(bundle.roots)


def _require_header(context: ServicerContext) -> None:
    """SPIFFE_Workload_Endpoint.md section 4: keeps requests out that others were tricked into."""
    values = [value for key, value in context.invocation_metadata() or () if key == _HEADER]
    if values != ["true"]:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the metadata '{_HEADER}: true' is missing: use a client of the SPIFFE Workload API",
        )


_HEADER = "workload.spiffe.io"


def _check_audiences(audiences: Iterable[str]) -> None:
    given = tuple(audiences)
    if not given or not all(given):
        raise _missing("audience")
    if len(given) > _MAX_AUDIENCES or sum(map(len, given)) > _MAX_AUDIENCE_CHARACTERS:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"give at most {_MAX_AUDIENCES} audiences, of at most {_MAX_AUDIENCE_CHARACTERS} "
            f"characters together",
        )


def _missing(field: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"{field} must not be empty")


def _x509_svids(served: _Served) -> workload_pb2.X509SVIDResponse:
    own = {svid.trust_domain for svid in served.svids}
    return workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id=svid.spiffe_id or "",
                x509_svid=_der((svid.certificate, *svid.chain)),
                x509_svid_key=svid.key.private_bytes(
                    Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
                ),
                bundle=_der(served.view.bundles[svid.trust_domain].roots),
                hint=svid.name,
            )
            for svid in served.svids
        ],
        federated_bundles={
            trust_domain_id(name): _der(bundle.roots)
            for name, bundle in served.view.bundles.items()
            if name not in own and bundle.roots
        },
    )


def _x509_bundles(served: _Served) -> workload_pb2.X509BundlesResponse:
    return workload_pb2.X509BundlesResponse(
        bundles={
            trust_domain_id(name): _der(bundle.roots)
            for name, bundle in served.view.bundles.items()
            if bundle.roots
        }
    )


def _jwt_bundles(served: _Served) -> workload_pb2.JWTBundlesResponse:
    bundles = served.view.bundles
    # Without keys is the same as not there to whoever verifies, and some clients fail over a
    # set without keys, and forget all the others. The own trust domain is always there.
    own = served.svids[0].trust_domain
    told = [name for name, bundle in bundles.items() if has_keys(bundle.jwt_keys)] or [own]
    return workload_pb2.JWTBundlesResponse(
        bundles={trust_domain_id(name): bundles[name].jwt_keys for name in told}
    )


def _der(certificates: Iterable[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in certificates)
