"""Refusals: written down once, bounded in size, and before any work for the wrong caller."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import pytest
import structlog
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.errors import (
    InvalidRequest,
    MeshmintError,
    PermissionDenied,
    PolicyViolated,
    RoleDenied,
    Violation,
)
from meshmint_server.grpc_api import Edge
from meshmint_server.grpc_api.edge import Call, rpc
from meshmint_server.grpc_api.translate import issue_request
from meshmint_server.issuance import (
    Administration,
    Administrators,
    Admission,
    Deadline,
    JwtSvids,
    Mint,
)
from meshmint_server.policy import Bounds, Caller, CallerMatcher, CertificateRequest, Role
from meshmint_server.spiffe import TrustDomain

TRUST_DOMAIN = TrustDomain("mesh.example")
ORIGIN = Origin("0" * 32, "CertificateService/Issue", "ipv4:127.0.0.1:1")
CALLER = Caller("idp", "eve", {}, None, datetime.now(UTC) + timedelta(hours=1))
# What C-core clients take without being told otherwise.
TRAILER_LIMIT = 8192


class Refusals(AuditLog):
    """Keeps the reasons that would be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def refused(self, origin: Origin, error: MeshmintError, **facts: object) -> None:
        self.reasons.append(error.reason)


class Roles:
    def __init__(self, role: Role) -> None:
        self.roles = {role.name: role}


def make_mint(subject: str, audit: AuditLog, **options: Any) -> Mint:
    role = Role.from_document({"name": "r", "spiffe": "own", "callers": [{"subject": subject}]})
    return Mint(
        roles=options.pop("roles", Roles(role)),
        issuers=None,  # type: ignore[arg-type]
        store=None,  # type: ignore[arg-type]
        bounds=Bounds(TRUST_DOMAIN, timedelta(hours=1), timedelta(days=30)),
        audit=audit,
        **options,
    )


async def test_malformed_request_is_written_down_as_a_refusal() -> None:
    audit = Refusals()

    def read() -> CertificateRequest:
        raise InvalidRequest("The CSR is empty.")

    with pytest.raises(InvalidRequest):
        await make_mint("eve", audit).issue(
            CALLER, "r", read, origin=ORIGIN, deadline=Deadline.after(5)
        )
    assert audit.reasons == ["INVALID_REQUEST"]


async def test_nothing_is_read_for_a_caller_without_the_role() -> None:
    audit = Refusals()
    with pytest.raises(RoleDenied):
        await make_mint("alice", audit).issue(
            CALLER, "r", _must_not_be_called, origin=ORIGIN, deadline=Deadline.after(5)
        )
    assert audit.reasons == ["ROLE_DENIED"]


@pytest.mark.parametrize("what", ["certificate", "JWT-SVID"])
@pytest.mark.parametrize("becomes", ["gone", "for somebody else"])
async def test_a_role_that_is_taken_back_while_a_request_waits_grants_it_nothing(
    what: str, becomes: str
) -> None:
    document = {
        "name": "r", "spiffe": "own", "callers": [{"subject": "eve"}],
        "jwt_svid": {"audiences": ["a"]},
    }  # fmt: skip
    roles = Roles(Role.from_document(document))
    audit, admission = Refusals(), Admission(working=1)
    asked: Any = {"origin": ORIGIN, "deadline": Deadline.after(30)}
    async with admission.enter(CALLER, "r", Deadline.after(30)):
        if what == "certificate":
            mint = make_mint("eve", audit, roles=roles, admission=admission)
            waiting: Coroutine[Any, Any, object] = mint.issue(
                CALLER, "r", _must_not_be_called, **asked
            )
        else:
            svids = JwtSvids(
                roles=roles,  # type: ignore[arg-type]
                keys=None,  # type: ignore[arg-type]
                bounds=Bounds(TRUST_DOMAIN, timedelta(hours=1), timedelta(days=30)),
                audit=audit,
                admission=admission,
            )
            waiting = svids.issue(CALLER, "r", _must_not_be_called, **asked)
        task = asyncio.create_task(waiting)
        while not admission.waiting:  # noqa: ASYNC110 - there is nothing to be told by
            await asyncio.sleep(0)
        if becomes == "gone":
            roles.roles = {}
        else:
            roles.roles = {"r": Role.from_document(document | {"callers": [{"subject": "bob"}]})}
    with pytest.raises(RoleDenied):
        await task
    assert audit.reasons == ["ROLE_DENIED"]


async def test_no_role_document_is_read_for_a_caller_who_is_no_administrator() -> None:
    administration = Administration(
        admins=Administrators([CallerMatcher(subject="alice")]),
        store=None,  # type: ignore[arg-type]
        roles=None,  # type: ignore[arg-type]
        trust_domain=TRUST_DOMAIN,
        audit=Refusals(),
    )
    with pytest.raises(PermissionDenied):
        await administration.put_role(CALLER, ORIGIN, _must_not_be_called, validate_only=False)


def _must_not_be_called() -> NoReturn:
    pytest.fail("the request was read")


def test_names_past_all_limits_are_not_even_copied() -> None:
    many = pb.CertificateNames(
        dns_names=[""] * 100_000, user_ids=[""] * 100_000, other_names=[pb.OtherName()] * 100_000
    )
    names = issue_request(pb.IssueRequest(names=many)).names
    for copied in (names.dns_names, names.user_ids, names.other_names):
        assert 1000 < len(copied) <= 2000


def test_what_a_caller_can_put_into_one_log_line_is_bounded() -> None:
    with structlog.testing.capture_logs() as lines:
        error = PolicyViolated("m" * 10_000, violations=[Violation("f", "v" * 999)] * 999)
        AuditLog().refused(ORIGIN, error, role="r" * 10_000)
    assert len(str(lines)) < 40_000
    assert lines[0]["violations"][-1] == "and 949 more"


def test_control_characters_in_a_refused_role_name_do_not_reach_a_terminal() -> None:
    with structlog.testing.capture_logs() as lines:
        error = PolicyViolated("m", violations=[Violation("f", "\nv")])
        AuditLog().refused(ORIGIN, error, role="\x1b[2Jr")
    assert (lines[0]["role"], lines[0]["violations"]) == ("\\x1b[2Jr", ["f: \\nv"])


class Context:
    """What the edge asks of gRPC's context; abort ends the call, as gRPC's does."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.message = ""
        self.trailers: dict[str, Any] = {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, trailers: object) -> None:
        pass

    async def abort(
        self, code: grpc.StatusCode, message: str, trailers: tuple[tuple[str, Any], ...]
    ) -> NoReturn:
        self.code, self.message, self.trailers = code, message, dict(trailers)
        raise grpc.aio.AbortError


class Service:
    def __init__(self, method: Callable[[], Awaitable[None]]) -> None:
        self.edge = Edge(None, Refusals(), 10.0)  # type: ignore[arg-type]
        self._method = method

    @rpc("Service/Method")
    async def Method(self, request: empty_pb2.Empty, call: Call) -> empty_pb2.Empty:  # noqa: N802
        await self._method()
        return request


async def call_and_fail(error: BaseException) -> Context:
    async def method() -> None:
        raise error

    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        await Service(method).Method(empty_pb2.Empty(), context)  # type: ignore[arg-type]
    return context


@pytest.mark.parametrize("letter", ["a", "é", "日", "%"])
async def test_every_refusal_fits_the_trailers_that_clients_take(letter: str) -> None:
    violations = [Violation(letter * 200, letter * 2000) for _ in range(1000)]
    context = await call_and_fail(MeshmintErrorOf(letter * 5000, violations=violations))
    details = context.trailers["grpc-status-details-bin"]
    size = len(quote(context.message, safe=" ")) + len(base64.b64encode(details))
    assert size + 500 < TRAILER_LIMIT
    bad_request = error_details_pb2.BadRequest()
    status_pb2.Status.FromString(details).details[1].Unpack(bad_request)
    shown = bad_request.field_violations
    assert len(shown) > 5
    assert shown[-1].description == f"and {1000 - (len(shown) - 1)} more violations"


class MeshmintErrorOf(MeshmintError):
    code = "INVALID_ARGUMENT"
    default_reason = "TEST"


async def test_panic_of_an_extension_becomes_internal_and_not_silence() -> None:
    class Panic(BaseException):
        """As the Rust bindings raise it: no Exception."""

    context = await call_and_fail(Panic("called unwrap on an Err: secret"))
    assert context.code is grpc.StatusCode.INTERNAL
    assert "secret" not in context.message
