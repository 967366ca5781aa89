"""What callers hold, against what the store has: is anything lost, is anything there twice?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from meshmint_server.store import Store
from meshmint_server.store.schema import records
from sqlalchemy import Connection, select
from support.callers import Held

__all__ = ["Reconciliation", "reconcile"]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The outcome.

    Attributes:
        issued: Certificates that callers hold.
        lost: Those of them that are not on record, byte for byte.
        doubled: Serial numbers that two certificates have, held or on record, and requests
            that two certificates were made for.
        unclaimed: Certificates on record that no caller got, because the answer was lost.
    """

    issued: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    unclaimed: int


async def reconcile(url: str, held: Iterable[Held], role: str) -> Reconciliation:
    """Compares; `role` is what `put_callers_role` made, and nobody else used.

    Args:
        url: The store.
        held: What all callers hold.
        role: Whose records are looked at.
    """

    def read(connection: Connection) -> list[tuple[str, bytes, tuple[str, ...]]]:
        wanted = select(records.c.serial_number, records.c.certificate, records.c.names)
        found = connection.execute(wanted.where(records.c.role == role))
        return [(serial, bytes(der), tuple(names)) for serial, der, names in found]

    store = Store.open(url)
    try:
        recorded = await store.database.run(read)
    finally:
        await store.close()
    return compare(list(held), recorded)


def compare(held: list[Held], recorded: list[tuple[str, bytes, tuple[str, ...]]]) -> Reconciliation:
    """Compares what is held with rows of serial number, certificate and names."""
    known = {serial: der for serial, der, _ in recorded}
    twice = [
        *_repeated(one.serial_number for one in held),
        *_repeated(serial for serial, _, _ in recorded),
        *_repeated(" ".join(names) for _, _, names in recorded),
    ]
    return Reconciliation(
        issued=len(held),
        lost=tuple(
            one.serial_number for one in held if known.get(one.serial_number) != one.certificate
        ),
        doubled=tuple(twice),
        unclaimed=len(known.keys() - {one.serial_number for one in held}),
    )


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
