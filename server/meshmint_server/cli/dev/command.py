"""`meshmintd dev`: sets up, serves, proves that it works, and keeps serving.

What a real installation does in separate steps, by separate people, happens
here in a row and by the same code: a key inside the HSM, a CSR, a root that
signs it, the import, roles, `meshmintd serve`. Only the root and the token
issuer stand in for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from meshmint_server.cli.apply import apply_roles
from meshmint_server.cli.dev.configuration import TRUST_DOMAIN, write_configuration
from meshmint_server.cli.dev.issuer import DevelopmentIssuer, ensure_issuer, ensure_jwt_key
from meshmint_server.cli.dev.key_storage import KeyChoice, KeyStorage, choose_key_storage
from meshmint_server.cli.dev.next_steps import next_steps
from meshmint_server.cli.dev.proof import Proof, get_svid
from meshmint_server.cli.dev.root import DevelopmentRoot
from meshmint_server.cli.dev.service_process import ServiceProcess
from meshmint_server.cli.dev.state import StateDirectory, write_file
from meshmint_server.cli.dev.token_issuer import ADMIN, WORKLOAD, TokenIssuer
from meshmint_server.cli.role_files import read_roles
from meshmint_server.cli.role_targets import store_target
from meshmint_server.cli.terminal import Failure, out, readable_subject
from meshmint_server.config import Config

__all__ = ["dev"]

_TOKEN_REFRESH_SECONDS: Final = 3600.0


def dev(
    *,
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="Everything is kept in here.")
    ] = Path(".meshmint"),
    port: Annotated[
        int, typer.Option(min=1, max=65534, help="gRPC port on 127.0.0.1; metrics are one above.")
    ] = 8443,
    keys: Annotated[
        KeyChoice,
        typer.Option(help="Where the signing key is; auto takes SoftHSM if it is installed."),
    ] = KeyChoice.AUTO,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
    once: Annotated[bool, typer.Option("--once", help="Ends after the proof.")] = False,
) -> None:
    """Starts a development service, gets an X509-SVID from it, and keeps serving.

    Nothing of this is for production: the root's key and the token issuer's are
    plain files in the state directory.
    """
    directory = StateDirectory.make(state)
    with _stop_signals() as stop, directory.locked():
        _check_ports(port)
        storage = choose_key_storage(directory, keys)
        tokens = TokenIssuer(directory)
        tokens.write_tokens()
        config = write_configuration(
            directory, storage.settings, port=port, http_port=port + 1, workers=workers
        )
        issuer = asyncio.run(_prepare(directory, config))
        _show_setup(directory, config, storage, issuer)
        with ServiceProcess.running(directory.config, directory.log) as service:
            target = f"localhost:{port}"
            service.wait_until_ready(target, directory.root_certificate)
            proof = get_svid(
                target,
                roots=directory.root_certificate,
                token_file=tokens.token_file(WORKLOAD),
                directory=directory.svid,
            )
            _show_proof(proof, directory)
            if not once:
                _show_next_steps(directory, tokens, target)
                _serve(service, tokens, stop)


async def _prepare(directory: StateDirectory, config: Config) -> DevelopmentIssuer:
    """Issuer, key for JWT-SVIDs and first roles, unless they are there."""
    issuer = await ensure_issuer(config, DevelopmentRoot(directory))
    await ensure_jwt_key(config)
    if not directory.roles.exists():
        text = resources.files(__package__).joinpath("first_roles.yaml").read_text("utf-8")
        first = directory.path / ".first-roles.yaml"
        write_file(first, text, mode=0o644)
        await apply_roles(store_target(config), read_roles([first]), dry_run=False)
        # Its final name says that the roles are in the store: later starts leave them alone.
        first.rename(directory.roles)
    return issuer


def _serve(service: ServiceProcess, tokens: TokenIssuer, stop: _Stop) -> None:
    """Until Ctrl-C. Tokens are renewed, so that pasted lines go on working."""
    out.print("\n[dim]Serving. Ctrl-C ends it; the state stays. What is asked for shows here:[/]")
    service.tell()
    waited = 0.0
    while not stop.wait(0.5):
        if service.has_ended.is_set():
            raise service.failure()
        waited += 0.5
        if waited >= _TOKEN_REFRESH_SECONDS:
            tokens.write_tokens()
            waited = 0.0
    out.print("\nDraining.")


class _Stop:
    """Ctrl-C, SIGTERM and a closed terminal: at once in the set-up, in order while serving."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._is_serving = False

    def wait(self, seconds: float) -> bool:
        """Whether the end was asked for within so many seconds."""
        self._is_serving = True
        return self._asked.wait(seconds)

    def handle(self, number: int, frame: object) -> None:
        """The signal handler."""
        self._asked.set()
        if not self._is_serving:
            raise SystemExit(128 + number)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    previous = {
        number: signal.signal(number, stop.handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_ports(port: int) -> None:
    for number in (port, port + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError as error:
                raise Failure(
                    f"port {number} on 127.0.0.1 cannot be used: {error.strerror}; "
                    f"choose another with --port (make run DEV_ARGS='--port {port + 1000}')"
                ) from None


def _show_setup(
    directory: StateDirectory, config: Config, storage: KeyStorage, issuer: DevelopmentIssuer
) -> None:
    described = issuer.description
    out.print("[bold]Meshmint, a development service[/]\n")
    if storage.notice:
        out.print(f"[careful]{storage.notice}[/]\n")
    _facts(
        ("Trust domain", TRUST_DOMAIN),
        ("State", f"{directory.path}  (delete it to start over)"),
        ("Root", f"{described.issuer}  (a file, for development only)"),
        ("Issuer", readable_subject(f"{described.subject}")),
        ("", f"serial {described.serial_number}, until {described.not_after:%Y-%m-%d}"),
        *zip(("Signing key", ""), issuer.key, strict=False),
        ("Address", f"{config.listen} (gRPC, TLS)"),
        ("", f"{config.http.listen} (health, metrics, CRL, OCSP)"),
    )


def _show_proof(proof: Proof, directory: StateDirectory) -> None:
    svid = proof.svid
    out.print(
        f"\n[bold]The proof[/]: service account {WORKLOAD.namespace}/{WORKLOAD.name} sent its "
        "token and a CSR;\nits private key was made on its side and stayed there.\n"
    )
    _facts(
        ("SPIFFE ID", svid.spiffe_id),
        ("Serial", svid.serial_number),
        (
            "Validity",
            f"{svid.not_before:%Y-%m-%d %H:%M:%S} to {svid.not_after:%Y-%m-%d %H:%M:%S} UTC",
        ),
        ("Role", svid.role),
        ("Chain", f"verified up to the root in {directory.root_certificate}:"),
        *(("", _link(number, name)) for number, name in enumerate(_path(proof))),
        ("Files", f"{directory.svid}/: {', '.join(path.name for path in proof.files)}"),
    )


def _path(proof: Proof) -> Iterator[str]:
    yield proof.svid.spiffe_id
    for certificate in proof.path[1:]:
        yield readable_subject(certificate.subject.rfc4514_string())


def _link(depth: int, name: str) -> str:
    return f"{'  ' * depth}{'└ ' if depth else ''}{name}"


def _show_next_steps(directory: StateDirectory, tokens: TokenIssuer, target: str) -> None:
    out.print("\n[bold]Go on in another terminal[/]")
    steps = next_steps(
        directory,
        target,
        workload_token=tokens.token_file(WORKLOAD),
        admin_token=tokens.token_file(ADMIN),
    )
    for step in steps:
        out.print(f"\n[dim]# {step.title}[/]")
        out.print(step.command, markup=False)


def _facts(*facts: tuple[str, str]) -> None:
    for name, value in facts:
        out.print(f"  [dim]{name:<13}[/]", end="")
        out.print(value, markup=False)
