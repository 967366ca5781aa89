"""Searching the records in both databases: what is found, and that indexes serve it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from datetime import timedelta

import pytest
from meshmint_server.errors import InvalidRequest, StoreUnavailable
from meshmint_server.store import RecordFilter, RecordRow, Store
from meshmint_server.store.records import RecordList
from support.plans import plan_of
from support.rows import NOON, record_row

SVID = "spiffe://example.org/ns/shop/sa/Cart"


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    await store.migrate()
    yield store
    await store.close()


async def _found(store: Store, **chosen: object) -> list[str]:
    page = await store.list_records(RecordFilter(**chosen))  # type: ignore[arg-type]
    return [row.serial_number for row in page.items]


async def test_a_record_is_found_by_every_name_of_every_kind(store: Store):
    row = record_row(
        spiffe_id=SVID,
        names=(
            f"URI:{SVID}", "DNS:www.example.org", "DNS:*.example.org", "IP:10.0.0.1",
            "IP:2001:db8::1", "email:ops@example.org", "URI:https://example.org/a?b=c:d",
            "other:1.3.6.1.4.1.311.20.2.3;UTF8:svc@corp;UTF8:x",
        ),
        common_name="The Shop",
    )  # fmt: skip
    await store.record(row)
    await store.record(record_row(spiffe_id=None, names=("DNS:ww.example.org",)))
    for name in (
        SVID, "www.example.org", "*.example.org", "10.0.0.1", "2001:db8::1", "ops@example.org",
        "https://example.org/a?b=c:d", "svc@corp;UTF8:x", "The Shop",
    ):  # fmt: skip
        assert await _found(store, name=name) == [row.serial_number], name
    for name in ("", "example.org", "DNS:www.example.org", "%", "w_w.example.org", "10.0.0.10"):
        assert await _found(store, name=name) == [], name


async def test_a_name_is_found_in_any_case_and_an_address_in_any_spelling(store: Store):
    row = record_row(
        spiffe_id=SVID,
        names=(f"URI:{SVID}", "DNS:www.example.org", "IP:2001:db8::1"),
        common_name="Straße",
    )
    await store.record(row)
    for name in ("WWW.Example.org", "2001:0DB8:0:0::1", "sTRAßE"):
        assert await _found(store, name=name) == [row.serial_number], name
    # SPIFFE IDs differ by case (SPIFFE-ID section 2.2).
    assert await _found(store, name=SVID.lower()) == []


async def test_a_common_name_that_is_a_san_too_lists_the_record_once(store: Store):
    row = record_row(names=("DNS:www.example.org",), common_name="www.example.org")
    await store.record(row)
    assert await _found(store, name="www.example.org") == [row.serial_number]


async def test_names_are_listed_newest_first_in_pages_and_with_other_filters(store: Store):
    rows = [
        record_row(names=("DNS:www.example.org",), caller="alice" if number % 2 else "bob")
        for number in range(9)
    ]
    for row in rows:
        await store.record(row)
        await store.record(record_row(names=("DNS:other.example.org",), caller="alice"))
    chosen = RecordFilter(name="www.example.org", caller="alice")
    first = await store.list_records(chosen, 3)
    second = await store.list_records(chosen, 3, first.next_page_token)
    assert second.next_page_token == ""
    listed = [row.serial_number for row in (*first.items, *second.items)]
    assert listed == [row.serial_number for row in rows[::-1] if row.caller == "alice"]
    with pytest.raises(InvalidRequest):
        await store.list_records(replace(chosen, name="w"), 3, first.next_page_token)
    narrow = {"name": "www.example.org", "created_from": rows[3].created_at}
    assert await _found(store, **narrow, created_before=rows[4].created_at) == [
        rows[3].serial_number
    ]


async def test_a_spiffe_id_given_as_a_name_and_another_as_such_find_nothing(store: Store):
    await store.record(record_row(spiffe_id=SVID, names=(f"URI:{SVID}",)))
    assert len(await _found(store, name=SVID, spiffe_id=SVID)) == 1
    assert await _found(store, name=SVID, spiffe_id=f"{SVID}2") == []


async def test_a_batch_gives_every_name_to_its_own_record(store: Store):
    rows = [record_row(names=(f"DNS:h{number}.example.org",)) for number in range(300)]
    await asyncio.gather(*map(store.record, rows))
    for number in (0, 7, 299):
        assert await _found(store, name=f"h{number}.example.org") == [rows[number].serial_number]


async def test_a_name_that_no_index_holds_is_recorded_and_not_searched(store: Store):
    rows = [record_row(names=(f"URI:https://example.org/{'x' * 9000}",)), record_row()]
    outcomes = await asyncio.gather(*map(store.record, rows), return_exceptions=True)
    assert outcomes == [True, True]
    assert await store.get_record(rows[0].serial_number) == rows[0]


async def test_a_caller_that_no_index_holds_fails_alone(store: Store):
    # Of letters without a pattern, so that PostgreSQL cannot make it shorter.
    long = "".join(record_row().serial_number for _ in range(200))
    rows = [record_row(), record_row(caller=long), record_row()]
    outcomes = await asyncio.gather(*map(store.record, rows), return_exceptions=True)
    guilty = outcomes.pop(1)
    assert guilty is True or isinstance(guilty, StoreUnavailable)
    assert getattr(guilty, "reason", "RECORD_REFUSED") == "RECORD_REFUSED"
    assert outcomes == [True, True]


EACH = {
    "role": "web",
    "caller": "alice",
    "authenticator": "cluster",
    "spiffe_id": SVID,
    "issuer": "mesh-1",
    "name": "www.example.org",
    "created_from": NOON,
    "created_before": NOON + timedelta(days=1),
    "expires_from": NOON,
    "expires_before": NOON + timedelta(days=1),
}


async def test_every_filter_is_served_by_an_index_in_the_order_of_the_list(store: Store):
    assert set(EACH) == {field.name for field in fields(RecordFilter)}
    for name, value in EACH.items():
        for others in ({}, {"created_from": NOON}, EACH):
            chosen = RecordFilter(**{**others, name: value})  # type: ignore[arg-type]
            for token in ("", await _token(store, chosen)):
                plan = await plan_of(store, RecordList(chosen, 50, token).statement())
                if others is not EACH:
                    assert _index_of(name) in plan, plan
    plan = await plan_of(store, RecordList(RecordFilter(), 50, "").statement())
    assert "records_newest" in plan


async def test_the_most_selective_of_several_filters_leads(store: Store):
    order = ["name", "spiffe_id", "caller", "role", "issuer", "authenticator"]
    for number, name in enumerate(order):
        chosen = RecordFilter(**{other: EACH[other] for other in order[number:]})  # type: ignore[arg-type]
        plan = await plan_of(store, RecordList(chosen, 50, "").statement())
        assert _index_of(name) in plan, plan


def _index_of(name: str) -> str:
    if name == "name":
        return "record_names"
    return f"records_{name}" if isinstance(EACH[name], str) else "records_newest"


async def _token(store: Store, chosen: RecordFilter) -> str:
    """A token from the middle of such a list, whatever the list holds."""
    rows: list[RecordRow] = [
        record_row(
            caller="alice", spiffe_id=SVID, names=("DNS:www.example.org",),
            created_at=NOON + timedelta(minutes=1),
        )
        for _ in range(2)
    ]  # fmt: skip
    for row in rows:
        await store.record(row)
    token = (await store.list_records(chosen, 1)).next_page_token
    assert token
    return token
