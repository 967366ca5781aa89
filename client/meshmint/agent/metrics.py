"""The agent's metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshmint.agent.clock import Clock
from meshmint.agent.condition import Conditions
from meshmint.agent.holdings import Holdings

__all__ = ["Metrics"]

_PREFIX = "meshmint_agent_"


class Metrics(Collector):
    """Reads conditions and holdings whenever it is asked.

    Attributes:
        clock_steps: How often the clock was set.
    """

    def __init__(self, conditions: Conditions, holdings: Holdings, clock: Clock) -> None:
        self._conditions = conditions
        self._holdings = holdings
        self._clock = clock
        self._registry = CollectorRegistry()
        self.clock_steps = Counter(
            f"{_PREFIX}clock_steps", "How often the clock was set", registry=self._registry
        )
        self._registry.register(self)

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        now = self._clock.now()
        label = ["certificate"]

        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(_PREFIX + name, text, labels=label)

        expiry = gauge("certificate_expiry_timestamp_seconds", "When the certificate ends")
        renewal = gauge(
            "certificate_renewal_timestamp_seconds", "When it is renewed or asked for again"
        )
        failures = gauge("certificate_failures", "Failed attempts in a row")
        ready = gauge("certificate_ready", "1: valid, and its outputs are as they should be")
        renewals = CounterMetricFamily(
            _PREFIX + "certificate_renewals", "Certificates obtained", labels=label
        )
        for name, condition in self._conditions.by_name.items():
            if condition.end is not None:
                expiry.add_metric([name], condition.end.timestamp())
            if condition.renewal is not None:
                renewal.add_metric([name], condition.renewal.timestamp())
            failures.add_metric([name], condition.failures)
            ready.add_metric([name], float(not condition.why_not_ready(now)))
            renewals.add_metric([name], condition.renewals)
        yield from (expiry, renewal, failures, ready, renewals)
        sequence = GaugeMetricFamily(
            f"{_PREFIX}bundle_sequence", "Sequence of the trust bundle", labels=["trust_domain"]
        )
        _, bundles = self._holdings.bundles
        for domain, bundle in bundles.items():
            sequence.add_metric([domain], bundle.sequence)
        yield sequence
        watched = GaugeMetricFamily(
            f"{_PREFIX}bundle_watched", "1: the service's own trust bundle is being watched"
        )
        watched.add_metric([], float(not self._conditions.bundle_error))
        yield watched
