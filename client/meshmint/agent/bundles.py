"""Watches the trust bundles, the service's own and those it federates with.

A new bundle is published at once; what cannot be watched keeps what it had last. A
bundle never waits for a certificate, and no trust domain for another.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from meshmint.agent.identities import Bundle
from meshmint.agent.kept import Unusable
from meshmint.agent.log import Log
from meshmint.agent.parts import Parts
from meshmint.agent.tasks import begin, end
from meshmint.errors import MeshmintError
from meshmint.results import TrustBundle

__all__ = ["BundleWatch", "bundle_of"]

_LONGEST_PAUSE = 30.0


def bundle_of(watched: TrustBundle) -> Bundle:
    """What is handed out of a bundle that was watched."""
    return Bundle(
        watched.trust_domain, watched.trust_bundle, watched.jwt_keys.encode(), watched.sequence
    )


class BundleWatch:
    """Watches for as long as it runs.

    Args:
        parts: What the agent's tasks share.
    """

    def __init__(self, parts: Parts) -> None:
        self._connection = parts.connection
        self._holdings = parts.holdings
        self._state = parts.state
        self._clock = parts.clock
        self._conditions = parts.conditions
        self._draw = parts.draw
        self._log = Log()
        self._federated: dict[str, asyncio.Task[None]] = {}
        self._saving = asyncio.Lock()

    async def restore(self) -> None:
        """Takes the bundles that were kept; asks nobody."""
        try:
            bundles = await asyncio.to_thread(self._state.load_bundles)
        except Unusable as error:
            self._log.warning("the kept trust bundles cannot be used", reason=str(error))
            return
        if bundles is not None:
            self._holdings.restore(bundles, self._clock.now())

    async def once(self) -> MeshmintError | None:
        """Gets every bundle once; tells why the own one cannot be had."""
        try:
            own = await self._first("")
            await self._take(own, is_own=True)
            self._holdings.drop_bundles(own.federated_trust_domains, self._clock.now())
            for domain in own.federated_trust_domains:
                try:
                    await self._take(await self._first(domain), is_own=False)
                except MeshmintError as error:
                    self._failed(domain, error)
        except MeshmintError as error:
            self._failed("", error)
            return error
        return None

    async def _first(self, domain: str) -> TrustBundle:
        client = await self._connection.client()
        async with contextlib.aclosing(client.watch_trust_bundle(domain)) as bundles:
            return await anext(bundles)

    async def run(self) -> None:
        """Watches, for ever."""
        try:
            await self._watch("")
        finally:
            await end(self._federated.values())
            self._federated.clear()

    async def _watch(self, domain: str) -> None:
        failures = 0
        while True:
            try:
                client = await self._connection.client()
                async with contextlib.aclosing(client.watch_trust_bundle(domain)) as bundles:
                    async for bundle in bundles:
                        failures = 0
                        await self._take(bundle, is_own=not domain)
                        if not domain:
                            self._conditions.bundle_error = ""
                            await self._federate(bundle.federated_trust_domains)
                # The client was closed: there is another.
            except MeshmintError as error:
                failures += 1
                self._failed(domain, error)
                limit = min(_LONGEST_PAUSE, 2.0 ** min(failures - 1, 16))
                await asyncio.sleep(self._draw(0.0, limit))

    async def _take(self, watched: TrustBundle, *, is_own: bool) -> None:
        bundle = bundle_of(watched)
        if not self._holdings.hold_bundle(bundle, is_own=is_own, now=self._clock.now()):
            return
        self._log.info(
            "trust bundle",
            trust_domain=bundle.trust_domain,
            sequence=bundle.sequence,
            roots=len(bundle.roots),
        )
        await self._save()

    async def _save(self) -> None:
        async with self._saving:
            try:
                await asyncio.to_thread(self._state.save_bundles, self._holdings.bundles)
            except OSError as error:
                self._log.error(
                    "the trust bundles cannot be kept over a restart: mend state_dir",
                    reason=error.strerror or str(error),
                    path=self._state.path,
                )

    async def _federate(self, domains: tuple[str, ...]) -> None:
        for domain in self._federated.keys() - set(domains):
            await end([self._federated.pop(domain)])
        if self._holdings.drop_bundles(domains, self._clock.now()):
            await self._save()
        for domain in domains:
            if domain not in self._federated:
                watch = partial(self._watch, domain)
                self._federated[domain] = begin(f"trust bundle of {domain}", watch)

    def _failed(self, domain: str, error: MeshmintError) -> None:
        self._log.warning(
            "the trust bundle cannot be watched; the last one stays",
            trust_domain=domain or self._holdings.own_trust_domain,
            code=error.code,
            reason=error.reason,
            error=str(error),
        )
        if not domain:
            self._conditions.bundle_error = f"{error.code}: {error}"
            self._conditions.changed()
