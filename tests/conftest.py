"""Fixtures for every test, by topic: each module of tests/support brings its own."""

pytest_plugins = [
    "support.postgres",
    "support.service",
    "support.softhsm",
]
