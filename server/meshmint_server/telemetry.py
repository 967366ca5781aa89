"""Metrics, in Prometheus' form.

No label ever holds a SPIFFE ID, a name, a caller or a role: labels are from
small closed sets, such as what the configuration names, so that a busy mesh does
not drown its own monitoring.
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

__all__ = [
    "ADMISSIONS",
    "BUNDLE_FETCHED",
    "BUNDLE_FETCHES",
    "CRLS_MADE",
    "CRL_ENTRIES",
    "CRL_NEXT_UPDATE",
    "CRL_THIS_UPDATE",
    "IN_FLIGHT",
    "ISSUER_EXPIRY",
    "JWT_KEY_FAILURES",
    "LEADER",
    "OCSP_ANSWERS",
    "OCSP_CACHE_HITS",
    "READY",
    "REQUESTS_WAITING",
    "REVOCATIONS",
    "ROTATION_DUE",
    "ROTATION_FAILURES",
    "ROTATION_STEP",
    "ROTATION_URGENT",
    "RPC_SECONDS",
    "SIGNATURES_WAITING",
    "SIGNATURE_SECONDS",
    "STORE_SECONDS",
    "TIDIED",
    "TIDY_DONE",
    "TOKEN_CHECKS",
    "VERIFIER_SECONDS",
    "WATCHERS",
    "exposition",
]

_LATENCY: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

RPC_SECONDS: Final = Histogram(
    "meshmint_rpc_seconds",
    "Time from a request's arrival to its answer, by RPC and gRPC status code.",
    ("rpc", "code"),
    buckets=_LATENCY,
)
IN_FLIGHT: Final = Gauge(
    "meshmint_rpcs_in_flight",
    "Requests that are being worked on.",
    multiprocess_mode="livesum",
)
SIGNATURE_SECONDS: Final = Histogram(
    "meshmint_signature_seconds",
    "Time a to-be-signed certificate waits in the queue and is signed, by outcome.",
    ("outcome",),
    buckets=_LATENCY,
)
SIGNATURES_WAITING: Final = Gauge(
    "meshmint_signatures_waiting",
    "Requests that wait for the signing key.",
    multiprocess_mode="livesum",
)
ADMISSIONS: Final = Counter(
    "meshmint_admissions_total",
    "Requests for certificates at the door, by outcome: admitted, queued, turned_away, "
    "rate_limited.",
    ("outcome",),
)
REQUESTS_WAITING: Final = Gauge(
    "meshmint_requests_waiting",
    "Requests for certificates that wait for their turn.",
    multiprocess_mode="livesum",
)
STORE_SECONDS: Final = Histogram(
    "meshmint_store_seconds",
    "Time until a record is durable, by outcome.",
    ("outcome",),
    buckets=_LATENCY,
)
TOKEN_CHECKS: Final = Counter(
    "meshmint_token_checks_total",
    "Credentials checked, by authenticator and outcome.",
    ("authenticator", "outcome"),
)
VERIFIER_SECONDS: Final = Histogram(
    "meshmint_verifier_seconds",
    "Time of a request to what vouches for tokens, by authenticator, what was asked for (keys, "
    "review, pods) and outcome (answered, throttled, timed_out, failed).",
    ("authenticator", "asked_for", "outcome"),
    buckets=_LATENCY,
)
REVOCATIONS: Final = Counter(
    "meshmint_revocations_total",
    "Requests to revoke a certificate, by outcome: revoked, already_revoked, refused, failed.",
    ("outcome",),
)
WATCHERS: Final = Gauge(
    "meshmint_trust_bundle_watchers",
    "Clients that watch the trust bundle.",
    multiprocess_mode="livesum",
)
ISSUER_EXPIRY: Final = Gauge(
    "meshmint_issuer_not_after_seconds",
    "When an issuer's chain expires, in seconds since 1970.",
    ("issuer", "state"),
    multiprocess_mode="livemax",
)
BUNDLE_FETCHES: Final = Counter(
    "meshmint_bundle_fetches_total",
    "Fetches of federated trust bundles, by trust domain and outcome.",
    ("trust_domain", "outcome"),
)
BUNDLE_FETCHED: Final = Gauge(
    "meshmint_bundle_fetched_seconds",
    "When a federated trust bundle was last fetched, in seconds since 1970.",
    ("trust_domain",),
    multiprocess_mode="livemax",
)
CRL_THIS_UPDATE: Final = Gauge(
    "meshmint_crl_this_update_seconds",
    "When the oldest of an issuer's CRLs was made, in seconds since 1970, by full and delta.",
    ("issuer", "kind"),
    multiprocess_mode="livemax",
)
CRL_NEXT_UPDATE: Final = Gauge(
    "meshmint_crl_next_update_seconds",
    "When the first of an issuer's CRLs expires, in seconds since 1970, by full and delta.",
    ("issuer", "kind"),
    multiprocess_mode="livemax",
)
CRL_ENTRIES: Final = Gauge(
    "meshmint_crl_entries",
    "Certificates that an issuer's CRLs list, by full and delta.",
    ("issuer", "kind"),
    multiprocess_mode="livemax",
)
CRLS_MADE: Final = Counter(
    "meshmint_crls_made_total",
    "CRLs that were due, by outcome: published, outrun by another worker, failed to be signed.",
    ("outcome",),
)
OCSP_ANSWERS: Final = Counter(
    "meshmint_ocsp_answers_total",
    "OCSP answers, by outcome: good, revoked, unknown, or the error that was told.",
    ("outcome",),
)
OCSP_CACHE_HITS: Final = Counter(
    "meshmint_ocsp_cache_hits_total",
    "OCSP answers that were there already.",
)
JWT_KEY_FAILURES: Final = Counter(
    "meshmint_jwt_key_failures_total",
    "Steps with a key for JWT-SVIDs that the service tried by itself and that failed, by step.",
    ("step",),
)
LEADER: Final = Gauge(
    "meshmint_leader",
    "Workers that do the upkeep: one of all replicas.",
    multiprocess_mode="livesum",
)
TIDIED: Final = Counter(
    "meshmint_tidied_total",
    "Expired records and revocations that were deleted.",
    ("kind",),
)
TIDY_DONE: Final = Gauge(
    "meshmint_tidy_done_seconds",
    "When the last pass of the tidying ended, in seconds since 1970.",
    multiprocess_mode="max",
)
ROTATION_STEP: Final = Gauge(
    "meshmint_rotation_step",
    "1 for what comes next in the life of the issuer, 0 for the other steps.",
    ("step",),
    multiprocess_mode="livemostrecent",
)
ROTATION_DUE: Final = Gauge(
    "meshmint_rotation_due_seconds",
    "When that is due, in seconds since 1970; infinite where only an operator can help.",
    multiprocess_mode="livemostrecent",
)
ROTATION_URGENT: Final = Gauge(
    "meshmint_rotation_urgent",
    "1 if the issuer's successor should be signing already, and is not.",
    multiprocess_mode="livemostrecent",
)
ROTATION_FAILURES: Final = Counter(
    "meshmint_rotation_failures_total",
    "Steps of the rotation that the service tried by itself and that failed, by step.",
    ("step",),
)
READY: Final = Gauge(
    "meshmint_ready",
    "Workers whose last test signature with the real key succeeded.",
    multiprocess_mode="livesum",
)


def exposition() -> bytes:
    """The metrics of all workers of this server, in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest()
