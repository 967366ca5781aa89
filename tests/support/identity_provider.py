"""Makers of tokens, and the HTTPS servers that vouch for them.

TokenIssuer signs what a Kubernetes cluster or an OIDC provider would, and, on
demand, what none should. IdentityServer publishes keys and reviews tokens over
real TLS, and can be told to fail in every way that a test needs.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

__all__ = ["Answer", "IdentityServer", "PrivateKey", "TestCa", "TokenIssuer", "replace_file"]

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

DEFAULT_AUDIENCE = "meshmint"


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file the way kubelet does: whole, by a rename."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    new.write_bytes(content)
    new.rename(path)


class TokenIssuer:
    """A token issuer: its keys, its JWK set in a file, and its tokens.

    Args:
        directory: Where ``jwks.json`` and ``public.pem`` go.
        issuer: The ``iss`` of its tokens.
        audience: The ``aud`` of its tokens unless a call says otherwise.
        algorithm: RS256, ES256, EdDSA, …; decides the first key's kind.
    """

    def __init__(
        self,
        directory: Path,
        *,
        issuer: str = "https://cluster.test",
        audience: str = DEFAULT_AUDIENCE,
        algorithm: str = "ES256",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.issuer = issuer
        self.audience = audience
        self.algorithm = algorithm
        self.keys: dict[str, PrivateKey] = {}
        self.jwks_file = directory / "jwks.json"
        self.public_key_file = directory / "public.pem"
        self.rotate()

    @property
    def kid(self) -> str:
        """Id of the key that signs: the newest."""
        return next(reversed(self.keys))

    @property
    def key(self) -> PrivateKey:
        """The key that signs."""
        return self.keys[self.kid]

    def rotate(self, *, keep_old: bool = False) -> str:
        """Makes a new key to sign with, and writes the files. Returns its id."""
        if not keep_old:
            self.keys.clear()
        kid = f"key-{uuid.uuid4().hex[:8]}"
        self.keys[kid] = _make_key(self.algorithm)
        self.write_files()
        return kid

    def jwks(self) -> dict[str, Any]:
        """The JWK set with all current public keys."""
        return {
            "keys": [
                {**_jwk(key), "kid": kid, "use": "sig", "alg": self.algorithm}
                for kid, key in self.keys.items()
            ]
        }

    def public_pem(self) -> bytes:
        """The newest public key, PEM."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def write_files(self) -> None:
        """Writes jwks_file and public_key_file, each by a rename."""
        replace_file(self.jwks_file, json.dumps(self.jwks()).encode())
        replace_file(self.public_key_file, self.public_pem())

    def kubernetes_claims(
        self,
        namespace: str = "shop",
        service_account: str = "cart",
        *,
        audience: str | list[str] | None = None,
        ttl: float = 600,
        service_account_uid: str | None = None,
        pod: str | None = "cart-7c9",
        pod_uid: str = "9a1f0c3e-0000-4000-8000-00000000f00d",
        node: str | None = "node-1",
    ) -> dict[str, Any]:
        """The claims of a projected service-account token."""
        now = int(time.time())
        details: dict[str, Any] = {
            "namespace": namespace,
            "serviceaccount": {
                "name": service_account,
                "uid": service_account_uid or uid_of(namespace, service_account),
            },
        }
        if pod is not None:
            details["pod"] = {"name": pod, "uid": pod_uid}
        if node is not None:
            details["node"] = {"name": node, "uid": uid_of("node", node)}
        return {
            "aud": [self.audience] if audience is None else audience,
            "exp": now + ttl,
            "iat": now,
            "nbf": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": details,
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
        }

    def kubernetes_token(
        self,
        namespace: str = "shop",
        service_account: str = "cart",
        *,
        audience: str | list[str] | None = None,
        ttl: float = 600,
        **overrides: Any,
    ) -> str:
        """A projected service-account token.

        Args:
            namespace: The service account's namespace.
            service_account: Its name.
            audience: Its ``aud``; None is the issuer's own.
            ttl: Seconds until it expires; negative for an expired one.
            overrides: Claims by name; None leaves a claim out.
        """
        claims = self.kubernetes_claims(namespace, service_account, audience=audience, ttl=ttl)
        return self.jwt(claims | overrides)

    def jwt(
        self,
        claims: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
        key: PrivateKey | bytes | None = None,
        algorithm: str | None = None,
        ttl: float = 600,
    ) -> str:
        """A signed JWT.

        Args:
            claims: Claims over the defaults (iss, aud, sub, iat, exp); None leaves one out.
            headers: Headers over the defaults (typ, kid); None leaves one out.
            key: The key to sign with, instead of the newest.
            algorithm: The algorithm, instead of the issuer's.
            ttl: Seconds until it expires.
        """
        now = int(time.time())
        defaults = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "someone",
            "iat": now,
            "exp": now + ttl,
        }
        payload = _without_none({**defaults, **(claims or {})})
        header = _without_none({"typ": "JWT", "kid": self.kid, **(headers or {})})
        return jwt.PyJWS().encode(
            json.dumps(payload).encode(),
            key if key is not None else self.key,
            algorithm=algorithm or self.algorithm,
            headers=header,
        )


def uid_of(*names: str) -> str:
    """The UID that this test world gives an object of these names."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, "/".join(names)))


class TestCa:
    """A CA for the servers of a test; a second one is a stranger to the first."""

    __test__ = False

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(Encoding.PEM)
        self.file = directory / f"ca-{uuid.uuid4().hex[:8]}.pem"
        self.file.write_bytes(self.pem)

    def server_context(
        self, address: str = "127.0.0.1", names: Sequence[str] = ("localhost",)
    ) -> ssl.SSLContext:
        """A TLS server context with a fresh certificate for the address and names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        certificate = (
            _builder(subject, self._name, key.public_key())
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.IPAddress(ip_address(address)),
                        *(x509.DNSName(name) for name in names),
                    ]
                ),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        bundle = self._directory / f"server-{uuid.uuid4().hex[:8]}.pem"
        bundle.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(bundle)
        return context


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; the body is JSON unless it is bytes already."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass(frozen=True)
class Seen:
    """A request that the server got."""

    method: str
    path: str
    authorization: str | None
    body: Any


class IdentityServer:
    """An HTTPS server: JWK set, discovery and TokenReview of one issuer.

    A context manager. Paths: ``/jwks`` and ``/openid/v1/jwks``,
    ``/.well-known/openid-configuration``, the TokenReview API. By default it
    tells the truth; set ``faults[path]`` to an Answer, or to a function from the
    honest Answer to another one, to make it fail or lie.

    Args:
        issuer: Whose keys and tokens it knows.
        ca: Signs its certificate.
        reviewer_token: The only credential that TokenReview takes; None takes any.
    """

    JWKS = "/jwks"
    CLUSTER_JWKS = "/openid/v1/jwks"
    DISCOVERY = "/.well-known/openid-configuration"
    TOKEN_REVIEW = "/apis/authentication.k8s.io/v1/tokenreviews"

    def __init__(
        self, issuer: TokenIssuer, ca: TestCa, *, reviewer_token: str | None = None
    ) -> None:
        self.issuer = issuer
        self.reviewer_token = reviewer_token
        self.faults: dict[str, Answer | Callable[[Answer], Answer]] = {}
        self.seen: list[Seen] = []
        self.released = threading.Event()
        self._server = _Server(self)
        self._context = ca.server_context()
        self._server.context = self._context
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops serving; connections to it are refused from then on."""
        if self._thread.is_alive():
            self.released.set()
            self._server.shutdown()
            self._thread.join()
        self._server.drop_connections()
        self._server.server_close()

    def use_ca(
        self, ca: TestCa, *, address: str = "127.0.0.1", names: Sequence[str] = ("localhost",)
    ) -> None:
        """Serves new connections with a certificate of another CA, or for another name."""
        self._server.context = ca.server_context(address, names)

    def drop_connections(self) -> None:
        """Ends the connections that clients keep open."""
        self._server.drop_connections()

    def count(self, path: str) -> int:
        """How many requests for this path there were."""
        return sum(seen.path == path for seen in self.seen)

    def answer(self, seen: Seen) -> Answer:
        """The answer to a request."""
        honest = self._honest(seen)
        fault = self.faults.get(seen.path)
        if fault is None:
            return honest
        return fault(honest) if callable(fault) else fault

    def _honest(self, seen: Seen) -> Answer:
        if seen.path in (self.JWKS, self.CLUSTER_JWKS):
            return Answer(body=self.issuer.jwks())
        if seen.path == self.DISCOVERY:
            return Answer(body={"issuer": self.issuer.issuer, "jwks_uri": self.url + self.JWKS})
        if seen.path == self.TOKEN_REVIEW and seen.method == "POST":
            if self.reviewer_token and seen.authorization != f"Bearer {self.reviewer_token}":
                return Answer(401, {"kind": "Status", "code": 401})
            return Answer(201, {"kind": "TokenReview", "status": self._review(seen.body["spec"])})
        return Answer(404, {"kind": "Status", "code": 404})

    def _review(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        token, wanted = spec["token"], spec.get("audiences") or []
        try:
            claims = jwt.decode(
                token,
                self.issuer.keys[jwt.get_unverified_header(token)["kid"]].public_key(),
                algorithms=[self.issuer.algorithm],
                audience=wanted,
                issuer=self.issuer.issuer,
            )
        except (jwt.InvalidTokenError, KeyError) as error:
            return {"error": f"[invalid bearer token, {type(error).__name__}]"}
        details = claims["kubernetes.io"]
        extra = {}
        for what in ("pod", "node"):
            if what in details:
                for fact in ("name", "uid"):
                    name = f"authentication.kubernetes.io/{what}-{fact}"
                    extra[name] = [details[what][fact]]
        held = [claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"]
        return {
            "authenticated": True,
            "audiences": [one for one in wanted if one in held],
            "user": {
                "username": claims["sub"],
                "uid": details["serviceaccount"]["uid"],
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "extra": extra,
            },
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext

    def __init__(self, owner: IdentityServer) -> None:
        self.owner = owner
        self._open: set[ssl.SSLSocket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The handshake runs in the connection's thread, so that a client that
        # hangs or does not trust us holds up nobody else.
        try:
            request.settimeout(10)
            with self.context.wrap_socket(request, server_side=True) as secured:
                self._open.add(secured)
                try:
                    super().finish_request(secured, client_address)
                finally:
                    self._open.discard(secured)
        except OSError:
            pass  # The client went away; tests look at the client's side.

    def drop_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: clients that give up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _reply(self, body: Any) -> None:
        owner = self.server.owner
        seen = Seen(self.command, self.path, self.headers["authorization"], body)
        owner.seen.append(seen)
        answer = owner.answer(seen)
        if answer.delay:
            owner.released.wait(answer.delay)
        content = (
            answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        )
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Logs nothing."""


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
    )


def _make_key(algorithm: str) -> PrivateKey:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _jwk(key: PrivateKey) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return {**RSAAlgorithm.to_jwk(public, as_dict=True), "key_ops": ["verify"]}
    if isinstance(public, ec.EllipticCurvePublicKey):
        return ECAlgorithm.to_jwk(public, as_dict=True)
    return OKPAlgorithm.to_jwk(public, as_dict=True)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
