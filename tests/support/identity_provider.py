"""The HTTPS server of an identity provider: it publishes keys, reviews tokens, lists pods.

Real TLS on a real socket; it tells the truth unless a test tells it to fail or lie.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import jwt
from support.server_ca import TestCa
from support.token_issuer import PrivateKey, TokenIssuer, replace_file

__all__ = [
    "Answer",
    "IdentityServer",
    "PrivateKey",
    "TestCa",
    "TokenIssuer",
    "make_pod",
    "replace_file",
]

_TERM = re.compile(r"(?P<part>metadata|spec|status)\.(?P<name>\w+)(?P<no>!?)=(?P<value>.*)")
_PODS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/pods")


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

    @property
    def place(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]


class IdentityServer:
    """An HTTPS server: JWK set, discovery, TokenReview and pods of one issuer's cluster.

    A context manager. Paths: ``/jwks`` and ``/openid/v1/jwks``,
    ``/.well-known/openid-configuration``, the TokenReview API, and the lists of `pods` by
    namespace, with field selectors. By default it tells the truth; set ``faults[path]`` (a
    path is without its query) to an Answer, or to a function from the honest Answer to
    another one, to make it fail or lie.

    Args:
        issuer: Whose keys and tokens it knows.
        ca: Signs its certificate.
        reviewer_token: The only credential that TokenReview and pods take; None takes any.
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
        self.pods: list[dict[str, Any]] = []
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
        return sum(seen.place == path for seen in self.seen)

    def answer(self, seen: Seen) -> Answer:
        """The answer to a request."""
        honest = self._honest(seen)
        fault = self.faults.get(seen.place)
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
        if match := _PODS.fullmatch(seen.place):
            if self.reviewer_token and seen.authorization != f"Bearer {self.reviewer_token}":
                return Answer(403, {"kind": "Status", "code": 403})
            return Answer(
                body=self._pods_of(match["namespace"], parse_qs(urlsplit(seen.path).query))
            )
        return Answer(404, {"kind": "Status", "code": 404})

    @staticmethod
    def pods_path(namespace: str) -> str:
        """Where the pods of a namespace are listed."""
        return f"/api/v1/namespaces/{namespace}/pods"

    def _pods_of(self, namespace: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        (selector,), (limit,) = query["fieldSelector"], query["limit"]
        found = [
            pod
            for pod in self.pods
            if pod["metadata"]["namespace"] == namespace
            and all(_fits(pod, term) for term in selector.split(","))
        ]
        return {"kind": "PodList", "apiVersion": "v1", "items": found[: int(limit)]}

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


def make_pod(
    namespace: str,
    service_account: str,
    *,
    node: str | None,
    name: str | None = None,
    uid: str | None = None,
    phase: str = "Running",
) -> dict[str, Any]:
    """A pod as the API server lists it; without a node it waits for one."""
    name = name or f"{service_account}-{uuid.uuid4().hex[:5]}"
    spec: dict[str, Any] = {"serviceAccountName": service_account, "containers": [{"name": "a"}]}
    if node is not None:
        spec["nodeName"] = node
    return {
        "metadata": {"namespace": namespace, "name": name, "uid": uid or str(uuid.uuid4())},
        "spec": spec,
        "status": {"phase": phase},
    }


def _fits(pod: Mapping[str, Any], term: str) -> bool:
    """Whether a pod fits one term of a field selector, as the API server reads it."""
    match = re.fullmatch(
        r"(?P<part>metadata|spec|status)\.(?P<name>\w+)(?P<no>!?)=(?P<value>.*)", term
    )
    assert match is not None, term
    return (pod[match["part"]].get(match["name"], "") == match["value"]) is not bool(match["no"])


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
