"""What an agent decides, by its own code, in seconds that a simulation counts.

Nothing is decided here. When to renew, how often a call is tried, how long a pause is, when a
connection is made again: each comes from `meshmint`, so that the plot changes when that does.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random

from meshmint.agent.config import RenewalSettings, ServerSettings
from meshmint.agent.plan import Validity, pause, renewal_time
from meshmint.errors import MeshmintError, Unavailable
from meshmint.retry import Attempts
from meshmint.settings import Settings

__all__ = ["Agent"]

# Plans are made from differences alone.
_START = datetime(2030, 1, 1, tzinfo=UTC)
_AWAY = Unavailable("")


class Agent:
    """How every agent of a fleet decides.

    Args:
        renewal: Its settings.
        lifetime: Of its certificates, seconds.
        chance: Where it draws from.
        clock: Tells the second.
    """

    def __init__(
        self, renewal: RenewalSettings, lifetime: float, chance: Random, clock: Callable[[], float]
    ) -> None:
        self._renewal = renewal
        self._validity = Validity(_START, _START + timedelta(seconds=lifetime))
        self._chance = chance
        self._clock = clock
        timeout = ServerSettings.model_fields["timeout"].default.total_seconds()
        self._client = Settings.of(
            "localhost:1", token=None, root_certificates=None, insecure=True, timeout=timeout,
            retry=None, client_certificate=None, server_name=None, options=(),
        )  # fmt: skip
        self._in_vain: list[float] = []
        options = dict(self._client.transport.options)
        self._longest_reconnect = float(options["grpc.max_reconnect_backoff_ms"]) / 1000

    def renews_after(self) -> float:
        """Seconds from when it gets a certificate until it asks for the next one."""
        moment = renewal_time(self._validity, self._renewal, self._chance.random())
        return (moment - _START).total_seconds()

    def call(self) -> Attempts:
        """The attempts of a call that begins now."""
        client = self._client
        return Attempts(client.retry, client.timeout, clock=self._clock, draw=self._chance.uniform)

    def call_in_vain(self) -> float:
        """Seconds that a call lasts while the service is away: one of a thousand."""
        if not self._in_vain:
            self._in_vain = [self._call_in_vain() for _ in range(1000)]
        return self._chance.choice(self._in_vain)

    def _call_in_vain(self) -> float:
        lasted = 0.0
        client = self._client
        attempts = Attempts(
            client.retry, client.timeout, clock=lambda: lasted, draw=self._chance.uniform
        )
        while (wait := attempts.pause_after(_AWAY)) is not None:
            lasted += wait
        return lasted

    def pause(self, failures: int, age: float | None, error: MeshmintError) -> float:
        """Seconds until the next call after one that failed.

        Args:
            failures: How many have failed in a row.
            age: Seconds since it got its certificate; None if it has none.
            error: Why it failed.
        """
        validity = None if age is None else self._validity
        now = _START + timedelta(seconds=age or 0.0)
        wait = pause(failures, validity, now, self._chance.uniform, asked_for=error.retry_after)
        return wait.total_seconds()

    def reconnects_after(self) -> float:
        """Seconds from when a service is back until its channel looks again."""
        return self._chance.uniform(0.0, self._longest_reconnect)
