"""One stream by itself: what it holds of a client's, for how long, and as whom."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from google.rpc import error_details_pb2
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authn import Authenticators
from meshmint_server.authn.authenticator import Verified
from meshmint_server.authn.clock import Clock
from meshmint_server.authn.token import ParsedToken
from meshmint_server.errors import InvalidRequest, Unauthenticated
from meshmint_server.grpc_api.edge import Call, Edge
from meshmint_server.grpc_api.item_stream import Answer, Draining, ItemCall, ItemStream
from meshmint_server.issuance import Deadline
from meshmint_server.policy import Caller

Work = Callable[[pb.IssueRequest, ItemCall], Awaitable[pb.IssueResponse]]

IN_HAND = 256
LARGEST_MESSAGE = 1024 * 1024


def _part(content: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


TOKEN = f"{_part({'alg': 'ES256'})}.{_part({'iss': 'cluster'})}.c2ln"


class Reviewing:
    """An authenticator that asks somebody every time, as TokenReview does."""

    name = "cluster"
    remember_for = 0.0
    max_remembered = 10

    def __init__(self) -> None:
        self.holds = True
        self.asked = 0

    def basis(self) -> object:
        return None

    async def verify(self, token: ParsedToken, *, is_known: bool) -> Verified:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.holds:
            raise Unauthenticated("The token does not hold.", reason="TOKEN_EXPIRED")
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        return Verified(Caller("cluster", "cart", {}, None, expires_at), None)

    async def close(self) -> None:
        pass


def open_stream(
    messages: AsyncIterator[pb.IssueStreamRequest],
    work: Work,
    authenticator: Reviewing | None = None,
    time_limit: float = 60.0,
) -> ItemStream[pb.IssueRequest, pb.IssueResponse]:
    authenticators = Authenticators(
        {"cluster": authenticator or Reviewing()},
        counter=lambda _name, _outcome: int,
        clock=Clock(),
    )
    call = Call(
        origin=Origin("0" * 32, "CertificateService/IssueStream", "ipv4:127.0.0.1:1"),
        deadline=Deadline.after(time_limit),
        token=TOKEN,
        edge=Edge(authenticators, AuditLog(), time_limit),
    )
    return ItemStream(call, messages, work, Draining())


def message_of(*ids: str) -> pb.IssueStreamRequest:
    message = pb.IssueStreamRequest()
    for name in ids:
        message.items.add(id=name)
    return message


async def each(messages: Sequence[pb.IssueStreamRequest]) -> AsyncIterator[pb.IssueStreamRequest]:
    for message in messages:
        yield message


async def do_nothing(_request: pb.IssueRequest, _call: ItemCall) -> pb.IssueResponse:
    return pb.IssueResponse()


async def settle() -> None:
    for _ in range(2000):
        await asyncio.sleep(0)


def ids_of(answers: Sequence[Answer[pb.IssueResponse]]) -> list[str]:
    return [answer.id for answer in answers]


async def drain(answers: AsyncIterator[list[Answer[pb.IssueResponse]]], read: list[str]) -> None:
    async for some in answers:
        read += ids_of(some)


async def test_answers_that_nobody_reads_hold_back_what_is_sent() -> None:
    """A client that sends and does not read gets nothing more done, and fills no memory."""
    begun = 0

    async def work(_request: pb.IssueRequest, _call: ItemCall) -> pb.IssueResponse:
        nonlocal begun
        begun += 1
        return pb.IssueResponse()

    sent = [message_of(*(f"{n}-{m}" for m in range(100))) for n in range(30)]
    answers = open_stream(each(sent), work).answers()
    read = ids_of(await anext(answers))
    await settle()
    assert begun <= len(read) + IN_HAND
    await drain(answers, read)
    assert sorted(read) == sorted(item.id for message in sent for item in message.items)


async def test_a_stream_may_be_older_than_a_request_and_its_credential_is_reviewed_again() -> None:
    authenticator = Reviewing()

    async def messages() -> AsyncIterator[pb.IssueStreamRequest]:
        yield message_of("early")
        await asyncio.sleep(0.1)
        yield message_of("late")

    stream = open_stream(messages(), do_nothing, authenticator, time_limit=0.05)
    assert [ids_of(some) async for some in stream.answers()] == [["early"], ["late"]]
    assert authenticator.asked > 2


async def test_what_waited_in_a_message_is_not_begun_once_the_credential_has_ended() -> None:
    authenticator = Reviewing()
    go_on = asyncio.Event()
    served: list[str] = []

    async def work(_request: pb.IssueRequest, call: ItemCall) -> pb.IssueResponse:
        served.append(call.caller.subject)
        await go_on.wait()
        return pb.IssueResponse()

    sent = [message_of(*(f"{n}-{m}" for m in range(200))) for n in range(2)]
    answers = open_stream(each(sent), work, authenticator).answers()
    reading = asyncio.ensure_future(anext(answers))
    await settle()
    assert len(served) == IN_HAND
    authenticator.holds = False
    go_on.set()
    read = ids_of(await reading)
    with pytest.raises(Unauthenticated):
        await drain(answers, read)
    assert len(read) == len(served) == IN_HAND


async def test_more_items_than_a_message_may_have_are_refused_unread() -> None:
    begun: list[object] = []

    async def work(request: pb.IssueRequest, _call: ItemCall) -> pb.IssueResponse:
        begun.append(request)
        return pb.IssueResponse()

    answers = open_stream(each([message_of(*map(str, range(257)))]), work).answers()
    with pytest.raises(InvalidRequest, match="256") as caught:
        await anext(answers)
    assert [violation.field for violation in caught.value.violations] == ["items"]
    assert not begun


async def test_answers_that_are_long_go_in_messages_that_clients_take() -> None:
    async def work(_request: pb.IssueRequest, _call: ItemCall) -> pb.IssueResponse:
        return pb.IssueResponse(certificate="x" * 100_000)

    stream = open_stream(each([message_of(*map(str, range(64)))]), work)
    read: list[str] = []
    async for some in stream.answers():
        message = pb.IssueStreamResponse()
        for answer in some:
            message.items.add(id=answer.id, response=answer.response)
        assert message.ByteSize() <= LARGEST_MESSAGE
        read += ids_of(some)
    assert sorted(read) == sorted(map(str, range(64)))


class Panic(BaseException):
    """As pyo3's PanicException, which is no Exception either."""


async def test_an_item_that_meets_a_panic_is_answered_with_internal() -> None:
    async def work(_request: pb.IssueRequest, _call: ItemCall) -> pb.IssueResponse:
        raise Panic

    answers = [some async for some in open_stream(each([message_of("1")]), work).answers()]
    ((answer,),) = answers
    assert answer.error is not None
    assert answer.error.code == 13
    assert not any(one.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for one in answer.error.details)
