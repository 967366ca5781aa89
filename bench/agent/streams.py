"""The client of `make bench-agent`, a process of its own: opens streams, and notes what they read.

A message is kept as it came, with the time; what is in it is looked at when somebody asks.
It speaks JSON lines on stdin and stdout with the process that measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from meshmint.third_party.envoy.service.discovery.v3 import discovery_pb2
from meshmint.third_party.spiffe import workload_pb2

__all__ = ["main", "root_mark", "serial_mark"]

_SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"
_WORKLOAD = "/SpiffeWorkloadAPI/"
_WORKLOAD_REQUESTS: Mapping[str, Any] = {
    "FetchX509SVID": workload_pb2.X509SVIDRequest,
    "FetchX509Bundles": workload_pb2.X509BundlesRequest,
    "FetchJWTBundles": workload_pb2.JWTBundlesRequest,
}
_HEADER = (("workload.spiffe.io", "true"),)
_PATIENCE_SECONDS = 60.0
# Each channel has a connection of its own.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


def serial_mark(serial_number: str) -> str:
    """How a certificate is recognised in a message."""
    return f"serial {serial_number}"


def root_mark(root: x509.Certificate) -> str:
    """How a root is recognised in a message."""
    return f"root {root.fingerprint(hashes.SHA256()).hex()}"


@dataclass(slots=True, eq=False)
class _Open:
    """One stream that is open."""

    method: str
    names: Sequence[str]
    watches: frozenset[str]
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    messages: int = 0
    bytes: int = 0


class _Client:
    def __init__(self) -> None:
        self._streams: list[_Open] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._channels: list[grpc.aio.Channel] = []
        self._heard_at = time.time()
        self._marks: dict[tuple[str, bytes], frozenset[str]] = {}
        # Of all who listen to one socket many are sent the same: it is kept once.
        self._last: dict[tuple[str, str], bytes] = {}

    async def open(self, connections: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Opens all streams at once; returns when each has read its first message."""
        began = time.time()
        for connection in connections:
            channel = grpc.aio.insecure_channel(f"unix:{connection['path']}", _OPTIONS)
            self._channels.append(channel)
            for one in connection["streams"]:
                stream = _Open(one["method"], one["names"], frozenset(one["watches"]))
                self._streams.append(stream)
                read = self._read_sds if stream.names else self._read_workload
                self._tasks.append(
                    asyncio.create_task(read(channel, stream, str(connection["path"])))
                )
        while not all(stream.messages for stream in self._streams):
            self._raise_faults()
            await asyncio.sleep(0.02)
        last = max(stream.arrivals[0][0] for stream in self._streams)
        return {"streams": len(self._streams), "seconds": last - began}

    async def quiet(self, after: float, seconds: float) -> dict[str, Any]:
        """Returns when something was read after a moment, and then nothing for so long."""
        give_up_at = time.time() + _PATIENCE_SECONDS
        while self._heard_at < after or time.time() < self._heard_at + seconds:
            self._raise_faults()
            if time.time() > give_up_at:
                raise TimeoutError("the streams read nothing, or do not come to an end")
            await asyncio.sleep(seconds / 10)
        return {}

    async def forget(self) -> dict[str, Any]:
        """Forgets what was read so far."""
        for stream in self._streams:
            stream.arrivals.clear()
            stream.messages = stream.bytes = 0
        self._marks.clear()
        return {}

    async def read(self, marks: Mapping[str, str]) -> dict[str, Any]:
        """When what is watched was read with a mark in it, since `forget`.

        Returns:
            By what is watched: how many streams watch it, how many have read the mark, and when
            the last one did. Then how many streams watch any of it, and what all have read.
        """
        found: dict[str, Any] = {}
        by_watch: dict[str, list[_Open]] = {watch: [] for watch in marks}
        for stream in self._streams:
            for watch in stream.watches & marks.keys():
                by_watch[watch].append(stream)
        for watch, mark in marks.items():
            times = [
                at for stream in by_watch[watch] if (at := self._first(stream, mark)) is not None
            ]
            found[watch] = {
                "streams": len(by_watch[watch]),
                "read": len(times),
                "last": max(times, default=None),
            }
        return {
            "watched": found,
            "streams": sum(bool(stream.watches & marks.keys()) for stream in self._streams),
            "messages": sum(stream.messages for stream in self._streams),
            "bytes": sum(stream.bytes for stream in self._streams),
        }

    def _first(self, stream: _Open, mark: str) -> float | None:
        for at, message in stream.arrivals:
            key = (stream.method, message)
            if key not in self._marks:
                self._marks[key] = frozenset(_MARKS[stream.method](message))
            if mark in self._marks[key]:
                return at
        return None

    async def close(self) -> None:
        """Ends all streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()

    def _raise_faults(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
                raise EOFError("the agent has ended a stream")

    def _note(self, stream: _Open, message: bytes, path: str) -> None:
        self._heard_at = now = time.time()
        if not stream.names:
            message = self._shared(message, (path, stream.method))
        stream.arrivals.append((now, message))
        stream.messages += 1
        stream.bytes += len(message)

    def _shared(self, message: bytes, key: tuple[str, str]) -> bytes:
        if (last := self._last.get(key)) == message:
            return last
        self._last[key] = message
        return message

    async def _read_workload(self, channel: grpc.aio.Channel, stream: _Open, path: str) -> None:
        request = _WORKLOAD_REQUESTS[stream.method]
        method = channel.unary_stream(
            _WORKLOAD + stream.method, request_serializer=request.SerializeToString
        )
        async for message in method(request(), metadata=_HEADER):
            self._note(stream, message, path)

    async def _read_sds(self, channel: grpc.aio.Channel, stream: _Open, path: str) -> None:
        is_delta = stream.method == "DeltaSecrets"
        ask = discovery_pb2.DeltaDiscoveryRequest if is_delta else discovery_pb2.DiscoveryRequest
        method = channel.stream_stream(
            _SDS + stream.method, request_serializer=ask.SerializeToString
        )
        call: Any = method()
        if is_delta:
            await call.write(ask(resource_names_subscribe=stream.names))
        else:
            await call.write(ask(resource_names=stream.names))
        while (message := await call.read()) is not grpc.aio.EOF:
            self._note(stream, message, path)
            # As an Envoy does once it uses what it was sent.
            if is_delta:
                nonce = discovery_pb2.DeltaDiscoveryResponse.FromString(message).nonce
                await call.write(ask(response_nonce=nonce))
            else:
                sent = discovery_pb2.DiscoveryResponse.FromString(message)
                await call.write(
                    ask(
                        version_info=sent.version_info,
                        response_nonce=sent.nonce,
                        resource_names=stream.names,
                    )
                )


# --- what is in a message ---------------------------------------------------------------


def _of_secrets(packed: Iterable[Any]) -> Iterable[str]:
    for one in packed:
        secret = Secret()
        assert one.Unpack(secret)
        chain = secret.tls_certificate.certificate_chain.inline_bytes
        if chain:
            yield serial_mark(f"{x509.load_pem_x509_certificates(chain)[0].serial_number:x}")
        roots = secret.validation_context.trusted_ca.inline_bytes
        if roots:
            yield from map(root_mark, x509.load_pem_x509_certificates(roots))


def _of_whole(message: bytes) -> Iterable[str]:
    return _of_secrets(discovery_pb2.DiscoveryResponse.FromString(message).resources)


def _of_delta(message: bytes) -> Iterable[str]:
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(message)
    return _of_secrets(one.resource for one in response.resources)


def _of_svids(message: bytes) -> Iterable[str]:
    response = workload_pb2.X509SVIDResponse.FromString(message)
    for svid in response.svids:
        yield serial_mark(f"{_certificates(svid.x509_svid)[0].serial_number:x}")
    for bundle in {svid.bundle for svid in response.svids}:
        yield from map(root_mark, _certificates(bundle))


def _of_bundles(message: bytes) -> Iterable[str]:
    response = workload_pb2.X509BundlesResponse.FromString(message)
    for bundle in response.bundles.values():
        yield from map(root_mark, _certificates(bundle))


_MARKS: Mapping[str, Callable[[bytes], Iterable[str]]] = {
    "StreamSecrets": _of_whole,
    "DeltaSecrets": _of_delta,
    "FetchX509SVID": _of_svids,
    "FetchX509Bundles": _of_bundles,
    "FetchJWTBundles": lambda _: (),
}


def _certificates(data: bytes) -> list[x509.Certificate]:
    """Certificates in DER, one after the other."""
    found = []
    while data:
        # A certificate has more than 255 bytes and less than 64 KiB: its length has two (X.690).
        assert data[:2] == b"\x30\x82"
        end = 4 + int.from_bytes(data[2:4], "big")
        found.append(x509.load_der_x509_certificate(data[:end]))
        data = data[end:]
    return found


# --- the conversation -------------------------------------------------------------------


async def main() -> None:
    """Does what each line on stdin asks for, until there is none any more."""
    client = _Client()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, arguments = json.loads(line)
            answer = await getattr(client, what)(**arguments)
            print(json.dumps(answer), flush=True)
    finally:
        await client.close()


if __name__ == "__main__":
    asyncio.run(main())
