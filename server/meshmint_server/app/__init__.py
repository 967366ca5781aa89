"""The composition root: configuration in, running listeners out.

Nothing else builds objects from the configuration. One worker is one process
with its own login to the token, its own database pool and its own event loop.
"""

from meshmint_server.app.jwt_svids import jwt_key_rules, open_jwt_key_succession
from meshmint_server.app.openers import open_keyring, open_store, open_store_as_it_is
from meshmint_server.app.parent import signalled_at_end_of_parent
from meshmint_server.app.succession import build_upstream, open_succession, rotation_rules
from meshmint_server.app.worker import EXIT_CONFIG, run_worker

__all__ = [
    "EXIT_CONFIG",
    "build_upstream",
    "jwt_key_rules",
    "open_jwt_key_succession",
    "open_keyring",
    "open_store",
    "open_store_as_it_is",
    "open_succession",
    "rotation_rules",
    "run_worker",
    "signalled_at_end_of_parent",
]
