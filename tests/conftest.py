"""Fixtures for every test, by topic: each module of tests/support brings its own."""

from hypothesis import settings

# One that another imports comes first.
pytest_plugins = [
    "support.softhsm",
    "support.hsm_shim",
    "support.postgres",
    "support.service",
    "support.proxies",
]

# No example has a deadline: how long one takes is the machine's affair.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
