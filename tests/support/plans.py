"""How a database would run a statement: whether it reads an index in its order, or sorts."""

from __future__ import annotations

import re
from typing import Any

from meshmint_server.store import Store
from sqlalchemy import Connection, text
from sqlalchemy.sql import Executable

__all__ = ["plan_of"]

# What is left to PostgreSQL, when an index would do, is to use it: its tables are too
# small here for it to care.
_USE_INDEXES = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_hashjoin")

_UNSERVED = re.compile(
    r"TEMP B-TREE|SCAN (?!.*USING (COVERING )?INDEX)"  # SQLite
    r"|Seq Scan|Sort|Hash|Materialize|Bitmap"  # PostgreSQL
)


async def plan_of(store: Store, statement: Executable) -> str:
    """The plan, after a check that it reads nothing but indexes, in their own order."""

    def explain(connection: Connection) -> str:
        is_sqlite = connection.dialect.name == "sqlite"
        if not is_sqlite:
            for setting in _USE_INDEXES:
                connection.execute(text(f"SET LOCAL {setting} = off"))
        compiled: Any = statement.compile(  # type: ignore[attr-defined]
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        explaining = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN"
        rows = connection.execute(text(f"{explaining} {compiled}".replace(":", r"\:")))
        return "\n".join(str(row[-1]) for row in rows)

    plan = await store.database.run(explain, writes=True)  # SET LOCAL is of a transaction
    assert not _UNSERVED.search(plan), f"{plan}\n\n{statement}"
    return plan
