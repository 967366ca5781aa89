"""Protocols of service meshes, served beside our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from meshmint_server.authn import is_namespace, is_object_name
from meshmint_server.config.fields import HostPort, OptionalTcpAddress, Section
from meshmint_server.grpc_api import IstioRules, LinkerdRules
from meshmint_server.spiffe import TrustDomain

__all__ = ["IstioSettings", "LinkerdSettings"]


def _service_account(value: str) -> str:
    namespace, _, name = value.partition("/")
    if not is_namespace(namespace) or not is_object_name(name):
        raise ValueError("must be 'namespace/service-account', such as 'istio-system/ztunnel'")
    return value


def _namespace(value: str) -> str:
    if not is_namespace(value):
        raise ValueError("must be a namespace's name, such as 'linkerd'")
    return value


def _dns_name(value: str) -> str:
    if not is_object_name(value):
        raise ValueError("must be a DNS name in lower case, such as 'cluster.local'")
    return value


class _MeshSettings(Section):
    """What all such protocols have."""

    enabled: bool = False
    role: str = ""
    authenticators: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> _MeshSettings:
        if self.enabled and not self.role:
            raise ValueError("name in 'role' the role that decides")
        if self.enabled and not self.authenticators:
            raise ValueError("name in 'authenticators' those whose callers are served")
        return self

    def unknown(self, known: Iterable[str]) -> list[str]:
        """The authenticators that are named and are none of those."""
        names = set(known)
        return [name for name in self.authenticators if name not in names]


class IstioSettings(_MeshSettings):
    """Istio's protocol for pilot-agent and ztunnel (docs/guide/istio.md).

    Attributes:
        enabled: Whether it is served, on the port of `listen`.
        role: Name of the role that decides. A lifetime of 0 or less is the role's usual one,
            and one over `max_ttl` is shortened to it, unless the role says `refuse`.
        authenticators: Names of the authenticators whose callers are served.
        clusters: Names of authenticators by the cluster id that agents send (`clusterid`): a
            request that names one must have a token of that cluster, and one that is not
            listed is refused. Empty: the id is ignored, and the token's issuer says all.
        cert_signers: Names of roles by the signer that a request asks for (`CertSigner`);
            any other signer is refused.
        node_accounts: Service accounts of node proxies, `namespace/name`, that may ask for
            certificates of the pods on their own node. Their authenticators need the API
            server: `api_server`, `ca_file`, and `reviewer_token_file` with the right to list
            pods.
    """

    clusters: Mapping[str, str] = Field(default_factory=dict)
    cert_signers: Mapping[str, str] = Field(default_factory=dict)
    node_accounts: tuple[Annotated[str, AfterValidator(_service_account)], ...] = ()

    @model_validator(mode="after")
    def _names_own_authenticators(self) -> IstioSettings:
        for cluster, name in self.clusters.items():
            if name not in self.authenticators:
                raise ValueError(
                    f"clusters: {cluster!r} is of {name!r}, which is not in 'authenticators'"
                )
        if not all(self.cert_signers) or not all(self.cert_signers.values()):
            raise ValueError("cert_signers: a signer or a role has no name")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that it may name."""
        return tuple(dict.fromkeys((self.role, *self.cert_signers.values())))

    def build(self) -> IstioRules | None:
        """The rules; None while it is not enabled."""
        if not self.enabled:
            return None
        return IstioRules(
            role=self.role,
            authenticators=frozenset(self.authenticators),
            clusters=dict(self.clusters),
            cert_signers=dict(self.cert_signers),
            node_accounts=frozenset(self.node_accounts),
        )


class LinkerdSettings(_MeshSettings):
    """Linkerd's protocol for its proxies (docs/guide/linkerd.md).

    Attributes:
        enabled: Whether it is served, on the port of gRPC and on `listen`.
        listen: Address for the proxies, `host:port`, which shows the certificate of `tls`:
            they offer no ALPN, which gRPC demands on its own port.
        role: Name of the role that decides; it must allow the proxy's identity as a DNS name.
        authenticators: Names of the authenticators, of kind `kubernetes`, whose callers are
            served.
        namespace: Linkerd's own namespace, which stands in every identity.
        trust_domain: Linkerd's `identityTrustDomain`, which every identity ends with; ours
            if it is not set.
    """

    listen: OptionalTcpAddress = None
    namespace: Annotated[str, AfterValidator(_namespace)] = "linkerd"
    trust_domain: Annotated[str, AfterValidator(_dns_name)] | None = None

    @property
    def entrance(self) -> HostPort | None:
        """Where the proxies are listened for; None while it is not enabled."""
        return self.listen if self.enabled else None

    def build(self, trust_domain: TrustDomain) -> LinkerdRules | None:
        """The rules; None while it is not enabled."""
        if not self.enabled:
            return None
        return LinkerdRules(
            role=self.role,
            authenticators=frozenset(self.authenticators),
            suffix=self._suffix(trust_domain),
        )

    def server_name(self, trust_domain: TrustDomain) -> str:
        """What the identity service is called by proxies that were not told another name."""
        return f"linkerd-identity.{self.namespace}.{self._suffix(trust_domain)}"

    def _suffix(self, trust_domain: TrustDomain) -> str:
        ending = self.trust_domain or trust_domain.name
        return f"serviceaccount.identity.{self.namespace}.{ending}"
