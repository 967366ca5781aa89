"""The public client of the SPIFFE Workload API (package spiffe), as a program.

    python spiffe_client.py unix:///path/of/the/socket

Reads one question a line, a JSON list, and prints one answer a line, a JSON object. In a
process of its own: its messages and ours have the same names.
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffe.svid.x509_svid import X509Svid

_PATIENCE_SECONDS = 60.0


def _svid(svid: X509Svid) -> dict[str, Any]:
    def spki(key: Any) -> bytes:
        encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return encoded

    return {
        "spiffe_id": str(svid.spiffe_id),
        "serial": svid.leaf.serial_number,
        "chain": len(svid.cert_chain),
        "key_fits": spki(svid.leaf.public_key()) == spki(svid.private_key.public_key()),
    }


class Asked:
    """Answers questions by the client; each method is one."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._client = WorkloadApiClient(socket, default_timeout=_PATIENCE_SECONDS)
        self._source: X509Source | None = None
        self._updates: queue.Queue[None] = queue.Queue()

    def svids(self) -> Any:
        """All X509-SVIDs."""
        return [_svid(one) for one in self._client.fetch_x509_svids()]

    def context(self) -> Any:
        """The default X509-SVID, and how many roots each trust domain has."""
        context = self._client.fetch_x509_context()
        return {
            "default": _svid(context.default_svid),
            "roots": {
                bundle.trust_domain.name: len(bundle.x509_authorities)
                for bundle in context.x509_bundle_set.bundles
            },
        }

    def bundles(self) -> Any:
        """How many roots each trust domain has."""
        found = self._client.fetch_x509_bundles().bundles
        return {one.trust_domain.name: len(one.x509_authorities) for one in found}

    def jwt_bundles(self) -> Any:
        """The IDs of each trust domain's keys."""
        found = self._client.fetch_jwt_bundles().bundles
        return {one.trust_domain.name: sorted(one.jwt_authorities) for one in found}

    def jwt(self, audience: str, subject: str | None = None) -> Any:
        """A JWT-SVID, and what the client makes of it."""
        given = self._client.fetch_jwt_svid({audience}, subject and SpiffeId(subject))
        keys = self._client.fetch_jwt_bundles()
        bundle = keys.get_bundle_for_trust_domain(given.spiffe_id.trust_domain)
        type(given).parse_and_validate(given.token, bundle, {audience})
        return {"spiffe_id": str(given.spiffe_id), "token": given.token}

    def validate(self, token: str, audience: str) -> Any:
        """Whose the token is, by the agent's word."""
        return {"spiffe_id": str(self._client.validate_jwt_svid(token, audience).spiffe_id)}

    def watch(self) -> Any:
        """Starts an X509Source; its first X509-SVID."""
        source = X509Source(socket_path=self._socket, timeout_in_seconds=_PATIENCE_SECONDS)
        self._source = source
        source.subscribe_for_updates(lambda: self._updates.put(None))
        return _svid(source.svid)

    def next(self, serial: int) -> Any:
        """The source's X509-SVID once it is another than the one of that serial number."""
        assert self._source is not None
        while self._source.svid.leaf.serial_number == serial:
            self._updates.get(timeout=_PATIENCE_SECONDS)
        bundle = self._source.get_bundle_for_trust_domain(
            TrustDomain(self._source.svid.spiffe_id.trust_domain.name)
        )
        return {**_svid(self._source.svid), "roots": len(bundle.x509_authorities) if bundle else 0}

    def close(self) -> Any:
        """Ends everything."""
        if self._source is not None:
            self._source.close()
        self._client.close()
        return None


def _questions() -> Iterator[list[Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _main() -> None:
    asked = Asked(sys.argv[1])
    for name, *arguments in _questions():
        try:
            answer = {"answer": getattr(asked, name)(*arguments)}
        except Exception as error:  # noqa: BLE001, the test judges it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
