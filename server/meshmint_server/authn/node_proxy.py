"""A node's proxy that asks in the name of a pod beside it.

One proxy of each node, such as Istio's ztunnel, holds the certificates of all pods there. It
is believed only if an operator named its service account, only from a pod that still is the
one its token was made for, and only for service accounts that have a pod on that very node:
whoever takes a node over gets the identities of that node and of no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from meshmint_server.authn.pods import Pods
from meshmint_server.authn.service_account import is_namespace, is_object_name
from meshmint_server.authn.waiting import busy
from meshmint_server.errors import ImpersonationDenied, InvalidRequest, Violation
from meshmint_server.policy.caller import Attribute, Caller
from meshmint_server.spiffe import InvalidSpiffeId, SpiffeId

__all__ = ["NodeProxies", "service_account_in"]

FIELD = "metadata.ImpersonatedIdentity"
# A proxy of a node full of pods asks for some of them at a time; one that floods must leave
# the API server, and the places to wait for it, to the others.
MOST_AT_ONCE = 128
Render = Callable[[Mapping[str, Attribute]], SpiffeId | None]


class NodeProxies:
    """The node proxies of one cluster.

    Args:
        authenticator: Name of the cluster's authenticator.
        render: Gives a service account its SPIFFE ID.
        pods: The pods of the cluster.
    """

    def __init__(self, authenticator: str, render: Render, pods: Pods) -> None:
        self._authenticator = authenticator
        self._render = render
        self._pods = pods
        self._asking: Counter[str] = Counter()

    async def speak_for(self, actor: Caller, identity: str, accounts: Collection[str]) -> Caller:
        """The service account that a node's proxy may speak for.

        Args:
            actor: The proxy, authenticated.
            identity: The SPIFFE ID that it asks for, ``spiffe://…/ns/<namespace>/sa/<name>``.
            accounts: The service accounts of proxies that may do so, ``namespace/name``.

        Raises:
            InvalidRequest: It is no SPIFFE ID.
            ImpersonationDenied: The proxy may not ask for it.
            VerifierUnavailable: That cannot be told at present.
        """
        proxy = "/".join(
            _one(actor, f"kubernetes.{name}") for name in ("namespace", "service_account")
        )
        if proxy not in accounts:
            raise ImpersonationDenied(
                f"{actor.subject} asks for another identity, and is no node account. If it is to "
                "be one, add it to node_accounts."
            )
        wanted = _parsed(identity)
        namespace, name = service_account_in(wanted)
        attributes: dict[str, Attribute] = {
            "kubernetes.namespace": namespace,
            "kubernetes.service_account": name,
        }
        own = self._render(attributes)
        if own != wanted:
            raise ImpersonationDenied(
                f"{actor.subject} asks for {wanted}, but the authenticator "
                f"{self._authenticator!r} gives service account {namespace}/{name} "
                f"the SPIFFE ID {own or 'of nobody'}."
            )
        with self._place(actor):
            node = await self._node_of(actor)
            if not await self._pods.is_on(node, namespace, name):
                raise ImpersonationDenied(
                    f"{actor.subject} on node {node} asks for {wanted}, which has no pod there."
                )
        return Caller(
            authenticator=self._authenticator,
            subject=f"system:serviceaccount:{namespace}:{name}",
            attributes={**attributes, "kubernetes.node": node, "kubernetes.node_proxy": proxy},
            spiffe_id=own,
            expires_at=actor.expires_at,
        )

    @contextmanager
    def _place(self, actor: Caller) -> Iterator[None]:
        """One of the places that a proxy has, which its pod tells from those of other nodes."""
        pod = _one(actor, "kubernetes.pod_uid")
        if self._asking[pod] >= MOST_AT_ONCE:
            raise busy(f"the API server of authenticator '{self._authenticator}'")
        self._asking[pod] += 1
        try:
            yield
        finally:
            self._asking[pod] -= 1
            if not self._asking[pod]:
                del self._asking[pod]

    async def _node_of(self, actor: Caller) -> str:
        """The node that the proxy's own pod is on, by what the API server knows now."""
        namespace, name, uid = (
            _one(actor, f"kubernetes.{name}") for name in ("namespace", "pod", "pod_uid")
        )
        if not name or not uid:
            raise ImpersonationDenied(
                f"The token of {actor.subject} is bound to no pod, so nobody can tell its node."
            )
        pod = await self._pods.named(namespace, name)
        if (
            pod is None
            or pod.uid != uid
            or pod.service_account != _one(actor, "kubernetes.service_account")
        ):
            raise ImpersonationDenied(
                f"The pod {namespace}/{name} of {actor.subject} is not there any more."
            )
        if _one(actor, "kubernetes.node") not in ("", pod.node):
            raise ImpersonationDenied(
                f"The token of {actor.subject} was made for another node than {pod.node}, "
                f"where its pod {namespace}/{name} is."
            )
        return pod.node


def service_account_in(spiffe_id: SpiffeId) -> tuple[str, str]:
    """Namespace and name in a SPIFFE ID of Istio's form.

    Raises:
        ImpersonationDenied: It has another form.
    """
    match spiffe_id.segments:
        case ("ns", namespace, "sa", name) if is_namespace(namespace) and is_object_name(name):
            return namespace, name
    raise ImpersonationDenied(
        f"{spiffe_id} is of no service account: only .../ns/<namespace>/sa/<name> can be "
        "asked for by a node's proxy."
    )


def _parsed(identity: str) -> SpiffeId:
    try:
        return SpiffeId.parse(identity)
    except InvalidSpiffeId as error:
        raise InvalidRequest(
            f"The identity asked for cannot be read: {error}.",
            violations=[Violation(FIELD, str(error))],
        ) from None


def _one(caller: Caller, attribute: str) -> str:
    value = caller.attributes.get(attribute)
    return value if isinstance(value, str) else ""
