"""A service that Istio's and Linkerd's proxies ask, and what these proxies send it.

Requests and CSRs are made as pilot-agent, ztunnel and linkerd-proxy make them; the tokens are
those of a cluster with an API server that knows its pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import threading
import uuid
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from meshmint.third_party.istio import ca_pb2
from meshmint.third_party.istio.ca_pb2_grpc import IstioCertificateServiceStub
from meshmint.third_party.linkerd import identity_pb2
from meshmint.third_party.linkerd.identity_pb2_grpc import IdentityStub
from support.csr import make_csr, make_key, pem
from support.identity_provider import IdentityServer, TestCa, TokenIssuer, make_pod
from support.programs import program
from support.service import Service, free_port

__all__ = [
    "Proxies",
    "WithoutAlpn",
    "linkerd_csr",
    "pilot_agent_csr",
    "proxies",
    "proxies_of",
    "refusal",
    "ztunnel_csr",
]

ISTIO_AUDIENCE = "istio-ca"
LINKERD_AUDIENCE = "identity.l5d.io"
ZTUNNEL = ("istio-system", "ztunnel")
TIMEOUT = 30.0

Key = CertificateIssuerPrivateKeyTypes


def pilot_agent_csr(spiffe_id: str, key: Key | None = None) -> str:
    """As pilot-agent makes it: RSA 2048, an organization that is empty, a critical SAN."""
    organization = x509.NameAttribute(
        NameOID.ORGANIZATION_NAME, "", _type=_ASN1Type.PrintableString
    )
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)])
    return pem(
        make_csr(
            key or make_key("rsa-2048"),
            subject=x509.Name([organization]),
            extensions=[(san, True)],
        )
    )


def ztunnel_csr(spiffe_id: str, key: Key | None = None) -> str:
    """As ztunnel makes it: P-256, no subject, a critical SAN."""
    return pem(make_csr(key, sans=[x509.UniformResourceIdentifier(spiffe_id)]))


def linkerd_csr(name: str, key: Key | None = None) -> bytes:
    """As Linkerd's proxy makes it: P-256, the identity as common name too, however long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a common name has at most 64 characters
        attribute = x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)
    csr = make_csr(key, subject=x509.Name([attribute]), sans=[x509.DNSName(name)])
    return csr.public_bytes(Encoding.DER)


class Proxies:
    """A service with both protocols on, and the cluster around it.

    Args:
        service: The service.
        api: The cluster's API server.
        west: The issuer of tokens of another cluster, if there is one.
    """

    def __init__(
        self, service: Service, api: IdentityServer, west: TokenIssuer | None = None
    ) -> None:
        self.service = service
        self.api = api
        self.west = west
        self.istio = IstioCertificateServiceStub(service.channel)
        self.linkerd = IdentityStub(service.channel)

    def spiffe_id(self, namespace: str, service_account: str) -> str:
        """The identity of a service account."""
        return f"spiffe://{self.service.trust_domain}/ns/{namespace}/sa/{service_account}"

    def linkerd_name(self, namespace: str, service_account: str) -> str:
        """Its identity in Linkerd's form."""
        return f"{service_account}.{namespace}.serviceaccount.identity.linkerd.cluster.local"

    def token(
        self,
        namespace: str = "shop",
        service_account: str = "cart",
        *,
        audience: str = ISTIO_AUDIENCE,
        **bound_to: Any,
    ) -> str:
        """A token of a service account, bound to a pod and perhaps a node."""
        return self.service.tokens.jwt(
            self.service.tokens.kubernetes_claims(
                namespace, service_account, audience=audience, **bound_to
            )
        )

    def create(
        self,
        csr: str,
        token: str,
        *,
        ttl: int = 86_400,
        cluster_ids: Iterable[str] = ("Kubernetes",),
        timeout: float | None = TIMEOUT,
        **metadata: Any,
    ) -> ca_pb2.IstioCertificateResponse:
        """Calls CreateCertificate as the agents do, with an empty CertSigner."""
        request = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=ttl)
        request.metadata.update({"CertSigner": "", **metadata})
        return self.istio.CreateCertificate(
            request,
            timeout=timeout,
            metadata=[
                *self.service.metadata(token),
                *(("clusterid", one) for one in cluster_ids),
            ],
        )

    def certify(self, name: str, csr: bytes, token: str | bytes) -> identity_pb2.CertifyResponse:
        """Calls Certify as Linkerd's proxy does."""
        return self.linkerd.Certify(
            identity_pb2.CertifyRequest(
                identity=name,
                token=token.encode() if isinstance(token, str) else token,
                certificate_signing_request=csr,
            ),
            timeout=TIMEOUT,
        )

    def add_pod(self, namespace: str, service_account: str, **details: Any) -> dict[str, Any]:
        """A further pod of the cluster."""
        pod = make_pod(namespace, service_account, **{"node": "node-1", **details})
        self.api.pods.append(pod)
        return pod

    def ztunnel(self, node: str | None = None, **details: Any) -> dict[str, Any]:
        """A new pod of ztunnel, on a node that no other test uses."""
        return self.add_pod(*ZTUNNEL, node=node or self.new_node(), **details)

    def ztunnel_token(self, pod: dict[str, Any], **changes: Any) -> str:
        """The token of a ztunnel's pod; by default one that says its node."""
        metadata, spec = pod["metadata"], pod["spec"]
        bound_to = {
            "pod": metadata["name"],
            "pod_uid": metadata["uid"],
            "node": spec.get("nodeName"),
            **changes,
        }
        return self.token(metadata["namespace"], spec["serviceAccountName"], **bound_to)

    @staticmethod
    def new_node() -> str:
        """The name of a node that no test has used."""
        return f"node-{uuid.uuid4().hex[:8]}"

    def verify(self, directory: Path, leaf: str, chain: Iterable[str], roots: str) -> None:
        """Has openssl verify a chain."""
        directory.mkdir(parents=True, exist_ok=True)
        files = {"leaf.pem": leaf, "chain.pem": "".join(chain), "roots.pem": roots}
        for name, text in files.items():
            (directory / name).write_text(text)
        done = subprocess.run(
            [
                program("openssl"), "verify", "-x509_strict", "-CAfile", directory / "roots.pem",
                "-untrusted", directory / "chain.pem", directory / "leaf.pem",
            ],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def last_audit(self, serial: str) -> dict[str, Any]:
        """The line of the log that a certificate was issued with."""
        (line,) = [one for one in self.service.log_lines() if one.get("serial") == serial]
        return line

    def audit_of(self, error: grpc.RpcError) -> dict[str, Any]:
        """The line of the log about a call that was refused."""
        request_id = dict(error.trailing_metadata())["x-request-id"]  # type: ignore[attr-defined]
        (line,) = [one for one in self.service.log_lines() if one.get("request_id") == request_id]
        assert line["decision"] == "refused"
        return line


class WithoutAlpn:
    """Lets a gRPC client connect over TLS that offers no ALPN, as Linkerd's proxy does.

    A context manager. The client comes to `address` without TLS; each of its connections
    becomes one to the target.

    Attributes:
        sources: The addresses that the target saw.
    """

    def __init__(self, target: str, ca_file: Path, server_name: str) -> None:
        self._target = target
        self._server_name = server_name
        self._tls = ssl.create_default_context(cafile=str(ca_file))
        self.sources: list[str] = []
        self._is_listening = threading.Event()
        # One thread for both directions: an SSL object is not to be used by two.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._connect(reader, writer)
            connections.discard(task)
            writer.transport.abort()

        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        self._is_listening.set()
        await self._stopping.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        inner, outer = await asyncio.open_connection(
            host, int(port), ssl=self._tls, server_hostname=self._server_name
        )
        self.sources.append("ipv4:{}:{}".format(*outer.get_extra_info("sockname")))
        ways = [
            asyncio.create_task(_carry(reader, outer)),
            asyncio.create_task(_carry(inner, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            outer.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(65_536):
        writer.write(part)
        await writer.drain()


def refusal(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value


def proxies_of(service: Service, api: IdentityServer, **changes: Any) -> dict[str, Any]:
    """The part of the configuration that such a service has beside the usual one."""
    reviewer = service.directory / "reviewer.token"
    reviewer.write_text(api.reviewer_token or "any")
    return {
        "authenticators": [
            {
                "kind": "kubernetes",
                "name": "cluster",
                "issuer": service.tokens.issuer,
                "audiences": [service.tokens.audience, ISTIO_AUDIENCE, LINKERD_AUDIENCE],
                "mode": "both",
                "jwks_file": str(service.tokens.jwks_file),
                "api_server": api.url,
                "ca_file": str(service.directory / "cluster-ca.pem"),
                "reviewer_token_file": str(reviewer),
                "timeout": "2s",
            }
        ],
        "istio": {
            "enabled": True,
            "role": "istio",
            "authenticators": ["cluster"],
            "cert_signers": {"signers.example/short": "istio-short"},
            "node_accounts": ["/".join(ZTUNNEL)],
        },
        "linkerd": {
            "enabled": True,
            "role": "linkerd",
            "authenticators": ["cluster"],
            "listen": f"127.0.0.1:{free_port()}",
            "trust_domain": "cluster.local",
        },
        **changes,
    }


ROLES: dict[str, dict[str, object]] = {
    "istio": {
        "callers": [{"authenticator": "cluster", "attributes": {"kubernetes.namespace": "*"}}],
        "spiffe": "own",
        "key_type": "any",
        "ttl": "1h",
        "max_ttl": "2h",
    },
    "istio-short": {
        "callers": [{"authenticator": "cluster"}],
        "spiffe": "own",
        "key_type": "any",
        "max_ttl": "10m",
    },
    "linkerd": {
        "callers": [{"authenticator": "cluster"}],
        "allowed_domains": [
            "{{kubernetes.service_account}}.{{kubernetes.namespace}}"
            ".serviceaccount.identity.linkerd.cluster.local"
        ],
        "allowed_domains_template": True,
        "allow_bare_domains": True,
        "require_cn": False,
        "key_type": "ec",
        "key_bits": 256,
        "ttl": "24h",
        "max_ttl": "24h",
    },
}


@pytest.fixture(scope="session")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    """The service that the tests of both protocols share."""
    directory = tmp_path_factory.mktemp("proxies")
    made = Service(directory / "service", workers=1)
    ca = TestCa(directory / "cluster-ca")
    (made.directory / "cluster-ca.pem").write_bytes(ca.pem)
    with IdentityServer(made.tokens, ca, reviewer_token="reviewer") as api:
        made.change_config(**proxies_of(made, api))
        made.start()
        try:
            for name, role in ROLES.items():
                made.put_named_role(name, role)
            yield Proxies(made, api)
        finally:
            made.stop()
