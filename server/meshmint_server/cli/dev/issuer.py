"""The keys of a development service, made by the ceremonies that operators go through."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from meshmint_server.app import open_jwt_key_succession, open_keyring, open_store
from meshmint_server.authority import IssuerDescription, create_csr, describe, import_chain
from meshmint_server.cli.dev.root import DevelopmentRoot
from meshmint_server.cli.jwt_keys import next_key
from meshmint_server.cli.key_words import key_words
from meshmint_server.config import Config
from meshmint_server.store import IssuerState

__all__ = ["DevelopmentIssuer", "ensure_issuer", "ensure_jwt_key"]

NAME: Final = "development"


@dataclass(frozen=True, slots=True)
class DevelopmentIssuer:
    """What to show of the issuer.

    Attributes:
        description: The issuer as it is kept.
        key: How its key is held, as the token tells.
    """

    description: IssuerDescription
    key: tuple[str, ...]


async def ensure_issuer(config: Config, root: DevelopmentRoot) -> DevelopmentIssuer:
    """Makes the issuer if it is not there, and opens its key to see how it is held.

    Raises:
        MeshmintError: Key or store do not work.
    """
    async with open_store(config) as store, open_keyring(config) as keyring:
        row = await store.get_issuer(NAME)
        if row is None or row.state is IssuerState.PENDING:
            now = datetime.now(UTC)
            _, csr = await create_csr(
                store,
                keyring,
                name=NAME,
                algorithm="ec-p256",
                trust_domain=config.trust_domain,
                now=now,
            )
            row = await import_chain(
                store,
                keyring,
                [root.sign(csr), root.certificate_pem],
                now=now,
                trust_domain=config.trust_domain,
                name=NAME,
            )
        key = await keyring.open(row.key_uri, row.public_key)
        return DevelopmentIssuer(describe(row), key_words(key, await key.attributes()))


async def ensure_jwt_key(config: Config) -> None:
    """Makes the first key for JWT-SVIDs, unless there is one.

    A service makes it by itself, once it has watched its clock; nobody should wait for that here.

    Raises:
        MeshmintError: Key or store do not work.
    """
    async with open_jwt_key_succession(config) as succession:
        _, rows, _ = await succession.look()
        if not rows:
            await next_key(succession, at_once=True)
