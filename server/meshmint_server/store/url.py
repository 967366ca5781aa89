"""Store URLs: which database, and how it is reached.

Nothing here connects. A message about a URL never shows the URL: it may hold
a password, however little we ask for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

__all__ = ["InvalidStoreUrl", "PostgresUrl", "SqliteUrl", "parse_store_url"]

_FORMS = "use sqlite:////absolute/path.db or postgresql://user@host/database"


class InvalidStoreUrl(ValueError):
    """The store's URL cannot be used; the message says why, without the URL."""


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """An SQLite database file."""

    path: Path


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """A PostgreSQL database.

    Attributes:
        dsn: The URL in libpq's form, without `password_file`. Not shown by repr:
            it may hold a password.
        password_file: A file that holds the password and nothing else; it is read
            for every connection, so that it may be replaced while running.
    """

    dsn: str
    password_file: Path | None

    def __repr__(self) -> str:
        return "PostgresUrl(…)"


def parse_store_url(url: str) -> SqliteUrl | PostgresUrl:
    """Parses ``sqlite:////absolute/path.db`` or ``postgresql://user@host/database?…``.

    A PostgreSQL URL takes libpq's parameters (``host=/socket/dir``, ``sslmode``,
    ``sslrootcert``, ``passfile``, …) and ``password_file``; PGPASSFILE and
    PGPASSWORD work as they do for libpq.

    Raises:
        InvalidStoreUrl: It is anything else.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise InvalidStoreUrl(f"the store's URL has no scheme: {_FORMS}")
    if scheme == "sqlite":
        return _parse_sqlite(rest)
    if scheme in ("postgresql", "postgres"):
        return _parse_postgres(url)
    raise InvalidStoreUrl(f"the store's URL has a scheme that is not known: {_FORMS}")


def _parse_sqlite(rest: str) -> SqliteUrl:
    if "?" in rest or "#" in rest:
        raise InvalidStoreUrl("an SQLite URL takes no parameters")
    # Three slashes and a relative path would mean another file in another directory.
    if not rest.startswith("//") or rest.endswith("/"):
        raise InvalidStoreUrl("an SQLite URL has an absolute path: sqlite:////absolute/path.db")
    path = unquote(rest[1:])
    if "\x00" in path:
        raise InvalidStoreUrl("an SQLite URL has a path without NUL")
    return SqliteUrl(Path(path))


def _parse_postgres(url: str) -> PostgresUrl:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise InvalidStoreUrl("the store's PostgreSQL URL cannot be parsed") from None
    files = [value for key, value in query if key == "password_file"]
    if len(files) > 1 or any(not Path(name).is_absolute() for name in files):
        raise InvalidStoreUrl("password_file is given once, as an absolute path")
    others = urlencode([(key, value) for key, value in query if key != "password_file"])
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path, others, ""))
    if not parts.netloc:  # urlunsplit drops the empty authority of a socket URL
        dsn = "postgresql://" + dsn.removeprefix("postgresql:").removeprefix("//")
    return PostgresUrl(dsn, Path(files[0]) if files else None)
