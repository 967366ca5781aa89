"""A service whose store has grown: set up, filled, started, called and timed."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.store import Store
from support.service import TRUST_DOMAIN, Service

from growth.fill import Probe, fill_store
from growth.report import Measured

__all__ = ["GrownService", "make_probe"]

PAGE = 50
_ROLE = "probe"
_NAME = "probe.example.org"
_CALLER = ("shop", "cart")
_SVID = f"spiffe://{TRUST_DOMAIN}/ns/{_CALLER[0]}/sa/{_CALLER[1]}"
_CRL_SECONDS = 60.0

_DEEP = "a deep page"


class GrownService:
    """A `meshmintd serve` of one worker on a store with so many records, and its times.

    Args:
        directory: For the service.
        url: Of an empty store.
        size: How many records it is filled with.
        crls: How often its full CRL is made.
        progress: Told how many rows were filled in.
    """

    def __init__(
        self,
        directory: Path,
        url: str,
        size: int,
        *,
        crls: int,
        progress: Callable[[int], None],
    ) -> None:
        # Nothing of what is filled in may be tidied away meanwhile; CRLs as often as by default.
        self._service = Service(directory, store=url, workers=1, tidy={"enabled": False}, crl={})
        self._url = url
        self._size = size
        self._times: dict[str, list[float]] = defaultdict(list)
        self._serials: list[str] = []
        self._service.start()
        try:
            probe = make_probe(self._service)
        finally:
            self._service.stop()
        self._revoked = fill_store(url, size, probe, progress)
        self._crls = [self._make_crl(probe.issuer) for _ in range(crls)]
        self._lists = _lists(probe)
        self._deep_token = ""

    def _make_crl(self, issuer: str) -> tuple[float, int]:
        """Has a full CRL made, as of an issuer that has none; seconds and entries."""
        service = self._service
        asyncio.run(_delete_crls(self._url, issuer))
        service.new_log_lines()
        service.start()
        began: datetime | None = None
        try:
            ends = time.monotonic() + _CRL_SECONDS
            while time.monotonic() < ends:
                for line in service.new_log_lines():
                    if line["event"] == "this worker has taken over the upkeep":
                        began = datetime.fromisoformat(line["time"])
                    if line["event"] == "published a CRL" and line["kind"] == "full":
                        assert began is not None
                        made = datetime.fromisoformat(line["time"]) - began
                        return made.total_seconds(), int(line["entries"])
                time.sleep(0.05)
        finally:
            service.stop()
        raise TimeoutError(f"no CRL was made:\n{service.whole_log()[-2000:]}")

    def start(self) -> None:
        """Starts the service, timed, and readies its calls."""
        service = self._service
        self._time("start", service.start)
        self._metadata = tuple(service.metadata(service.token(*_CALLER)))
        self._admin = tuple(service.admin_metadata)
        if not self._deep_token:
            self._deep_token = self._walk()

    def stop(self) -> None:
        """Drains the service."""
        self._service.stop()

    @property
    def calls(self) -> tuple[str, ...]:
        """The kinds of calls, in an order in which they can be made."""
        return ("issue", "revoke", *self._lists, _DEEP)

    def call(self, kind: str, *, is_timed: bool) -> None:
        """Makes one call of a kind."""
        special = {"issue": self._issue, "revoke": self._revoke}
        call = special.get(kind) or partial(self._list, kind)
        if is_timed:
            self._time(kind, call)
        else:
            call()

    def _time(self, kind: str, call: Callable[[], None]) -> None:
        started = time.perf_counter()
        call()
        self._times[kind].append(time.perf_counter() - started)

    def _issue(self) -> None:
        request = pb.IssueRequest(role=_ROLE)
        issued = self._service.stub.Issue(request, timeout=30, metadata=self._metadata)
        self._serials.append(issued.serial_number)

    def _revoke(self) -> None:
        request = pb.RevokeRequest(serial_number=self._serials.pop())
        self._service.stub.Revoke(request, timeout=30, metadata=self._admin)

    def _list(self, kind: str) -> None:
        if kind == _DEEP:
            request = admin_pb.ListRecordsRequest(page_token=self._deep_token)
        else:
            request = admin_pb.ListRecordsRequest(filter=self._lists[kind])
        request.page_size = PAGE
        page = self._service.admin.ListRecords(request, timeout=30, metadata=self._admin)
        assert len(page.records) == PAGE, f"{kind}: {len(page.records)} records"

    def _walk(self) -> str:
        """A page token from the depth of the whole list."""
        token, passed = "", 0
        page_size = 1000 if self._size else PAGE
        while not token or passed < self._size // 10:
            request = admin_pb.ListRecordsRequest(page_size=page_size, page_token=token)
            page = self._service.admin.ListRecords(request, timeout=30, metadata=self._admin)
            token, passed = page.next_page_token, passed + len(page.records)
            page_size = min(page_size, max(PAGE, self._size // 10 - passed))
        return token

    def result(self) -> Measured:
        """The medians of all that was timed."""
        medians = {kind: statistics.median(times) for kind, times in self._times.items()}
        return Measured(
            records=self._size,
            revoked=self._revoked,
            start=medians["start"],
            issue=medians["issue"],
            revoke=medians["revoke"],
            list_by={kind: medians[kind] for kind in (*self._lists, _DEEP)},
            crl=statistics.median(seconds for seconds, _ in self._crls),
            crl_entries=self._crls[-1][1],
        )


def make_probe(service: Service) -> Probe:
    """A workload that a running service has issued to, and the role for it."""
    service.put_named_role(
        _ROLE,
        {
            "spiffe": "own", "key_type": "ec", "allowed_domains": [_NAME],
            "allow_bare_domains": True, "require_cn": False, "ttl": "1h",
        },
    )  # fmt: skip
    names = pb.CertificateNames(uris=[_SVID], dns_names=[_NAME])
    issued = service.issue(pb.IssueRequest(role=_ROLE, names=names))
    record = service.get_record(issued.serial_number)
    return Probe(
        trust_domain=TRUST_DOMAIN,
        issuer=record.issuer,
        role=_ROLE,
        authenticator=record.authenticator,
        caller=record.caller,
        spiffe_id=_SVID,
        name=_NAME,
        certificate=x509.load_pem_x509_certificate(issued.certificate.encode()).public_bytes(
            Encoding.DER
        ),
    )


def _lists(probe: Probe) -> dict[str, admin_pb.RecordFilter]:
    """Filters that find what lies scattered over the store, and nothing of what is new."""
    filled = datetime.now(UTC)

    def chosen(**fields: Any) -> admin_pb.RecordFilter:
        made = admin_pb.RecordFilter(**fields)
        made.created_before.FromDatetime(filled)
        return made

    return {
        "all": admin_pb.RecordFilter(),
        "SPIFFE ID": chosen(spiffe_id=probe.spiffe_id),
        "name": chosen(name=probe.name),
        "caller": chosen(caller=probe.caller),
        "role": chosen(role=probe.role),
        "caller, role and issuer": chosen(
            caller=probe.caller, role=probe.role, issuer=probe.issuer
        ),
        "time": chosen(),
    }


async def _delete_crls(url: str, issuer: str) -> None:
    store = Store.open(url)
    try:
        await store.delete_crls(issuer)
    finally:
        await store.close()
