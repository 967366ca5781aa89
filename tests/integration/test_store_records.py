"""Records in both databases: durable, unique, found again, listed page by page."""

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from meshmint_server.errors import InvalidRequest, StoreUnavailable
from meshmint_server.store import RecordFilter, RecordRow, Store
from meshmint_server.store.paging import encode_page_token
from meshmint_server.store.records import RecordList
from support.rows import NOON, record_row


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    await store.migrate()
    yield store
    await store.close()


async def _record(store: Store, *rows: RecordRow) -> None:
    for row in rows:
        await store.record(row)


async def _pages(store: Store, chosen: RecordFilter, size: int) -> list[tuple[RecordRow, ...]]:
    pages: list[tuple[RecordRow, ...]] = []
    token = ""
    while True:
        page = await store.list_records(chosen, size, token)
        pages.append(page.items)
        token = page.next_page_token
        if not token:
            return pages


async def test_a_record_comes_back_as_it_was(store: Store):
    row = record_row(subject='CN=ünï,O="Quote\\d"', names=("DNS:a.example", "email:é@x.example"))
    await store.record(row)
    assert await store.get_record(row.serial_number) == row


async def test_a_record_without_a_spiffe_id_comes_back_without_one(store: Store):
    row = record_row(spiffe_id=None, names=())
    await store.record(row)
    assert await store.get_record(row.serial_number) == row


async def test_a_record_is_seen_by_others_once_record_returns(store: Store, store_url: str):
    row = record_row()
    await store.record(row)
    other = Store.open(store_url)
    try:
        assert await other.get_record(row.serial_number) == row
    finally:
        await other.close()


async def test_ten_thousand_concurrent_records_are_all_there_afterwards(store: Store):
    rows = [record_row() for _ in range(10_000)]
    await asyncio.gather(*map(store.record, rows))
    kept = {row.serial_number for page in await _pages(store, RecordFilter(), 1000) for row in page}
    assert kept == {row.serial_number for row in rows}


async def test_a_batch_of_any_size_records_each_row_and_nothing_else(store: Store):
    rows: list[RecordRow] = []
    for size in (1, 2, 3, 4, 5, 8, 9, 31, 33):
        batch = [
            record_row(names=tuple(f"DNS:{place}.example" for place in range(count)))
            for count in range(size)
        ]
        await asyncio.gather(*map(store.record, batch))
        rows += batch
    kept = [row for page in await _pages(store, RecordFilter(), 1000) for row in page]
    assert kept == [replace(row, certificate=b"") for row in reversed(rows)]
    named = await _pages(store, RecordFilter(name="3.example"), 1000)
    assert [row.serial_number for page in named for row in page] == [
        row.serial_number for row in reversed(rows) if "DNS:3.example" in row.names
    ]


async def test_a_duplicate_serial_number_fails_alone(store: Store):
    rows = [record_row() for _ in range(50)]
    rows[30] = replace(rows[30], serial_number=rows[7].serial_number)
    outcomes = await asyncio.gather(*map(store.record, rows), return_exceptions=True)
    assert [index for index, outcome in enumerate(outcomes) if outcome is not True] == [30]
    refusal = outcomes[30]
    assert isinstance(refusal, StoreUnavailable)
    assert refusal.reason == "RECORD_REFUSED"
    assert await store.get_record(rows[7].serial_number) == rows[7]


async def test_a_cancelled_caller_does_not_disturb_the_others(store: Store):
    tasks = [asyncio.create_task(store.record(record_row())) for _ in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome is True for index, outcome in enumerate(outcomes) if index % 3)
    await store.record(record_row())


async def test_close_keeps_what_was_handed_over_before(store_url: str):
    store = Store.open(store_url)
    await store.migrate()
    callers = [asyncio.create_task(store.record(record_row())) for _ in range(30)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*callers)
    again = Store.open(store_url)
    assert len((await again.list_records(RecordFilter())).items) == 30
    await again.close()


async def test_a_store_may_be_closed_twice_and_unused(store_url: str):
    unused = Store.open(store_url)
    await unused.close()
    await unused.close()
    store = Store.open(store_url)
    await store.migrate()
    await store.record(record_row())
    await store.close()
    await store.close()


async def test_a_serial_number_is_found_however_it_is_spelled(store: Store):
    row = record_row(serial_number="abc01")
    await store.record(row)
    for spelling in ("0A:bC:01", "0a-bc-01", "abc01", "00000abc01", "ABC01"):
        assert await store.get_record(spelling) == row, spelling


async def test_what_is_no_serial_number_is_refused(store: Store):
    for spelling in ("", ":", "0x12", "12 34", "xyz", "ab\n", "a" * 65, "١٢"):
        with pytest.raises(InvalidRequest) as refusal:
            await store.get_record(spelling)
        assert refusal.value.violations[0].field == "serial_number", spelling


async def test_an_unknown_serial_number_finds_nothing(store: Store):
    assert await store.get_record("1234") is None


async def test_a_certificate_that_expires_before_it_was_made_is_a_bug(store: Store):
    with pytest.raises(ValueError, match="expires after it was made"):
        await store.record(record_row(created_at=NOON, not_after=NOON))


async def test_pages_come_newest_first_without_certificates_and_end(store: Store):
    rows = [record_row() for _ in range(7)]
    await _record(store, *rows)
    first = await store.list_records(RecordFilter(), 3)
    await store.record(record_row())  # what is newer does not move the pages
    second = await store.list_records(RecordFilter(), 3, first.next_page_token)
    third = await store.list_records(RecordFilter(), 3, second.next_page_token)
    assert third.next_page_token == ""
    listed = [*first.items, *second.items, *third.items]
    assert listed == [replace(row, certificate=b"") for row in reversed(rows)]


async def test_a_last_page_that_is_full_has_no_next(store: Store):
    await _record(store, *(record_row() for _ in range(4)))
    assert [len(page) for page in await _pages(store, RecordFilter(), 2)] == [2, 2]


async def test_records_of_one_microsecond_are_each_listed_once(store: Store):
    rows = [record_row(created_at=NOON) for _ in range(5)]
    await _record(store, *rows)
    listed = [row.serial_number for page in await _pages(store, RecordFilter(), 2) for row in page]
    assert listed == [row.serial_number for row in reversed(rows)]


FITS = record_row(
    created_at=NOON,
    role="db",
    caller="carol",
    authenticator="corp",
    spiffe_id="spiffe://example.org/carol",
    issuer="mesh-2",
)
SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)


FILTERS: list[tuple[RecordFilter, bool]] = [
    (RecordFilter(role="db"), True),
    (RecordFilter(role="d"), False),
    (RecordFilter(caller="carol"), True),
    (RecordFilter(caller="Carol"), False),
    (RecordFilter(authenticator="corp"), True),
    (RecordFilter(spiffe_id="spiffe://example.org/carol"), True),
    (RecordFilter(issuer="mesh-2"), True),
    (RecordFilter(issuer="mesh-3"), False),
    (RecordFilter(role="db", caller="carol", authenticator="corp", issuer="mesh-2"), True),
    (RecordFilter(role="db", caller="carol", authenticator="cluster"), False),
    (RecordFilter(role="", caller="carol"), False),
    (RecordFilter(role="db", created_from=NOON), True),
    (RecordFilter(role="db", created_from=NOON + TICK), False),
    (RecordFilter(role="db", created_before=NOON), False),
    (RecordFilter(role="db", created_before=NOON + TICK), True),
    (RecordFilter(role="db", expires_from=FITS.not_after), True),
    (RecordFilter(role="db", expires_from=FITS.not_after + TICK), False),
    (RecordFilter(role="db", expires_before=FITS.not_after), False),
    (RecordFilter(role="db", expires_before=FITS.not_after + TICK), True),
    (
        RecordFilter(
            role="db",
            created_from=NOON - SECOND,
            created_before=NOON + SECOND,
            expires_from=NOON + SECOND,
            expires_before=NOON + timedelta(days=1),
        ),
        True,
    ),
]


async def test_a_filter_lists_what_fits_and_nothing_else(store: Store):
    await _record(store, record_row(), FITS, record_row())
    for chosen, is_listed in FILTERS:
        page = await store.list_records(chosen)
        assert page.items == ((replace(FITS, certificate=b""),) if is_listed else ()), chosen
        assert page.next_page_token == ""


async def test_page_sizes_are_bounded(store: Store):
    await asyncio.gather(*(store.record(record_row()) for _ in range(1001)))
    for asked, given in [(-1, 50), (0, 50), (1, 1), (60, 60), (5000, 1000)]:
        page = await store.list_records(RecordFilter(), asked)
        assert len(page.items) == given
        assert page.next_page_token


async def test_a_page_token_holds_for_its_own_list_and_filter_alone(store: Store):
    await _record(store, *(record_row() for _ in range(3)))
    token = (await store.list_records(RecordFilter(role="web"), 1)).next_page_token
    assert (await store.list_records(RecordFilter(role="web"), 1, token)).items
    others = (RecordFilter(), RecordFilter(role="web", caller="x"), RecordFilter(caller="web"))
    for chosen in others:
        with pytest.raises(InvalidRequest) as refusal:
            await store.list_records(chosen, 1, token)
        assert refusal.value.violations[0].field == "page_token"
    with pytest.raises(InvalidRequest):
        await store.list_roles(1, token)


async def test_a_text_that_the_database_does_not_take_fails_alone(store: Store):
    rows = [record_row(caller="eve\0" if number == 3 else "alice") for number in range(8)]
    outcomes = await asyncio.gather(*map(store.record, rows), return_exceptions=True)
    guilty = outcomes.pop(3)  # PostgreSQL's text has no NUL; SQLite's has
    assert guilty is True or getattr(guilty, "reason", "") == "RECORD_REFUSED"
    assert outcomes == [True] * 7


async def test_a_text_that_no_driver_can_send_fails_alone(store: Store):
    rows = [record_row(caller="eve\ud800" if number == 3 else "alice") for number in range(8)]
    outcomes = await asyncio.gather(*map(store.record, rows), return_exceptions=True)
    guilty = outcomes.pop(3)
    assert isinstance(guilty, StoreUnavailable)
    assert guilty.reason == "RECORD_REFUSED"
    assert outcomes == [True] * 7


async def test_a_text_that_no_database_row_can_hold_is_not_found_or_refused(store: Store):
    for look in (store.get_role("\0"), store.list_records(RecordFilter(caller="\0"))):
        try:
            found = await look
        except InvalidRequest:
            continue
        assert found is None or not found.items


async def test_malformed_page_tokens_are_refused(store: Store):
    await _record(store, *(record_row() for _ in range(3)))
    token = (await store.list_records(RecordFilter(), 1)).next_page_token
    bad = ["x", "é", token[:-4], token + "AAAA", token + "\n", "=" + token, "A" * 5000, token[::-1]]
    for text in bad:
        with pytest.raises(InvalidRequest):
            await store.list_records(RecordFilter(), 1, text)


# The last is the end of the year 9999, and nothing is behind it.
@pytest.mark.parametrize("microseconds", [(1 << 63) - 1, -(1 << 63), 253_402_300_799_999_999])
async def test_a_position_outside_time_is_refused(store: Store, microseconds: int):
    scope = RecordList(RecordFilter(), 1, "").scope
    token = encode_page_token(scope, struct.pack(">qq", microseconds, 1))
    with pytest.raises(InvalidRequest):
        await store.list_records(RecordFilter(), 1, token)


async def test_sqlite_file_is_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "store.db"
    path.touch(mode=0o644)
    store = Store.open(f"sqlite:///{path}")
    await store.migrate()
    await store.record(record_row())
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    await store.close()
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
