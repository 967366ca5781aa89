"""The client's watch of the trust bundle against a server whose streams break."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from meshmint import (
    AnswerRefused,
    AsyncClient,
    Client,
    ConfigurationError,
    DeadlineExceeded,
    MeshmintError,
    RetryPolicy,
    TrustBundle,
    Unavailable,
    Unimplemented,
)
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import FakeService, fake_service, refuse

FAST = RetryPolicy(max_attempts=3, initial_delay=0.001, max_delay=0.01)
DOWN = refuse(grpc.StatusCode.UNAVAILABLE, "down", reason="UNAVAILABLE")

# How many bundles to take, and what came of it: the same for both kinds of client.
Take = Callable[[str, int], list[TrustBundle]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    with fake_service(tmp_path) as running:
        yield running


@pytest.fixture(params=["Client", "AsyncClient"])
def take(request: pytest.FixtureRequest) -> Take:
    def waiting(target: str, count: int) -> list[TrustBundle]:
        with Client(target, insecure=True, retry=FAST, timeout=0.5) as client:
            watch = client.watch_trust_bundle()
            return [next(watch) for _ in range(count)]

    async def awaiting(target: str, count: int) -> list[TrustBundle]:
        async with AsyncClient(target, insecure=True, retry=FAST, timeout=0.5) as client:
            watch = client.watch_trust_bundle()
            taken = [await anext(watch) for _ in range(count)]
            await watch.aclose()
            return taken

    if request.param == "Client":
        return waiting
    return lambda target, count: asyncio.run(awaiting(target, count))


def test_no_token_goes_along(service: FakeService, take: Take) -> None:
    (bundle,) = take(service.target, 1)

    assert (bundle.sequence, bundle.trust_domain) == (1, "example.org")
    assert bundle.trust_bundle == (service.authority.root,)
    assert service.calls[0].authorization is None
    assert service.calls[0].time_left is None or service.calls[0].time_left > 1e6


def test_broken_streams_are_opened_again_far_beyond_the_attempts_of_a_call(
    service: FakeService, take: Take
) -> None:
    internal = refuse(grpc.StatusCode.INTERNAL, "a bug", reason="INTERNAL")
    cancelled = refuse(grpc.StatusCode.CANCELLED, "by a proxy")
    not_ready = refuse(grpc.StatusCode.FAILED_PRECONDITION, "no", reason="ISSUER_NOT_READY")
    service.answers += [
        service.stream(service.bundle(1), then=DOWN),
        *[DOWN] * 6,
        internal,
        not_ready,
        service.stream(service.bundle(2), then=cancelled),
        service.stream(),
        service.stream(service.bundle(3)),
        service.stream(service.bundle(4)),
    ]

    assert [one.sequence for one in take(service.target, 4)] == [1, 2, 3, 4]
    assert len(service.calls) == 13


def test_what_is_known_or_older_is_not_told(service: FakeService, take: Take) -> None:
    other = service.authority.certificate
    service.answers += [
        service.stream(service.bundle(5)),
        service.stream(service.bundle(5), service.bundle(4, other), service.bundle(6)),
    ]

    assert [one.sequence for one in take(service.target, 2)] == [5, 6]


def test_a_stream_that_says_nothing_at_first_is_given_up(service: FakeService, take: Take) -> None:
    service.answers += [service.hang]

    with pytest.raises(DeadlineExceeded):
        take(service.target, 1)


def test_a_reopened_stream_that_says_nothing_is_opened_once_more(
    service: FakeService, take: Take
) -> None:
    service.answers += [
        service.stream(service.bundle(1)),
        service.hang,
        service.stream(service.bundle(2)),
    ]

    assert [one.sequence for one in take(service.target, 2)] == [1, 2]


def test_silence_after_the_first_bundle_ends_nothing(service: FakeService, take: Take) -> None:
    def late(_request: object, _context: grpc.ServicerContext) -> Iterator[object]:
        yield service.bundle(1)
        time.sleep(1.2)  # more than twice the time-out
        yield service.bundle(2)

    service.answers += [late]

    assert [one.sequence for one in take(service.target, 2)] == [1, 2]
    assert len(service.calls) == 1


def test_a_server_that_is_not_there_is_told(take: Take) -> None:
    with pytest.raises(Unavailable):
        take("127.0.0.1:1", 1)


def test_an_older_server_is_told(service: FakeService, take: Take) -> None:
    service.answers += [refuse(grpc.StatusCode.UNIMPLEMENTED, "unknown method")]

    with pytest.raises(Unimplemented):
        take(service.target, 1)


@pytest.mark.parametrize(
    "message",
    [
        pb.WatchTrustBundleResponse(sequence=2),
        pb.WatchTrustBundleResponse(sequence=2, trust_bundle=["garbage"]),
    ],
    ids=["empty", "no PEM"],
)
def test_what_is_no_bundle_replaces_none(
    service: FakeService, take: Take, message: pb.WatchTrustBundleResponse
) -> None:
    service.answers += [service.stream(service.bundle(1), message)]

    with pytest.raises(AnswerRefused):
        take(service.target, 2)


def test_closing_the_client_ends_a_watch_of_another_thread(service: FakeService) -> None:
    client = Client(service.target, insecure=True, retry=FAST)
    seen: list[TrustBundle] = []
    failed: list[MeshmintError] = []
    has_one = threading.Event()

    def follow() -> None:
        try:
            for bundle in client.watch_trust_bundle():
                seen.append(bundle)
                has_one.set()
        except MeshmintError as error:
            failed.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    assert has_one.wait(10)
    client.close()
    thread.join(10)

    assert not thread.is_alive()
    assert (len(seen), failed) == (1, [])
    with pytest.raises(ConfigurationError):
        next(client.watch_trust_bundle())


async def test_cancelling_the_task_ends_the_watch_as_cancelled(service: FakeService) -> None:
    async with AsyncClient(service.target, insecure=True, retry=FAST) as client:
        watch = client.watch_trust_bundle()
        await anext(watch)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(watch)
