"""A request that is sent again: the same certificate and key, and nothing minted twice."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import Issuer
from meshmint_server.errors import InvalidRequest, KeyUnavailable, RoleDenied, StoreUnavailable
from meshmint_server.issuance import Deadline, Issued, Mint, Retryable, forget_expired_replies
from meshmint_server.policy import Bounds, Caller, CertificateRequest, Role
from meshmint_server.spiffe import SpiffeId, TrustDomain
from meshmint_server.store import RecordFilter, Store
from support.software_key import SoftwareKey, software_issuer

TRUST_DOMAIN = TrustDomain("mesh.example")
ORIGIN = Origin("0" * 32, "CertificateService/Issue", "ipv4:127.0.0.1:1")


def caller(name: str) -> Caller:
    return Caller(
        "cluster",
        f"system:serviceaccount:shop:{name}",
        {},
        SpiffeId.parse(f"spiffe://mesh.example/ns/shop/sa/{name}"),
        datetime.now(UTC) + timedelta(hours=1),
    )


def role(name: str, **fields: object) -> Role:
    document = {"name": name, "spiffe": "own", "key_type": "ec", "ttl": "1h"}
    return Role.from_document({**document, "callers": [{"subject": "*"}], **fields})


CART = caller("cart")
ROLES = {
    one.name: one for one in (role("svid"), role("unkept", no_store=True), role("short", ttl="2m"))
}


class Issuers:
    """An issuer book with one issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    def signing(self, _name: str | None) -> Issuer:
        return self._issuer

    def get(self, _name: str) -> Issuer:
        return self._issuer


class Roles:
    def __init__(self) -> None:
        self.roles = dict(ROLES)


@dataclass
class Lines(AuditLog):
    """Remembers which serial numbers were logged as what."""

    granted_serials: list[str] = field(default_factory=list)
    repeated_serials: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def granted(self, _origin: Origin, **facts: object) -> None:  # type: ignore[override]
        self.granted_serials.append(str(facts["serial"]))

    def repeated(self, _origin: Origin, **facts: object) -> None:  # type: ignore[override]
        self.repeated_serials.append(str(facts["serial"]))


class Replica:
    """A mint with a store of its own; replicas share issuer, key and database."""

    def __init__(self, store_url: str, key: SoftwareKey, clock: Callable[[], datetime]) -> None:
        self.store = Store.open(store_url)
        self.audit = Lines()
        self.roles = Roles()
        self.mint = Mint(
            roles=self.roles,  # type: ignore[arg-type]
            issuers=Issuers(software_issuer(key, timedelta(days=1))),  # type: ignore[arg-type]
            store=self.store,
            bounds=Bounds(TRUST_DOMAIN, timedelta(hours=1), timedelta(days=30)),
            audit=self.audit,
            clock=clock,
        )

    async def issue(
        self,
        request_id: str,
        *,
        body: bytes = b"body",
        by: Caller = CART,
        role: str = "svid",
        kind: str = "meshmint.v1.IssueRequest",
    ) -> Issued:
        return await self.mint.issue(
            by,
            role,
            CertificateRequest,
            origin=ORIGIN,
            deadline=Deadline.after(30),
            retryable=Retryable(request_id, kind, body),
        )

    async def recorded(self) -> list[str]:
        page = await self.store.list_records(RecordFilter(), 1000)
        return [row.serial_number for row in page.items]


@dataclass
class World:
    """Two replicas and a clock.

    Attributes:
        ahead: How far the clock is ahead.
    """

    key: SoftwareKey
    replicas: list[Replica]
    ahead: timedelta = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
async def world(store_url: str) -> AsyncIterator[World]:
    world = World(SoftwareKey(), [])
    world.replicas += [Replica(store_url, world.key, world.now) for _ in range(2)]
    await world.replicas[0].store.migrate()
    yield world
    for replica in world.replicas:
        replica.mint.close()
        await replica.store.close()


def new_id() -> str:
    return secrets.token_urlsafe(24)


async def test_the_same_request_gets_the_same_reply_at_any_replica(world: World) -> None:
    request_id = new_id()
    here, there = world.replicas
    first = await here.issue(request_id)
    again = [await replica.issue(request_id) for replica in (here, there, there)]
    assert again == [replace(first, issuer=one.issuer) for one in again]
    assert first.private_key_pem
    key = load_pem_private_key(first.private_key_pem.encode(), None)
    certificate = x509.load_pem_x509_certificate(first.certificate_pem.encode())
    assert key.public_key() == certificate.public_key()
    assert world.key.signatures == 1
    assert await here.recorded() == [first.serial_number]
    assert here.audit.granted_serials == [first.serial_number]
    assert here.audit.repeated_serials == [first.serial_number]
    assert there.audit.granted_serials == []
    assert there.audit.repeated_serials == [first.serial_number] * 2


async def test_attempts_at_once_get_one_certificate_that_is_recorded_once(world: World) -> None:
    request_id = new_id()
    world.key.delay = 0.05
    issued = await asyncio.gather(
        *(replica.issue(request_id) for replica in world.replicas for _ in range(6))
    )
    (serial,) = {one.serial_number for one in issued}
    assert len({one.private_key_pem for one in issued}) == 1
    assert len({one.certificate_pem for one in issued}) == 1
    assert await world.replicas[0].recorded() == [serial]
    granted = [line for replica in world.replicas for line in replica.audit.granted_serials]
    repeated = [line for replica in world.replicas for line in replica.audit.repeated_serials]
    assert granted == [serial]
    assert repeated == [serial] * 11


async def test_another_request_with_the_same_id_is_refused(world: World) -> None:
    request_id = new_id()
    first = await world.replicas[0].issue(request_id)
    for replica in world.replicas:
        for change in ({"body": b"other"}, {"kind": "meshmint.v1.SignRequest"}):
            with pytest.raises(InvalidRequest) as caught:
                await replica.issue(request_id, **change)  # type: ignore[arg-type]
            assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await world.replicas[0].recorded() == [first.serial_number]


async def test_another_request_with_the_same_id_at_the_same_time_is_refused(world: World) -> None:
    request_id = new_id()
    world.key.delay = 0.05
    outcomes = await asyncio.gather(
        *(
            replica.issue(request_id, body=body)
            for replica, body in zip(world.replicas, (b"one", b"other"), strict=True)
        ),
        return_exceptions=True,
    )
    (issued,) = [outcome for outcome in outcomes if isinstance(outcome, Issued)]
    (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert await world.replicas[0].recorded() == [issued.serial_number]


async def test_another_caller_with_the_same_id_gets_a_certificate_of_its_own(world: World) -> None:
    request_id = new_id()
    mine = await world.replicas[0].issue(request_id)
    theirs = await world.replicas[1].issue(request_id, by=caller("thief"))
    assert theirs.serial_number != mine.serial_number
    assert theirs.private_key_pem != mine.private_key_pem
    assert theirs.spiffe_id == "spiffe://mesh.example/ns/shop/sa/thief"
    assert await world.replicas[1].issue(request_id) == replace(mine, issuer=theirs.issuer)


async def test_a_caller_who_has_lost_the_role_gets_nothing_more(world: World) -> None:
    request_id = new_id()
    await world.replicas[0].issue(request_id)
    del world.replicas[0].roles.roles["svid"]
    with pytest.raises(RoleDenied):
        await world.replicas[0].issue(request_id)


async def test_a_caller_who_has_another_role_now_gets_nothing_of_the_one_it_had(
    world: World,
) -> None:
    request_id = new_id()
    here = world.replicas[0]
    here.roles.roles = {"svid": ROLES["svid"]}
    first = await here.issue(request_id, role="")
    here.roles.roles = {"short": ROLES["short"]}
    with pytest.raises(InvalidRequest) as caught:
        await here.issue(request_id, role="")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert await here.recorded() == [first.serial_number]
    here.roles.roles = dict(ROLES)
    assert (await here.issue(request_id, role="svid", body=b"body")).serial_number == (
        first.serial_number
    )


async def test_a_failed_attempt_leaves_the_id_free_for_the_next(world: World) -> None:
    request_id = new_id()
    world.key.fault = KeyUnavailable("the token is gone")
    with pytest.raises(KeyUnavailable):
        await world.replicas[0].issue(request_id)
    world.key.fault = None
    issued = await world.replicas[1].issue(request_id)
    # From now on the key is not needed.
    world.key.fault = KeyUnavailable("the token is gone again")
    assert (await world.replicas[0].issue(request_id)).serial_number == issued.serial_number


async def test_after_ten_minutes_the_id_is_forgotten(world: World) -> None:
    here, there = world.replicas
    request_id = new_id()
    first = await here.issue(request_id)
    world.ahead = timedelta(minutes=9, seconds=30)
    await forget_expired_replies(here.store, world.now)
    assert (await there.issue(request_id)).serial_number == first.serial_number
    world.ahead = timedelta(minutes=10, seconds=1)
    second = await there.issue(request_id)
    assert second.serial_number != first.serial_number
    assert (await here.issue(request_id)).serial_number == second.serial_number
    world.ahead = timedelta(minutes=21)
    await forget_expired_replies(here.store, world.now)
    assert await here.store.delete_expired_replies(datetime.max.replace(tzinfo=UTC), 10) == 0


async def test_a_reply_is_not_kept_longer_than_its_certificate_lives(world: World) -> None:
    request_id = new_id()
    first = await world.replicas[0].issue(request_id, role="short")
    world.ahead = timedelta(minutes=2, seconds=1)
    second = await world.replicas[1].issue(request_id, role="short")
    assert second.serial_number != first.serial_number
    assert second.not_after > first.not_after


async def test_a_role_with_no_store_keeps_nothing_and_makes_one_each_time(world: World) -> None:
    request_id = new_id()
    here = world.replicas[0]
    one, other = [await here.issue(request_id, role="unkept") for _ in range(2)]
    assert one.serial_number != other.serial_number
    assert await here.recorded() == []
    assert await here.store.delete_expired_replies(datetime.max.replace(tzinfo=UTC), 10) == 0
    with pytest.raises(InvalidRequest):
        await here.issue("short", role="unkept")


async def test_a_role_with_no_store_asks_no_store(tmp_path: Path) -> None:
    # There is a file, and nothing in it.
    replica = Replica(f"sqlite:///{tmp_path}/store.db", SoftwareKey(), lambda: datetime.now(UTC))
    assert await replica.issue(new_id(), role="unkept")
    with pytest.raises(StoreUnavailable):
        await replica.issue(new_id())
    replica.mint.close()
    await replica.store.close()


async def test_the_file_shows_neither_the_key_nor_the_id(tmp_path: Path) -> None:
    key = SoftwareKey()
    replica = Replica(f"sqlite:///{tmp_path}/store.db", key, lambda: datetime.now(UTC))
    await replica.store.migrate()
    request_id = new_id()
    issued = await replica.issue(request_id)
    contents = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    replica.mint.close()
    await replica.store.close()
    contents += (tmp_path / "store.db").read_bytes()
    assert issued.serial_number.encode() in contents
    assert issued.private_key_pem
    private_key = load_pem_private_key(issued.private_key_pem.encode(), None)
    number = private_key.private_numbers().private_value  # type: ignore[union-attr]
    der = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    secrets_of_it = [
        request_id.encode(),
        number.to_bytes(32, "big"),
        f"{number:064x}".encode(),
        der,
        *(line.encode() for line in issued.private_key_pem.splitlines()[1:-1]),
        b"PRIVATE KEY",
    ]
    for secret in secrets_of_it:
        assert secret not in contents
