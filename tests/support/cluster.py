"""A Kubernetes cluster as an authenticator sees it: tokens, an API server, and mounted files."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meshmint_server.authn import Authenticators, Clock, KubernetesSettings
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import Answer, IdentityServer, TestCa, TokenIssuer

__all__ = ["Cluster", "running_cluster"]

REVIEW = IdentityServer.TOKEN_REVIEW


@dataclass
class Cluster:
    """A cluster: its token issuer, its API server, and our files in it."""

    issuer: TokenIssuer
    ca: TestCa
    server: IdentityServer
    ca_file: Path
    token_file: Path
    skipped: float = 0.0
    stopped_at: float | None = None

    def stop_clock(self) -> None:
        """From now on only `skipped` moves the clock that pauses and limits count in."""
        self.stopped_at = time.monotonic()

    def monotonic(self) -> float:
        """What that clock shows."""
        return self.skipped + (time.monotonic() if self.stopped_at is None else self.stopped_at)

    @asynccontextmanager
    async def authenticators(self, **changes: Any) -> AsyncIterator[Authenticators]:
        settings = KubernetesSettings(
            **{
                "name": "cluster",
                "issuer": self.issuer.issuer,
                "audiences": ("meshmint", "meshmint.example.org"),
                "mode": "token_review",
                "api_server": self.server.url,
                "ca_file": self.ca_file,
                "reviewer_token_file": self.token_file,
                **changes,
            }
        )
        clock = Clock(monotonic=self.monotonic)
        built = Authenticators.build([settings], TrustDomain("example.org"), clock=clock)
        try:
            yield built
        finally:
            await built.close()

    def lie(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Makes the reviewer change the status that it would honestly give."""

        def lying(honest: Answer) -> Answer:
            body = deepcopy(honest.body)
            change(body["status"])
            return replace(honest, body=body)

        self.server.faults[REVIEW] = lying


@contextmanager
def running_cluster(directory: Path) -> Iterator[Cluster]:
    """A cluster whose API server takes the reviewer token "reviewer-1"."""
    ca = TestCa(directory)
    issuer = TokenIssuer(directory)
    ca_file, token_file = directory / "ca.crt", directory / "token"
    ca_file.write_bytes(ca.pem)
    token_file.write_text("reviewer-1\n")
    with IdentityServer(issuer, ca, reviewer_token="reviewer-1") as server:
        yield Cluster(issuer, ca, server, ca_file, token_file)
