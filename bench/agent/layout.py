"""What the measured agent has to do: its certificates, its sockets, and who listens to them.

Pure: the agent's configuration and the client's streams are two views of one layout, so
that both agree on who is to hear of what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.service import TRUST_DOMAIN

__all__ = ["LIFETIME_SECONDS", "ROLE", "ROOTS", "SHARED", "Connection", "Layout", "Stream"]

# The certificate that every socket serves as its default identity.
SHARED: Final = "shared"
# What a stream watches that is told of every change of the trust bundle.
ROOTS: Final = "(roots)"
ROLE: Final = "agent"
LIFETIME_SECONDS: Final = 3600

# What comes over one connection: Envoy's SDS and the Workload API by halves.
_METHODS: Final = (
    "StreamSecrets",
    "FetchX509SVID",
    "StreamSecrets",
    "FetchX509SVID",
    "StreamSecrets",
    "FetchX509SVID",
    "StreamSecrets",
    "FetchX509SVID",
    "DeltaSecrets",
    "bundles",
)
_BUNDLES: Final = ("FetchX509Bundles", "FetchJWTBundles")


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of a client.

    Attributes:
        method: Its RPC.
        names: The secrets it asks for, if it is one of SDS.
        watches: What it is to be sent changes of: names of certificates, and `ROOTS`.
    """

    method: str
    names: tuple[str, ...]
    watches: frozenset[str]


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection of a client, and its streams."""

    path: str
    streams: tuple[Stream, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How much there is.

    Attributes:
        certificates: How many, the shared one included.
        outputs: How many of them are written to files as well.
        sockets: How many unix sockets serve them: each the shared one, and its part of the others.
        connections: How many connections clients have, an equal number to each socket.
    """

    certificates: int
    outputs: int
    sockets: int
    connections: int

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self.connections * len(_METHODS)

    @property
    def names(self) -> tuple[str, ...]:
        """The certificates, the shared one first."""
        return (SHARED, *(f"workload-{number:03}" for number in range(1, self.certificates)))

    def served(self, socket: int) -> tuple[str, ...]:
        """The certificates of one socket."""
        return (SHARED, *self.names[1 + socket :: self.sockets])

    def certificate_sections(
        self, directory: Path, renewals: Mapping[str, Any]
    ) -> Sequence[dict[str, Any]]:
        """The `certificates` of agent.yaml.

        Args:
            directory: Where outputs go.
            renewals: The `renewal` of certificates by name; under "" that of all others.
        """
        return [
            {
                "name": name,
                "role": ROLE,
                "ttl": f"{LIFETIME_SECONDS}s",
                "names": {"uris": [f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}"]},
                "renewal": dict(renewals.get(name, renewals[""])),
                "outputs": [{"format": "pem", "directory": str(directory / name)}]
                if index < self.outputs
                else [],
            }
            for index, name in enumerate(self.names)
        ]

    def socket_sections(self, directory: Path) -> Sequence[dict[str, Any]]:
        """The `sockets` of agent.yaml."""
        return [
            {
                "path": _path(directory, socket),
                "mode": "0600",
                "certificates": list(self.served(socket)),
            }
            for socket in range(self.sockets)
        ]

    def clients(self, directory: Path) -> Iterator[Connection]:
        """What clients open."""
        for number in range(self.connections):
            socket = number % self.sockets
            streams = tuple(
                self._stream(socket, method, number // self.sockets * len(_METHODS) + index)
                for index, method in enumerate(_METHODS)
            )
            yield Connection(_path(directory, socket), streams)

    def _stream(self, socket: int, method: str, number: int) -> Stream:
        served = self.served(socket)
        if method == "bundles":
            method = _BUNDLES[number // len(_METHODS) % len(_BUNDLES)]
            return Stream(method, (), frozenset({ROOTS} if "X509" in method else ()))
        if method == "FetchX509SVID":
            return Stream(method, (), frozenset({ROOTS, *served}))
        # An Envoy has the certificate of its own, its peers' roots, and the one that all share.
        own = served[1:][number % (len(served) - 1)]
        return Stream(method, ("default", "ROOTCA", own), frozenset({ROOTS, SHARED, own}))


def _path(directory: Path, socket: int) -> str:
    return str(directory / f"{socket:02}.sock")
