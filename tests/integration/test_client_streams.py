"""Many certificates over one stream, from a server whose streams break, drain and lie."""

from __future__ import annotations

import asyncio
import itertools
import queue
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from meshmint import (
    AnswerRefused,
    AsyncClient,
    CertificateRequest,
    Client,
    ConfigurationError,
    DeadlineExceeded,
    InvalidArgument,
    IssuedCertificate,
    IssueRequest,
    MeshmintError,
    Outcome,
    PermissionDenied,
    ResourceExhausted,
    RetryPolicy,
    SignedCertificate,
    SignRequest,
    Svid,
    SvidRequest,
    TokenUnavailable,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    generate_key,
    make_csr,
)
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import (
    OWN_SPIFFE_ID,
    FakeService,
    Messages,
    fake_service,
    refuse,
    status_of,
)

FAST = RetryPolicy(max_attempts=3, initial_delay=0, max_delay=0)
DRAINING = refuse(grpc.StatusCode.UNAVAILABLE, "about to stop", reason="DRAINING")
MOST = 256

Context = grpc.ServicerContext
Answers = Iterator[pb.SignStreamResponse]


class Many(Protocol):
    """Runs a method for many, the same for both kinds of client.

    Args:
        service: The server.
        requests: What to ask for.
        method: Name of the method.
        take: How many outcomes to take before the generator is closed; None: all.
        seen: Called with each outcome.
        options: Settings of the client.
    """

    def __call__(
        self,
        service: FakeService,
        requests: Iterable[Any],
        *,
        method: str = "sign_many",
        take: int | None = None,
        seen: Callable[[Outcome[Any, Any]], object] = ...,
        **options: Any,
    ) -> list[Outcome[Any, Any]]: ...


def waiting(
    service: FakeService,
    requests: Iterable[Any],
    *,
    method: str = "sign_many",
    take: int | None = None,
    seen: Callable[[Outcome[Any, Any]], object] = id,
    **options: Any,
) -> list[Outcome[Any, Any]]:
    taken = []
    with Client(service.target, **settings(options)) as client:
        outcomes = getattr(client, method)(requests)
        for outcome in itertools.islice(outcomes, take):
            taken.append(outcome)
            seen(outcome)
        outcomes.close()
    return taken


def awaiting(
    service: FakeService,
    requests: Iterable[Any],
    *,
    method: str = "sign_many",
    take: int | None = None,
    seen: Callable[[Outcome[Any, Any]], object] = id,
    **options: Any,
) -> list[Outcome[Any, Any]]:
    async def run() -> list[Outcome[Any, Any]]:
        taken = []
        async with AsyncClient(service.target, **settings(options)) as client:
            outcomes = getattr(client, method)(requests)
            try:
                async for outcome in outcomes:
                    taken.append(outcome)
                    seen(outcome)
                    if len(taken) == take:
                        break
            finally:
                await outcomes.aclose()
                await no_task_stays()
        return taken

    return asyncio.run(run())


def settings(options: dict[str, Any]) -> dict[str, Any]:
    return {"token": "t", "insecure": True, "retry": FAST, "timeout": 60, **options}


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if "_poll_wrapper" not in thread.name:  # grpc.aio's one for all event loops
            thread.join(10)
            assert not thread.is_alive()


async def no_task_stays() -> None:
    async with asyncio.timeout(10):
        while asyncio.all_tasks() != {asyncio.current_task()}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # gRPC's own go with the call that they are of


@pytest.fixture
def service(tmp_path: Path, no_thread_stays: None) -> Iterator[FakeService]:
    with fake_service(tmp_path) as running:
        yield running


@pytest.fixture(params=["Client", "AsyncClient"])
def many(request: pytest.FixtureRequest) -> Many:
    return waiting if request.param == "Client" else awaiting


CSR = make_csr(generate_key())


def sign_requests(count: int) -> list[SignRequest]:
    return [SignRequest(CSR, f"role-{number}") for number in range(count)]


def roles(items: Iterable[Any]) -> list[str]:
    return [item.request.role for item in items]


def some(messages: Messages, count: int) -> list[Any]:
    """Reads until so many items are there."""
    items: list[Any] = []
    for message in messages:
        items += message.items
        if len(items) >= count:
            break
    return items


def refused(item: Any, code: grpc.StatusCode, reason: str, **details: Any) -> Any:
    answer = pb.SignStreamResponse()
    answer.items.add(id=item.id, error=status_of(code, "no", reason, **details))
    return answer


def errors(outcomes: Iterable[Outcome[Any, Any]]) -> list[type[MeshmintError]]:
    return [type(outcome.error) for outcome in outcomes if outcome.error is not None]


# --- what comes back --------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "make", "kind"),
    [
        ("request_svids", lambda n: SvidRequest(f"role-{n}", dns_names=[f"{n}.example"]), Svid),
        (
            "request_certificates",
            lambda n: CertificateRequest(f"role-{n}", dns_names=[f"{n}.example"]),
            IssuedCertificate,
        ),
        (
            "sign_many",
            lambda n: SignRequest(make_csr(generate_key()), f"role-{n}", ttl=timedelta(hours=n)),
            SignedCertificate,
        ),
        (
            "issue_many",
            lambda n: IssueRequest(f"role-{n}", dns_names=[f"{n}.example"]),
            IssuedCertificate,
        ),
    ],
)
def test_each_request_gets_a_certificate_of_its_own(
    service: FakeService, many: Many, method: str, make: Callable[[int], Any], kind: type
) -> None:
    requests = [make(number) for number in range(20)]
    outcomes = many(service, requests, method=method)
    assert {outcome.request for outcome in outcomes} == set(requests)
    assert len(outcomes) == len(requests)
    for outcome in outcomes:
        result = outcome.result()
        assert type(result) is kind
        assert result.role == outcome.request.role
        assert outcome.error is None
    (call,) = service.calls
    ids = {item.request.request_id for item in call.request.read_items()}
    assert len(ids) == len(requests)
    assert all(re.fullmatch("[A-Za-z0-9_-]{32,128}", request_id) for request_id in ids)
    assert (call.authorization, call.request.has_ended) == ("Bearer t", True)


def test_outcomes_come_in_the_order_of_the_answers(service: FakeService, many: Many) -> None:
    def backwards(messages: Messages, _context: Context) -> Answers:
        for item in reversed(some(messages, 20)):
            yield service.signed(item)

    service.answers.append(backwards)
    requests = sign_requests(20)
    assert [outcome.request for outcome in many(service, requests)] == requests[::-1]


def test_no_requests_are_no_stream(service: FakeService, many: Many) -> None:
    assert many(service, []) == []
    assert service.calls == []


def test_a_certificate_for_another_key_is_refused_alone(service: FakeService, many: Many) -> None:
    def swap(messages: Messages, _context: Context) -> Answers:
        other = make_csr(generate_key()).public_bytes(Encoding.DER)
        for item in messages.items():
            if item.request.role == "role-3":
                item.request.csr_der = other
            yield service.signed(item)

    service.answers.append(swap)
    requests = sign_requests(6)
    (bad,) = (outcome for outcome in many(service, requests) if outcome.error)
    assert bad.request is requests[3]
    with pytest.raises(AnswerRefused, match="another public key"):
        bad.result()


def test_an_svid_with_another_spiffe_id_is_refused_alone(service: FakeService, many: Many) -> None:
    def strip(messages: Messages, _context: Context) -> Answers:
        for item in messages.items():
            if item.request.role == "other":
                key = generate_key()
                uris = ["spiffe://example.org/other"]
                item.request.csr_der = make_csr(key, uris=uris).public_bytes(Encoding.DER)
            yield service.signed(item)

    service.answers.append(strip)
    requests = [SvidRequest(role, spiffe_id=OWN_SPIFFE_ID) for role in ("own", "other")]
    outcomes = {
        outcome.request.role: outcome for outcome in many(service, requests, method="request_svids")
    }
    assert outcomes["own"].result().spiffe_id == OWN_SPIFFE_ID
    assert isinstance(outcomes["other"].error, AnswerRefused)


def test_what_cannot_be_sent_fails_alone(service: FakeService, many: Many) -> None:
    requests = [
        SignRequest(CSR, "good"),
        SignRequest(CSR, "letters", dns_names="a.example"),
        SignRequest(CSR, "zone", timeout=-1),
        SignRequest(b"\x30" * (1 << 20), "large"),
    ]
    outcomes = {outcome.request.role: outcome.error for outcome in many(service, requests)}
    assert outcomes["good"] is None
    assert isinstance(outcomes["letters"], InvalidArgument)
    assert isinstance(outcomes["zone"], ConfigurationError)
    assert isinstance(outcomes["large"], ResourceExhausted)
    (call,) = service.calls
    assert roles(call.request.read_items()) == ["good"]


# --- items that fail --------------------------------------------------------


def test_an_item_that_fails_fails_alone_with_all_details(service: FakeService, many: Many) -> None:
    violations = [("names.uris[0]", "not yours")]

    def deny(messages: Messages, _context: Context) -> Answers:
        for item in messages.items():
            yield (
                refused(item, grpc.StatusCode.PERMISSION_DENIED, "DENIED", violations=violations)
                if item.request.role == "role-2"
                else service.signed(item)
            )

    service.answers.append(deny)
    requests = sign_requests(5)
    (bad,) = (outcome for outcome in many(service, requests) if outcome.error)
    assert bad.request is requests[2]
    assert isinstance(bad.error, PermissionDenied)
    assert (bad.error.code, bad.error.reason) == ("PERMISSION_DENIED", "DENIED")
    assert [(one.field, one.description) for one in bad.error.violations] == violations


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"])
def test_an_item_that_fails_for_now_is_tried_again_as_it_was(
    service: FakeService, many: Many, code: str
) -> None:
    def later(messages: Messages, _context: Context) -> Answers:
        seen: set[str] = set()
        for item in messages.items():
            if item.request.role == "role-1" and item.request.role not in seen:
                seen.add(item.request.role)
                yield refused(item, grpc.StatusCode[code], "LATER", retry_after=0.1)
            else:
                yield service.signed(item)

    service.answers.append(later)
    outcomes = many(service, sign_requests(3))
    assert errors(outcomes) == []
    (call,) = service.calls
    first, second = (item for item in call.request.read_items() if item.request.role == "role-1")
    assert first.request == second.request
    assert first.id != second.id


def test_an_item_that_keeps_failing_has_the_attempts_of_a_call(
    service: FakeService, many: Many
) -> None:
    def never(messages: Messages, _context: Context) -> Answers:
        for item in messages.items():
            if item.request.role == "role-1":
                yield refused(item, grpc.StatusCode.UNAVAILABLE, "KEY_UNAVAILABLE")
            else:
                yield service.signed(item)

    service.answers.append(never)
    assert errors(many(service, sign_requests(3))) == [Unavailable]
    assert roles(service.calls[0].request.read_items()).count("role-1") == FAST.max_attempts


def test_a_pause_that_would_pass_the_deadline_is_not_begun(
    service: FakeService, many: Many
) -> None:
    def next_week(messages: Messages, _context: Context) -> Answers:
        for item in messages.items():
            yield refused(item, grpc.StatusCode.UNAVAILABLE, "LATER", retry_after=604800)

    service.answers.append(next_week)
    (outcome,) = many(service, sign_requests(1))
    assert isinstance(outcome.error, Unavailable)
    assert outcome.error.retry_after == 604800


def test_an_error_that_says_nothing_is_an_error(service: FakeService, many: Many) -> None:
    def bare(messages: Messages, _context: Context) -> Answers:
        for item, code in zip(messages.items(), (0, 999, 13), strict=False):
            answer = pb.SignStreamResponse()
            answer.items.add(id=item.id).error.code = code
            yield answer

    service.answers.append(bare)
    found = [outcome.error for outcome in many(service, sign_requests(3))]
    assert [error and error.code for error in found] == ["UNKNOWN", "UNKNOWN", "INTERNAL"]


def test_an_answer_with_neither_certificate_nor_error_is_refused_alone(
    service: FakeService, many: Many
) -> None:
    def empty(messages: Messages, _context: Context) -> Answers:
        first, *others = some(messages, 3)
        yield pb.SignStreamResponse(items=[pb.SignStreamResponse.Item(id=first.id)])
        yield service.signed(*others)

    service.answers.append(empty)
    assert errors(many(service, sign_requests(3))) == [AnswerRefused]


# --- streams that break -----------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        DRAINING,
        refuse(grpc.StatusCode.CANCELLED, "by a proxy"),
        refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="OVERLOADED"),
        lambda _request, _context: None,
    ],
    ids=["draining", "cancelled", "exhausted", "ended"],
)
def test_what_a_broken_stream_left_is_sent_again_as_it_was(
    service: FakeService, many: Many, fault: Callable[[Any, Any], Any]
) -> None:
    def half(messages: Messages, context: Context) -> Answers:
        items = some(messages, 20)
        yield service.signed(*items[:12])
        fault(messages, context)

    service.answers.append(half)
    tokens = (f"token-{number}" for number in itertools.count(1))
    outcomes = many(service, sign_requests(20), token=lambda: next(tokens))
    assert errors(outcomes) == []
    assert len({outcome.request for outcome in outcomes}) == len(outcomes) == 20
    first, second = service.calls
    assert [first.authorization, second.authorization] == ["Bearer token-1", "Bearer token-2"]
    left = {item.request.role: item.request for item in first.request.read_items()[12:]}
    assert {item.request.role: item.request for item in second.request.read_items()} == left


def test_what_is_ready_goes_together(service: FakeService, many: Many) -> None:
    def drain(messages: Messages, context: Context) -> NoReturn:
        some(messages, 100)
        DRAINING(messages, context)
        raise AssertionError

    service.answers.append(drain)
    assert errors(many(service, sign_requests(100))) == []
    assert [len(message.items) for message in service.calls[1].request.read] == [100]


def test_no_message_is_larger_than_the_service_takes(service: FakeService, many: Many) -> None:
    def drain(messages: Messages, context: Context) -> NoReturn:
        some(messages, 40)
        DRAINING(messages, context)
        raise AssertionError

    service.answers.append(drain)
    requests = [SignRequest(CSR, dns_names=["x" * 100_000]) for _ in range(40)]
    assert errors(many(service, requests)) == []
    sizes = [message.ByteSize() for message in service.calls[1].request.read]
    assert max(sizes) <= 1 << 20
    assert len(sizes) == 4


def test_requests_end_with_the_last_error_when_streams_keep_breaking(
    service: FakeService, many: Many
) -> None:
    service.answers += [DRAINING] * FAST.max_attempts
    outcomes = many(service, sign_requests(1))
    assert errors(outcomes) == [Unavailable]
    assert outcomes[0].error is not None
    assert outcomes[0].error.reason == "DRAINING"
    assert len(service.calls) == FAST.max_attempts


def test_a_server_that_is_not_there_is_told_of_each(
    service: FakeService, many: Many, tmp_path: Path
) -> None:
    service.target = f"unix:{tmp_path}/nobody.sock"
    outcomes = many(service, sign_requests(3))
    assert errors(outcomes) == [Unavailable] * 3


def test_a_stream_that_breaks_while_nothing_is_asked_is_opened_again_for_the_next(
    service: FakeService, many: Many
) -> None:
    has_broken = threading.Event()

    def one(messages: Messages, context: Context) -> Answers:
        yield service.signed(*some(messages, 1))
        context.add_callback(has_broken.set)
        DRAINING(messages, context)

    def requests() -> Iterator[SignRequest]:
        yield SignRequest(CSR, "before")
        assert has_broken.wait(10)
        yield SignRequest(CSR, "after")

    service.answers.append(one)
    source = requests() if many is waiting else off_the_loop(requests())
    outcomes = many(service, source)  # type: ignore[arg-type]
    assert [outcome.result().role for outcome in outcomes] == ["before", "after"]


async def off_the_loop(requests: Iterator[Any]) -> AsyncIterator[Any]:
    """The same, asynchronous: a generator that blocks goes with threads alone."""
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        yield request


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.ABORTED, MeshmintError),
    ],
)
def test_what_no_other_stream_mends_is_raised(
    service: FakeService, many: Many, code: grpc.StatusCode, error: type[MeshmintError]
) -> None:
    service.answers += [refuse(code, "do this", reason="A_REASON")] * 5
    with pytest.raises(error) as caught:
        many(service, itertools.repeat(SignRequest(CSR)))
    assert type(caught.value) is error
    assert caught.value.reason == "A_REASON"


def test_a_stream_that_outlives_its_token_is_opened_again_with_a_new_one(
    service: FakeService, many: Many
) -> None:
    expired = refuse(grpc.StatusCode.UNAUTHENTICATED, "expired", reason="CREDENTIAL_EXPIRED")

    def half(messages: Messages, context: Context) -> Answers:
        yield service.signed(*some(messages, 4)[:2])
        expired(messages, context)

    service.answers.append(half)
    tokens = iter(["old", "new"])
    assert errors(many(service, sign_requests(4), token=lambda: next(tokens))) == []
    assert [call.authorization for call in service.calls] == ["Bearer old", "Bearer new"]

    service.answers += [half, expired]
    taken: list[Outcome[Any, Any]] = []
    with pytest.raises(Unauthenticated):
        many(service, sign_requests(4), seen=taken.append)
    assert len(taken) == 2


def test_without_a_token_nothing_is_sent(service: FakeService, many: Many, tmp_path: Path) -> None:
    with pytest.raises(TokenUnavailable, match="missing"):
        many(service, sign_requests(1), token=tmp_path / "missing")
    assert service.calls == []


# --- answers that lie -------------------------------------------------------


@pytest.mark.parametrize("which", ["unknown", "doubled", "doubled later", "of the last stream"])
def test_an_answer_to_what_was_not_asked_is_refused(
    service: FakeService, many: Many, which: str
) -> None:
    def lie(messages: Messages, context: Context) -> Answers:
        first, second = some(messages, 2)
        if which == "unknown":
            yield service.signed(first)
            second.id += "0"
            yield service.signed(second)
        elif which == "doubled":
            yield service.signed(first, first)
        elif which == "doubled later":
            yield service.signed(first, second)
            for _ in messages:  # until the client wants no more
                pass
            yield service.signed(first)
        else:
            yield service.signed(first)
            service.answers.append(lambda messages, _context: replay(messages, second.id))
            DRAINING(messages, context)

    def replay(messages: Messages, old: str) -> Answers:
        (item,) = some(messages, 1)
        item.id = old
        yield service.signed(item)

    service.answers.append(lie)
    with pytest.raises(AnswerRefused, match="id of no request"):
        many(service, sign_requests(2))


def test_an_answer_that_cannot_be_parsed_is_refused(service: FakeService, many: Many) -> None:
    def nonsense(messages: Messages, _context: Context) -> Iterator[Any]:
        some(messages, 1)
        # Field 1 of this one is text, and no item.
        yield pb.GetChainResponse(issuer="\x0a\x7f")

    service.answers.append(nonsense)
    with pytest.raises(AnswerRefused, match="not the message"):
        many(service, sign_requests(1))


# --- deadlines --------------------------------------------------------------


def test_a_stream_that_says_nothing_is_left_for_another(service: FakeService, many: Many) -> None:
    has_been_left = threading.Event()

    def silent(_messages: Messages, context: Context) -> NoReturn:
        context.add_callback(has_been_left.set)
        service.hang(None, context)

    service.answers.append(silent)
    unheard = [SignRequest(CSR, timeout=1) for _ in range(MOST)]
    outcomes = many(service, [*unheard, *sign_requests(3)])
    assert errors(outcomes) == [DeadlineExceeded] * MOST
    assert [outcome.result().role for outcome in outcomes[MOST:]] == ["role-0", "role-1", "role-2"]
    assert len(service.calls) == 2
    assert has_been_left.wait(10)


# --- how far ahead ----------------------------------------------------------


def test_an_endless_iterable_is_not_read_far_ahead_of_a_slow_consumer(
    service: FakeService, many: Many
) -> None:
    given = taken = 0
    ahead = []

    def requests() -> Iterator[SignRequest]:
        nonlocal given
        while True:
            given += 1
            ahead.append(given - taken)
            yield SignRequest(CSR)

    def slowly(_outcome: object) -> None:
        nonlocal taken
        taken += 1
        if taken % 100 == 0:
            time.sleep(0.05)

    left = threading.Event()

    def usual(messages: Messages, context: Context) -> Answers:
        context.add_callback(left.set)
        yield from service.sign_items(messages, context)

    service.answers.append(usual)
    outcomes = many(service, requests(), take=600, seen=slowly)
    assert errors(outcomes) == []
    # An outcome is taken before the test counts it.
    assert max(ahead) <= MOST + 1
    assert left.wait(10)


def test_a_server_that_answers_nothing_is_sent_no_more_than_it_takes(
    service: FakeService, many: Many
) -> None:
    given = 0
    read: list[Any] = []

    def requests() -> Iterator[SignRequest]:
        nonlocal given
        while True:
            given += 1
            yield SignRequest(CSR, timeout=0.3)

    def mute(messages: Messages, context: Context) -> Iterator[Any]:
        for item in messages.items():
            read.append(item)
            if len(read) == MOST:
                service.answers.append(service.hang)
        yield from ()

    service.answers.append(mute)
    (outcome,) = many(service, requests(), take=1)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert len(read) <= MOST
    assert given <= MOST + 1


def test_requests_that_wait_for_outcomes_get_them(service: FakeService, many: Many) -> None:
    told: queue.SimpleQueue[Outcome[Any, Any]] = queue.SimpleQueue()

    def requests() -> Iterator[SignRequest]:
        for number in range(5):
            yield SignRequest(CSR, f"role-{number}")
            assert told.get(timeout=10).result().role == f"role-{number}"

    source = requests() if many is waiting else off_the_loop(requests())
    outcomes = many(service, source, seen=told.put)  # type: ignore[arg-type]
    assert len(outcomes) == 5


def test_an_iterable_that_fails_fails_after_the_outcomes_of_what_it_gave(
    service: FakeService, many: Many
) -> None:
    def requests() -> Iterator[SignRequest]:
        yield from sign_requests(3)
        raise LookupError("mine")

    taken: list[Outcome[Any, Any]] = []
    with pytest.raises(LookupError, match="mine"):
        many(service, requests(), seen=taken.append)
    assert len(taken) == 3


# --- ends -------------------------------------------------------------------


def test_closing_the_client_ends_it_in_another_thread(service: FakeService) -> None:
    has_one, is_closed = threading.Event(), threading.Event()
    failed: list[BaseException] = []
    client = Client(service.target, **settings({}))

    def ask() -> Iterator[SignRequest]:
        yield SignRequest(CSR)
        is_closed.wait(30)
        yield SignRequest(CSR)

    def follow() -> None:
        try:
            for _ in client.sign_many(ask()):
                has_one.set()
        except MeshmintError as error:
            failed.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    assert has_one.wait(10)
    client.close()
    thread.join(10)
    is_closed.set()
    (error,) = failed
    assert isinstance(error, ConfigurationError)
    assert "closed" in str(error)
    with pytest.raises(ConfigurationError, match="closed"):
        next(client.sign_many([]))


async def test_closing_the_asynchronous_client_ends_it(service: FakeService) -> None:
    service.answers.append(service.hang)
    requests = iter(sign_requests(5000))
    client = AsyncClient(service.target, **settings({}))

    async def follow() -> None:
        async for _ in client.sign_many(requests):
            raise AssertionError

    task = asyncio.create_task(follow())
    assert await asyncio.to_thread(service.has_calls.wait, 10)
    await client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await task
    with pytest.raises(ConfigurationError, match="closed"):
        await anext(client.sign_many([]))
    await no_task_stays()
    assert len(list(requests)) == 5000 - MOST


async def test_cancelling_the_task_leaves_no_other(service: FakeService) -> None:
    service.answers.append(service.hang)
    async with AsyncClient(service.target, **settings({})) as client:

        async def follow() -> None:
            async for _ in client.sign_many(itertools.repeat(SignRequest(CSR))):
                raise AssertionError

        task = asyncio.create_task(follow())
        assert await asyncio.to_thread(service.has_calls.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await no_task_stays()


async def test_an_asynchronous_iterable_is_closed_with_the_generator(
    service: FakeService,
) -> None:
    is_closed = asyncio.Event()

    async def requests() -> AsyncIterator[SvidRequest]:
        try:
            yield SvidRequest()
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    async with AsyncClient(service.target, **settings({})) as client:
        outcomes = client.request_svids(requests())
        svid = (await anext(outcomes)).result()
        assert svid.spiffe_id == OWN_SPIFFE_ID
        await outcomes.aclose()
        assert is_closed.is_set()


def test_leaving_the_loop_ends_the_stream(service: FakeService) -> None:
    has_ended = threading.Event()

    def usual(messages: Messages, context: Context) -> Answers:
        context.add_callback(has_ended.set)
        yield from service.sign_items(messages, context)

    service.answers.append(usual)
    with Client(service.target, **settings({})) as client:
        for _ in client.sign_many(itertools.repeat(SignRequest(CSR))):
            break
        assert has_ended.wait(10)


def test_two_requests_for_the_same_are_two(service: FakeService, many: Many) -> None:
    purposes = {SvidRequest(): "one", SvidRequest(): "other"}
    outcomes = many(service, list(purposes), method="request_svids")
    assert {purposes[outcome.request] for outcome in outcomes} == {"one", "other"}
    keys = {
        outcome.result()
        .certificate.public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for outcome in outcomes
    }
    assert len(keys) == 2
