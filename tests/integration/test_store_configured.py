"""Roles and issuers in both databases, and the revisions that tell of a change."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from meshmint_server.errors import InvalidRequest
from meshmint_server.store import IssuerState, JwtKeyRow, JwtKeyState, RoleRow, Store
from support.rows import NOON, issuer_row, record_row


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def other(store: Store, store_url: str) -> AsyncIterator[Store]:
    """Another process's view of the same database."""
    other = Store.open(store_url)
    yield other
    await other.close()


async def test_a_role_is_put_replaced_and_deleted(store: Store):
    assert await store.get_role("web") is None
    await store.put_role(RoleRow("web", '{"a":1}'))
    await store.put_role(RoleRow("web", '{"a":2,"ü":"%"}'))
    assert await store.get_role("web") == RoleRow("web", '{"a":2,"ü":"%"}')
    assert await store.delete_role("web") is True
    assert await store.delete_role("web") is False
    assert await store.get_role("web") is None


async def test_the_revision_of_roles_grows_with_every_change_and_with_nothing_else(store: Store):
    revisions = [await store.roles_revision()]
    await store.put_role(RoleRow("web", "{}"))
    revisions.append(await store.roles_revision())
    await store.put_role(RoleRow("web", '{"a":1}'))
    revisions.append(await store.roles_revision())
    await store.delete_role("web")
    revisions.append(await store.roles_revision())
    assert revisions == sorted(set(revisions))
    await store.put_role(RoleRow("db", "{}"))
    settled = await store.roles_revision()
    await store.put_role(RoleRow("db", "{}"))
    await store.delete_role("web")
    await store.put_issuer(issuer_row())
    assert await store.roles_revision() == settled
    assert await store.load_roles() == (settled, (RoleRow("db", "{}"),))


async def test_roles_are_listed_by_name_bytewise_in_pages(store: Store):
    names = ["Zulu", "a-b", "a.b", "a_b", "ab", "zoë"]
    for name in reversed(names):
        await store.put_role(RoleRow(name, "{}"))
    seen: list[str] = []
    token = ""
    while True:
        page = await store.list_roles(2, token)
        seen += [row.name for row in page.items]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(names, key=lambda name: name.encode())
    assert [row.name for row in (await store.load_roles())[1]] == seen


async def test_concurrent_changes_of_roles_all_count(store: Store, other: Store):
    before = await store.roles_revision()
    await asyncio.gather(
        *(
            (store if number % 2 else other).put_role(RoleRow(f"r{number % 4}", f"{number}"))
            for number in range(20)
        )
    )
    assert await store.roles_revision() == before + 20
    assert len((await store.list_roles()).items) == 4


async def test_an_issuer_comes_back_as_it_was(store: Store):
    row = issuer_row(
        certificate=b"\x00\x01cert",
        chain=(b"\xff\x00", b"two"),
        roots=(b"root",),
        state=IssuerState.NEXT,
    )
    await store.put_issuer(row)
    assert await store.get_issuer("mesh-1") == row
    assert (await store.list_issuers()).items == (row,)
    assert await store.get_issuer("mesh-2") is None


async def test_of_changes_of_issuers_at_one_revision_one_is_made(store: Store, other: Store):
    revision, _ = await store.load_issuers()
    rows = [issuer_row(name=f"mesh-{number}") for number in range(6)]
    written = await asyncio.gather(
        *(
            (store if n % 2 else other).put_issuer(row, at_revision=revision)
            for n, row in enumerate(rows)
        )
    )
    assert sum(written) == 1
    assert await store.load_issuers() == (revision + 1, (rows[written.index(True)],))


async def test_of_changes_of_issuers_and_keys_at_one_revision_one_is_made(
    store: Store, other: Store
):
    revision, _ = await store.load_issuers()
    key = JwtKeyRow("k", JwtKeyState.NEXT, "pkcs11:token=t", b"spki", NOON, published_at=NOON)
    written = await asyncio.gather(
        store.put_issuer(issuer_row(), at_revision=revision),
        *(
            (store if n % 2 else other).put_jwt_key(
                replace(key, key_id=f"k{n}"), at_revision=revision
            )
            for n in range(5)
        ),
    )
    assert sum(written) == 1
    _, rows = await store.load_jwt_keys()
    assert len(rows) == sum(written[1:])
    assert await store.issuers_revision() == revision + 1


async def test_a_key_comes_back_as_it_was_and_retires_the_one_before(store: Store):
    times = {"published_at": NOON, "activated_at": NOON + timedelta(hours=1)}
    one = JwtKeyRow("a", JwtKeyState.ACTIVE, "pkcs11:token=t", b"one", NOON, **times)
    two = replace(one, key_id="b", created_at=NOON + timedelta(days=1), activated_at=later())
    for row in (one, two):
        assert await store.put_jwt_key(row, at_revision=await store.issuers_revision())
    revision, rows = await store.load_jwt_keys()
    assert revision == await store.issuers_revision()
    assert rows == (replace(one, state=JwtKeyState.RETIRED, retired_at=later()), two)


def later() -> datetime:
    return NOON + timedelta(days=2)


async def test_a_failure_is_noted_without_telling_every_worker(store: Store):
    await store.put_issuer(issuer_row())
    revision, _ = await store.load_issuers()
    await store.note_issuer_failure("mesh-1", "no answer")
    assert await store.load_issuers() == (revision, (issuer_row(last_failure="no answer"),))
    await store.note_issuer_failure("mesh-1", None)
    assert await store.get_issuer("mesh-1") == issuer_row()


async def test_the_latest_expiry_is_of_one_issuers_certificates(store: Store):
    assert await store.latest_expiry("mesh-1", besides_role="responder") is None
    rows = [record_row(issuer=f"mesh-{1 + number % 2}") for number in range(6)]
    for row in rows:
        await store.record(row)
    await store.record(record_row(issuer="mesh-1", role="responder"))
    assert await store.latest_expiry("mesh-1", besides_role="responder") == rows[4].not_after
    assert await store.latest_expiry("mesh-2", besides_role="responder") == rows[5].not_after


async def test_activating_an_issuer_retires_the_one_before(store: Store):
    first = issuer_row(state=IssuerState.ACTIVE)
    before = await store.issuers_revision()
    await store.put_issuer(first)
    await store.put_issuer(replace(first, name="mesh-2"))
    revision, rows = await store.load_issuers()
    assert {row.name: row.state for row in rows} == {
        "mesh-1": IssuerState.RETIRED,
        "mesh-2": IssuerState.ACTIVE,
    }
    assert revision == await store.issuers_revision() == before + 2


async def test_there_is_never_more_than_one_active_issuer(store: Store, other: Store):
    await asyncio.gather(
        *(
            (store if n % 2 else other).put_issuer(
                issuer_row(name=f"mesh-{n}", state=IssuerState.ACTIVE)
            )
            for n in range(8)
        )
    )
    states = [row.state for row in (await store.load_issuers())[1]]
    assert sorted(states) == [IssuerState.ACTIVE] + [IssuerState.RETIRED] * 7


async def test_a_page_token_of_issuers_is_none_of_roles(store: Store):
    await store.put_issuer(issuer_row())
    await store.put_issuer(issuer_row(name="mesh-2"))
    token = (await store.list_issuers(1)).next_page_token
    assert [row.name for row in (await store.list_issuers(1, token)).items] == ["mesh-2"]
    with pytest.raises(InvalidRequest):
        await store.list_roles(1, token)
