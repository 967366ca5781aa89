"""One certificate's loop against a service that misbehaves, with a clock that a test sets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from meshmint.agent.clock import Clock
from meshmint.agent.config import AuthSettings, CertificateSettings, ServerSettings
from meshmint.agent.connection import Connection
from meshmint.agent.identities import Bundle
from meshmint.agent.parts import Parts
from meshmint.agent.renewer import Renewer
from meshmint.agent.state import StateDirectory
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import OWN_SPIFFE_ID, FakeService, fake_service, read_csr, refuse

SECONDS = 60


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    with fake_service(tmp_path, tls=True) as running:
        yield running


class WallClock:
    """The wall clock of one test; the monotonic one is real."""

    def __init__(self) -> None:
        self.off = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.off


@pytest.fixture
def wall() -> WallClock:
    return WallClock()


@pytest.fixture
async def parts(service: FakeService, tmp_path: Path, wall: WallClock) -> AsyncIterator[Parts]:
    token = tmp_path / "token"
    token.write_text("head.body.signature")
    connection = Connection(
        ServerSettings(
            address=service.target, ca_file=service.root_file, timeout=timedelta(seconds=2)
        ),
        AuthSettings(token_file=token),
    )
    state = StateDirectory(tmp_path / "state")
    # Pauses are drawn as none: what is tried again is tried at once.
    made = Parts(connection, state, Clock(wall.now), draw=lambda low, high: low)
    made.conditions.arrange(["web"])
    made.holdings.arrange(["web"], wall.now())
    made.holdings.hold_bundle(
        Bundle("example.org", (service.authority.root,)), is_own=True, now=wall.now()
    )
    with state.locked():
        yield made
        await connection.close()


def renewer(parts: Parts, **settings: Any) -> Renewer:
    return Renewer(CertificateSettings(name="web", **settings), parts)


def requests(service: FakeService, method: str = "Sign") -> list[Any]:
    return [call.request for call in service.calls if call.method == method]


async def until(holds: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110 - what is waited for belongs to others
            await asyncio.sleep(0.02)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("key_from", ["agent", "service"])
async def test_one_renewal_is_asked_for_alike_however_often_it_is_tried(
    service: FakeService, parts: Parts, key_from: str
) -> None:
    # The first call, with all its retries, fails; the next one has no other request.
    away = refuse(grpc.StatusCode.UNAVAILABLE, "away", reason="HSM_UNAVAILABLE")
    service.answers = [away] * 7
    work = renewer(parts, key_from=key_from, names={"dns_names": ["a.example"]})
    assert await work.renew() is not None
    assert await work.renew() is None
    method = "Sign" if key_from == "agent" else "Issue"
    asked = requests(service, method)
    assert len(asked) == 8
    assert all(request == asked[0] for request in asked)
    assert await work.renew() is None
    *_, other = requests(service, method)
    assert other.request_id != asked[0].request_id
    assert key_from == "service" or other.csr_der != asked[0].csr_der


async def test_an_answer_that_was_refused_is_not_asked_for_alike_again(
    service: FakeService, parts: Parts
) -> None:
    service.answers = [refuse(grpc.StatusCode.INVALID_ARGUMENT, "used", reason="REQUEST_ID_REUSED")]
    work = renewer(parts)
    assert await work.renew() is not None
    assert await work.renew() is None
    first, second = requests(service)
    assert first.request_id != second.request_id
    assert first.csr_der != second.csr_der


async def test_a_clock_that_is_set_forward_has_the_certificate_renewed_at_once(
    service: FakeService, parts: Parts, wall: WallClock
) -> None:
    task = asyncio.create_task(renewer(parts).run())
    await until(lambda: parts.holdings.certificate("web"))
    wall.off = timedelta(minutes=50)
    assert parts.clock.step()
    await until(lambda: len(requests(service)) == 2)
    await stop(task)


async def test_after_a_clock_was_set_back_the_moment_of_receipt_is_not_believed(
    service: FakeService, parts: Parts, wall: WallClock
) -> None:
    wall.off = timedelta(minutes=20)
    parts.clock.step()
    task = asyncio.create_task(renewer(parts).run())
    await until(lambda: parts.holdings.certificate("web"))
    assert len(requests(service)) == 1
    # The fake service dates back by a day: of the 25 hours since then two thirds are over.
    wall.off = timedelta()
    assert parts.clock.step()
    await until(lambda: len(requests(service)) == 2)
    renewal = parts.conditions.by_name["web"].renewal
    assert renewal is not None
    assert renewal > wall.now() + timedelta(minutes=30)
    await stop(task)


async def test_an_expired_certificate_is_published_no_more_and_replaced_when_it_can_be(
    service: FakeService, parts: Parts, wall: WallClock
) -> None:
    task = asyncio.create_task(renewer(parts).run())
    await until(lambda: parts.holdings.certificate("web"))
    service.answers = [refuse(grpc.StatusCode.PERMISSION_DENIED, "no", reason="ROLE_DENIED")] * 20
    wall.off = timedelta(hours=2)
    parts.clock.step()
    await until(lambda: "PERMISSION_DENIED" in parts.conditions.by_name["web"].last_error)
    parts.holdings.publish(wall.now())
    picture = parts.holdings.identities.picture
    assert picture is not None
    assert picture.identities == ()
    assert "expired" in parts.conditions.by_name["web"].why_not_ready(wall.now())
    wall.off = timedelta()
    parts.clock.step()
    await stop(task)


async def test_with_other_names_the_old_certificate_is_served_until_the_new_one_is_there(
    service: FakeService, parts: Parts
) -> None:
    assert await renewer(parts, names={"dns_names": ["old.example"]}).renew() is None
    old = parts.holdings.certificate("web")
    assert old is not None
    service.answers = [refuse(grpc.StatusCode.PERMISSION_DENIED, "no", reason="ROLE_DENIED")]
    changed = renewer(parts, names={"dns_names": ["new.example"]})
    assert await changed.once() is not None
    picture = parts.holdings.identities.picture
    assert picture is not None
    assert [one.certificate for one in picture.identities] == [old.certificate]
    assert await changed.once() is None
    new = parts.holdings.certificate("web")
    assert new is not None
    assert new.certificate != old.certificate
    # After a start nobody is served yet: what is on the disk for other names stays there.
    parts.holdings.hold("web", None, parts.clock.now())
    await renewer(parts, names={"dns_names": ["newer.example"]}).restore()
    assert parts.holdings.certificate("web") is None


async def test_a_disk_that_takes_nothing_costs_the_restart_and_not_the_certificate(
    service: FakeService, parts: Parts, tmp_path: Path
) -> None:
    blocked = tmp_path / "state" / "certificates"
    blocked.write_text("in the way")
    work = renewer(parts)
    task = asyncio.create_task(work.run())
    await until(lambda: parts.holdings.certificate("web"))
    blocked.unlink()
    # It looks again whenever it is woken, and keeps what it could not.
    await until(lambda: work.wake() or (blocked / "web.json").exists())
    await stop(task)
    saved, held = parts.state.load("web"), parts.holdings.certificate("web")
    assert saved is not None
    assert held is not None
    assert saved.certificate == held.certificate
    assert len(requests(service)) == 1


def answer_with_lifetime(service: FakeService, lifetime: timedelta) -> Any:
    """An answer that is right, but for how long its certificate is good."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        key = read_csr(request).public_key()
        names = [x509.UniformResourceIdentifier(OWN_SPIFFE_ID)]
        leaf = service.authority.mint(key, names, lifetime=lifetime)
        return pb.SignResponse(**service.fields(leaf, request.role))

    return answer


@pytest.mark.parametrize("lifetime", [timedelta(seconds=-5), timedelta(milliseconds=1)])
async def test_certificates_that_are_over_when_they_come_are_a_failure_and_no_storm(
    service: FakeService, parts: Parts, lifetime: timedelta
) -> None:
    # As when this machine's clock is ahead, or the issuer is at its end.
    service.answers = [answer_with_lifetime(service, lifetime)] * 1000
    paused = replace(parts, draw=lambda low, high: high)
    task = asyncio.create_task(renewer(paused).run())
    await until(lambda: parts.conditions.by_name["web"].last_error)
    error = parts.conditions.by_name["web"].last_error
    assert "clock" in error
    # Pauses are drawn as long as they may be: the first is of a second, the next of two.
    await asyncio.sleep(0.5)
    assert len(requests(service)) <= 2
    await stop(task)
