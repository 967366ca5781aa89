"""Which store URLs are taken, and that none is ever shown."""

from pathlib import Path

import pytest
from meshmint_server.store.url import InvalidStoreUrl, PostgresUrl, SqliteUrl, parse_store_url


def test_sqlite_url_names_an_absolute_path():
    assert parse_store_url("sqlite:////var/lib/mesh%20mint/store.db") == SqliteUrl(
        Path("/var/lib/mesh mint/store.db")
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "store.db",
        "sqlite://",
        "sqlite:///store.db",
        "sqlite:///:memory:",
        "sqlite:////var/lib/",
        "sqlite:////var/store.db?mode=memory",
        "sqlite:////var/store%00.db",
        "mysql://user:hunter2@host/db",
        "postgresql+psycopg://user:hunter2@host/db",
        "postgresql://user:hunter2@[host/db",
        "postgresql://user:hunter2@host/db?password_file=relative",
        "postgresql://user:hunter2@host/db?password_file=/a&password_file=/b",
        "postgresql://user:hunter2@host/db?nonsense",
    ],
)
def test_other_urls_are_refused_without_being_shown(url: str):
    with pytest.raises(InvalidStoreUrl) as refusal:
        parse_store_url(url)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None


def test_postgresql_url_keeps_its_parameters_but_the_password_file():
    url = parse_store_url(
        "postgres://mm@db.example:6432/meshmint?sslmode=verify-full&password_file=/run/secret"
    )
    assert isinstance(url, PostgresUrl)
    assert url.password_file == Path("/run/secret")
    assert url.dsn == "postgresql://mm@db.example:6432/meshmint?sslmode=verify-full"


def test_postgresql_url_without_a_host_keeps_its_empty_authority():
    url = parse_store_url("postgresql:///meshmint?host=/run/postgresql")
    assert isinstance(url, PostgresUrl)
    assert url.dsn == "postgresql:///meshmint?host=%2Frun%2Fpostgresql"


def test_a_password_in_the_url_is_not_in_its_repr():
    assert "hunter2" not in repr(parse_store_url("postgresql://mm:hunter2@db/meshmint"))
