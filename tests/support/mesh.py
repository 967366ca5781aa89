"""A small mesh: workloads that get certificates of the service and talk mutual TLS, without end.

Each workload has a key of its own, renews its short-lived certificate, watches the trust
bundle, and makes its TLS contexts of what it was given, all with the public client. One
serves; the others connect to it again and again, and each side verifies the other.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from meshmint import Client, MeshmintError, Svid, TrustBundle
from support.service import Service

__all__ = ["LIFETIME", "Handshake", "Mesh", "Workload", "wait_until"]

LIFETIME = timedelta(seconds=8)
# Each at its own pace, so that old and new certificates meet.
RENEWALS_SECONDS = (3.1, 2.3, 2.7, 1.9)
CONNECTION_PAUSE = 0.1
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Handshake:
    """One that succeeded: each side verified the other's certificate and SPIFFE ID.

    Attributes:
        phase: What the operator was about when it began.
        server: Common name of the issuer of the server's certificate.
        client: That of the client's.
    """

    phase: str
    server: str
    client: str


class Workload:
    """One workload, with all that it knows and keeps up to date.

    Args:
        service: Whom it asks; a replica, if there are several.
        role: The role of its certificates.
        name: Its service account.
        directory: For its key and certificates, which TLS reads from files.
        pause: Seconds between two renewals.
        watches: Whether it watches the trust bundle, or stays with the first one.
    """

    def __init__(
        self,
        service: Service,
        role: str,
        name: str,
        directory: Path,
        *,
        pause: float,
        watches: bool = True,
    ) -> None:
        self._service = service
        self._role = role
        self._name = name
        self._directory = directory
        self._pause = pause
        self._watches = watches
        self._numbers = itertools.count()
        self._changing = threading.Lock()
        self._stopped = threading.Event()
        self._watching: Client | None = None
        self._svid: Svid | None = None
        self._bundle: TrustBundle | None = None
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._threads = [
            threading.Thread(target=work, name=f"{name} {work.__name__}")
            for work in (self._watch, self._renew)
        ]
        self.spiffe_id = f"spiffe://{service.trust_domain}/ns/shop/sa/{name}"
        self.faults: list[str] = []

    def start(self) -> None:
        """Returns once it has a certificate and a bundle."""
        for thread in self._threads:
            thread.start()
        wait_until(lambda: bool(self._contexts), f"{self._name} has a certificate")

    def stop(self) -> None:
        """Ends its renewals and its watch."""
        with self._changing:
            self._stopped.set()
            if self._watching is not None:
                self._watching.close()
        for thread in self._threads:
            thread.join()

    def context(self, *, server_side: bool) -> ssl.SSLContext:
        """TLS with its newest certificate and its newest bundle."""
        return self._contexts[server_side]

    def knows(self, root_pem: str) -> bool:
        """Whether a root is in its bundle."""
        return self._bundle is not None and root_pem in self._bundle.trust_bundle_pem

    def _client(self) -> Client:
        """A client that trusts the newest bundle; the first roots are handed to it at its birth."""
        bundle = self._bundle
        roots = self._service.ca_file.read_text() if bundle is None else _joined(bundle)
        return Client(
            self._service.address,
            token=lambda: self._service.token("shop", self._name),
            root_certificates=roots,
        )

    def _watch(self) -> None:
        while self._watches or self._bundle is None:
            with self._client() as client:
                with self._changing:
                    if self._stopped.is_set():
                        return
                    self._watching = client
                try:
                    self._follow(client)
                except MeshmintError as error:
                    self._note("watch", error)

    def _follow(self, client: Client) -> None:
        """Takes every bundle, until the client itself has to be made anew for a new one."""
        for bundle in client.watch_trust_bundle():
            before = self._bundle
            if before is not None and bundle.sequence < before.sequence:
                continue
            self._take(bundle=bundle)
            if not self._watches:
                return
            if before is None or before.trust_bundle_pem != bundle.trust_bundle_pem:
                return

    def _renew(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._client() as client:
                    self._take(svid=client.request_svid(self._role))
            except MeshmintError as error:
                self._note("renewal", error)
            self._stopped.wait(self._pause)

    def _take(self, *, svid: Svid | None = None, bundle: TrustBundle | None = None) -> None:
        with self._changing:
            self._svid = svid or self._svid
            self._bundle = bundle or self._bundle
            if self._svid is None or self._bundle is None:
                return
            files = self._directory / self._name / str(next(self._numbers))
            self._svid.write_files(files)
            self._contexts = {
                True: _context(ssl.PROTOCOL_TLS_SERVER, files, self._bundle),
                False: _context(ssl.PROTOCOL_TLS_CLIENT, files, self._bundle),
            }

    def _note(self, what: str, error: MeshmintError) -> None:
        if not self._stopped.is_set():
            self.faults.append(f"{self._name}, {what}: {error}")


def _context(protocol: int, files: Path, bundle: TrustBundle) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # SPIFFE IDs instead
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=_joined(bundle))
    context.load_cert_chain(files / "fullchain.pem", files / "key.pem")
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is resumed: every handshake is a whole one
    return context


class Mesh:
    """One workload that serves and several that connect to it, ten times a second each.

    Args:
        services: Whom the workloads ask, in turn: replicas of one service.
        role: The role of their certificates, X509-SVIDs of LIFETIME.
        directory: For their files.
        server_watches: Whether the one that serves watches the trust bundle.
    """

    def __init__(
        self,
        services: list[Service],
        role: str,
        directory: Path,
        *,
        server_watches: bool = True,
    ) -> None:
        ask = itertools.cycle(services)
        pause, *pauses = RENEWALS_SECONDS
        self._server = Workload(
            next(ask), role, "server", directory, pause=pause, watches=server_watches
        )
        self._clients = [
            Workload(next(ask), role, f"client-{number}", directory, pause=pause)
            for number, pause in enumerate(pauses, 1)
        ]
        self._allowed = {client.spiffe_id for client in self._clients}
        self._ended = threading.Event()
        self._counting = threading.Lock()
        self._phase = "start"
        self.handshakes: Counter[Handshake] = Counter()
        self.failures: list[str] = []

    @property
    def workloads(self) -> list[Workload]:
        return [self._server, *self._clients]

    @property
    def faults(self) -> list[str]:
        """Renewals and watches that failed."""
        return [fault for workload in self.workloads for fault in workload.faults]

    def pass_through(self, phase: str, handshakes: int) -> Counter[Handshake]:
        """Goes on into a phase until that many handshakes succeeded in it.

        Returns:
            Those handshakes, by the issuers on both sides.
        """
        with self._counting:
            self._phase = phase
        wait_until(
            lambda: self.in_phase(phase).total() >= handshakes,
            f"{handshakes} handshakes of the phase {phase!r}",
        )
        return self.in_phase(phase)

    def in_phase(self, phase: str) -> Counter[Handshake]:
        """The handshakes of a phase so far."""
        with self._counting:
            return Counter({one: n for one, n in self.handshakes.items() if one.phase == phase})

    def __enter__(self) -> Self:
        self._running = contextlib.ExitStack()
        with contextlib.ExitStack() as starting:
            for workload in self.workloads:
                starting.callback(workload.stop)
                workload.start()
            address = starting.enter_context(self._listening())
            starting.callback(self._ended.set)
            for client in self._clients:
                thread = threading.Thread(target=self._connect, args=(client, address))
                thread.start()
                starting.callback(thread.join)
            starting.callback(self._ended.set)
            self._running = starting.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.close()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[tuple[str, int]]:
        mesh = self

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                mesh._accept(self.request)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as listening:
            thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
            thread.start()
            try:
                host, port = listening.server_address[:2]
                yield str(host), int(port)
            finally:
                listening.shutdown()
                thread.join()

    def _accept(self, connection: socket.socket) -> None:
        """The server's side: verifies who connects, and tells it whose certificate it saw."""
        connection.settimeout(PATIENCE_SECONDS)
        context = self._server.context(server_side=True)
        try:
            with context.wrap_socket(connection, server_side=True) as secured:
                spiffe_id, issuer = _peer(secured)
                if spiffe_id in self._allowed:
                    secured.sendall(issuer.encode() + b"\n")
                else:
                    self._fail(f"the server does not know {spiffe_id}")
        except OSError as error:
            self._fail(f"on the server's side: {error}")

    def _connect(self, client: Workload, address: tuple[str, int]) -> None:
        """A client's side, again and again."""
        while not self._ended.wait(CONNECTION_PAUSE):
            phase = self._phase
            try:
                with (
                    socket.create_connection(address, PATIENCE_SECONDS) as plain,
                    client.context(server_side=False).wrap_socket(plain) as secured,
                ):
                    spiffe_id, issuer = _peer(secured)
                    # Only now is it known that the server took our certificate (TLS 1.3).
                    own_issuer = secured.makefile().readline().rstrip("\n")
            except OSError as error:
                self._fail(f"on the client's side, {phase}: {error}")
                continue
            if spiffe_id != self._server.spiffe_id or not own_issuer:
                self._fail(f"{phase}: {spiffe_id} answered {own_issuer!r}")
                continue
            with self._counting:
                self.handshakes[Handshake(phase, issuer, own_issuer)] += 1

    def _fail(self, what: str) -> None:
        with self._counting:
            self.failures.append(what)


def _peer(secured: ssl.SSLSocket) -> tuple[str, str]:
    """SPIFFE ID of the verified peer, and common name of its issuer."""
    certificate = secured.getpeercert()
    assert certificate is not None
    names: list[tuple[str, str]] = certificate.get("subjectAltName", ())  # type: ignore[assignment]
    (spiffe_id,) = [value for kind, value in names if kind == "URI"]
    issuer = dict(part for parts in certificate["issuer"] for part in parts)  # type: ignore[union-attr,misc]
    return spiffe_id, str(issuer["commonName"])


def _joined(bundle: TrustBundle) -> str:
    return "".join(bundle.trust_bundle_pem)


def wait_until(holds: Callable[[], bool], what: str, pause: float = 0.02) -> None:
    """Waits until a condition is true, with pauses in seconds between two looks."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"this did not come about: {what}"
        time.sleep(pause)
