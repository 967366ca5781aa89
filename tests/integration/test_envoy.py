"""The real Envoy, with our example configuration, fed by the agent's socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from meshmint.agent.identities import Identities
from meshmint.keys import generate_key
from support.agent_identities import Domain, picture, served
from support.envoy import EXAMPLE, Envoy, client_context, envoy_program, handshake, started
from support.pki import pem

DOMAIN, OTHER = Domain(), Domain("other.example")
WEB_ID = "spiffe://example.org/ns/shop/sa/web"
ROOTS = pem(DOMAIN.root.certificate)
# It talks to itself: frontend, web and backend are one.
ONE = {"sa/frontend": "sa/web", "sa/backend": "sa/web"}


def publish(identities: Identities, *held: Any, further: tuple[Any, ...] = ()) -> None:
    identities.publish(picture(*held, bundles=[DOMAIN.bundle(*further), OTHER.bundle()]))


@contextlib.asynccontextmanager
async def application() -> AsyncIterator[int]:
    """Says who called it; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                (caller,) = (
                    line.partition(b":")[2].strip()
                    for line in head.splitlines()
                    if line.lower().startswith(b"x-forwarded-client-cert:")
                )
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(caller), caller)
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def identities() -> Identities:
    return Identities()


@pytest.fixture(params=["GRPC", "DELTA_GRPC"])
async def envoy(
    request: pytest.FixtureRequest, tmp_path: Path, identities: Identities
) -> AsyncIterator[Envoy]:
    changes = {**ONE, "api_type: GRPC": f"api_type: {request.param}"}
    async with (
        served(tmp_path / "run", identities, protocols=["sds"]) as address,
        application() as port,
        started(tmp_path, Path(address.removeprefix("unix:")), port, changes) as envoy,
    ):
        yield envoy


async def test_envoy_serves_with_the_agents_secrets_through_renewal_bundle_change_and_refusal(
    envoy: Envoy, identities: Identities, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # It is held back until the certificate is there, and live the moment it is.
    publish(identities)
    await asyncio.sleep(0.3)
    assert not await envoy.is_live()
    web = DOMAIN.identity()
    publish(identities, web)
    await envoy.until_live()

    # Out over mutual TLS, in again, and the application is told who called.
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.get(await envoy.outbound())
        assert answer.status_code == 200
        assert f"URI={WEB_ID}" in answer.text

        # A renewal: new handshakes show the new certificate, and no request fails meanwhile.
        caller = client_context(tmp_path, web, ROOTS)
        assert await handshake(envoy, caller) == (web.certificate.serial_number, "HTTP/1.1 200 OK")
        renewed = DOMAIN.identity()
        publish(identities, renewed)
        while True:
            assert (await client.get(await envoy.outbound())).status_code == 200
            serial, status = await handshake(envoy, caller)
            assert status == "HTTP/1.1 200 OK"
            if serial == renewed.certificate.serial_number:
                break

    # Somebody of this trust domain who is not the one that may come in.
    stranger = client_context(tmp_path, DOMAIN.identity("x", "/ns/shop/sa/stranger"), ROOTS)
    await refused(envoy, stranger)
    # A root of another trust domain vouches for no SPIFFE ID of this one.
    impostor = Domain("example.org")
    impostor.root, impostor.issuer = OTHER.root, OTHER.issuer
    await refused(envoy, client_context(tmp_path, impostor.identity(), ROOTS))
    # Nobody at all.
    anonymous = ssl.create_default_context(cadata=ROOTS.decode())
    anonymous.check_hostname = False
    await refused(envoy, anonymous)

    # A new root comes in without a new certificate.
    next_root = Domain("example.org")
    newcomer = client_context(tmp_path, next_root.identity(), ROOTS)
    await refused(envoy, newcomer)
    before = await envoy.counted("sds.ALL.update_success")
    publish(identities, renewed, further=(next_root.root,))
    await envoy.until_counted("sds.ALL.update_success", before + 1)
    await until_let_in(envoy, newcomer)

    # A certificate whose key does not fit: Envoy refuses it, and goes on with the one it has.
    broken = dataclasses.replace(DOMAIN.identity(), key=generate_key())
    publish(identities, broken, further=(next_root.root,))
    await envoy.until_counted("sds.default.update_rejected", 1)
    assert (await handshake(envoy, caller))[0] == renewed.certificate.serial_number
    assert [
        line
        for line in (record.getMessage() for record in caplog.records)
        if line.startswith("The Envoy 'web' refuses default and goes on with what it had: ")
    ]
    last = DOMAIN.identity()
    publish(identities, last, further=(next_root.root,))
    while (await handshake(envoy, caller))[0] != last.certificate.serial_number:
        pass

    # The certificate is gone: Envoy goes on with what it has.
    publish(identities, further=(next_root.root, impostor.root))
    await envoy.until_counted("sds.ALL.update_success", before + 2)
    assert (await handshake(envoy, caller))[0] == last.certificate.serial_number


async def refused(envoy: Envoy, context: ssl.SSLContext) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(envoy, context)


async def until_let_in(envoy: Envoy, context: ssl.SSLContext) -> None:
    while True:
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await handshake(envoy, context)
            return


async def test_example_as_it_stands_is_valid_and_asks_for_names_that_the_agent_knows() -> None:
    process = await asyncio.create_subprocess_exec(
        envoy_program(),
        *("--mode", "validate", "-c", EXAMPLE, "--disable-hot-restart"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()

    def names(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["name"]} if "sds_config" in node else set()
            return own.union(*(names(one) for one in node.values()))
        return set().union(*(names(one) for one in node)) if isinstance(node, list) else set()

    assert names(yaml.safe_load(EXAMPLE.read_text())) == {"default", "ALL", "spiffe://example.org"}
