"""Fixtures for every test, by topic: each module of tests/support brings its own."""

# One that another imports comes first.
pytest_plugins = [
    "support.softhsm",
    "support.hsm_shim",
    "support.postgres",
    "support.service",
    "support.proxies",
]
