"""What the client of one stream asks for, has been sent, and has refused.

The rules of the xDS protocol without I/O: requests in, at most one response out. The
state is bounded by the names asked for, however long a client talks or reads nothing.
"""

from __future__ import annotations

import hashlib
import secrets as random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from meshmint.agent.sockets.refusals import Refusal, clean
from meshmint.agent.sockets.sds_secrets import TYPE_URL, NamedSecret, Secrets
from meshmint.third_party.envoy.service.discovery.v3 import discovery_pb2

__all__ = ["DeltaSubscription", "Nack", "Request", "Subscription", "WholeSubscription"]

_WILDCARD = "*"
# Of what a client may have in any version, or not at all.
_UNKNOWN = ""
_MAX_NAMES = 4096
_MAX_NAME = 2048
_MAX_ERROR = 400
# Responses that may be on their way at once, as far as anybody cares what becomes of them.
_MAX_UNANSWERED = 8

Request = discovery_pb2.DiscoveryRequest | discovery_pb2.DeltaDiscoveryRequest

Asked_contra = TypeVar("Asked_contra", contravariant=True)
Told_co = TypeVar("Told_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Nack:
    """A response that the client has refused.

    Attributes:
        names: What was in it.
        error: What the client says of it: one bounded line.
    """

    names: tuple[str, ...]
    error: str


class _Responses:
    """Those that were sent: which one is the last, and which were not answered yet."""

    def __init__(self) -> None:
        self.last_nonce = ""
        self._unanswered: dict[str, tuple[str, ...]] = {}

    def sent(self, names: tuple[str, ...]) -> str:
        """A nonce for one with these names in it."""
        self.last_nonce = random.token_hex(8)
        self._unanswered[self.last_nonce] = names
        while len(self._unanswered) > _MAX_UNANSWERED:
            self._unanswered.pop(next(iter(self._unanswered)))
        return self.last_nonce

    def answered(self, request: Request) -> Nack | None:
        """What the client refuses; each response is answered once, also late."""
        names = self._unanswered.pop(request.response_nonce, None)
        if names is None or not request.HasField("error_detail"):
            return None
        return Nack(names, clean(request.error_detail.message, _MAX_ERROR))


class Subscription(Protocol[Asked_contra, Told_co]):
    """One stream's state."""

    def take(self, request: Asked_contra) -> Nack | None:
        """Takes a request in.

        Raises:
            Refusal: It is none of this service.
        """
        ...

    def respond(self, secrets: Secrets) -> Told_co | None:
        """What the client is to be sent now; None if it has all that there is."""
        ...

    def missing(self, secrets: Secrets) -> list[str]:
        """Names asked for that stand for nothing."""
        ...


class WholeSubscription:
    """State of the world: `StreamSecrets`, and `FetchSecrets` with its one request.

    A response holds what the client does not have yet in this version, which is enough
    for secrets: the protocol wants complete sets for listeners and clusters alone.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._has_named = False
        self._wants_all = False
        self._names: frozenset[str] = frozenset()
        self._responses = _Responses()
        # What was sent, whether it was accepted or not: what was refused is not sent again
        # until it changes.
        self._sent: dict[str, str] = {}

    def take(self, request: discovery_pb2.DiscoveryRequest) -> Nack | None:
        """Takes a request in; one that answers an older response asks for nothing.

        Raises:
            Refusal: It is for another type, or asks for too much.
        """
        _check_type(request.type_url)
        names = frozenset(request.resource_names)
        _check_names(names)
        nack = self._responses.answered(request)
        # A first request may carry the nonce of a stream before this one.
        if self._has_begun and request.response_nonce != self._responses.last_nonce:
            return nack
        self._has_begun = True
        # Nothing named from the first request on is everything; later it is nothing.
        self._has_named = self._has_named or bool(names)
        self._wants_all = _WILDCARD in names or not self._has_named
        self._names = names - {_WILDCARD}
        return nack

    def respond(self, secrets: Secrets) -> discovery_pb2.DiscoveryResponse | None:
        """What the client does not have yet."""
        if not self._has_begun:
            return None
        present = _present(self._wanted(secrets), secrets)
        # Who asks again for what they had given up gets it again.
        self._sent = {name: one for name, one in self._sent.items() if name in present}
        due = [one for one in present.values() if self._sent.get(one.name) != one.version]
        if not due:
            return None
        self._sent.update((one.name, one.version) for one in due)
        return discovery_pb2.DiscoveryResponse(
            version_info=_version(self._sent),
            resources=[one.packed for one in due],
            type_url=TYPE_URL,
            nonce=self._responses.sent(tuple(one.name for one in due)),
        )

    def missing(self, secrets: Secrets) -> list[str]:
        """Names asked for that stand for nothing."""
        return sorted(name for name in self._names if secrets.get(name) is None)

    def _wanted(self, secrets: Secrets) -> Iterable[str]:
        return self._names.union(secrets.everything) if self._wants_all else self._names


class DeltaSubscription:
    """Incremental: `DeltaSecrets`."""

    def __init__(self) -> None:
        self._has_begun = False
        self._wants_all = False
        self._names: set[str] = set()
        # What the client has, or has refused, by name.
        self._sent: dict[str, str] = {}
        # Names that it gave up, and might still believe to be covered by the wildcard.
        self._given_up: set[str] = set()
        self._responses = _Responses()

    def take(self, request: discovery_pb2.DeltaDiscoveryRequest) -> Nack | None:
        """Takes a request in; what it subscribes to counts, whatever its nonce.

        Raises:
            Refusal: It is for another type, or asks for too much.
        """
        _check_type(request.type_url)
        begins = not self._has_begun
        added = set(request.resource_names_subscribe)
        dropped = set(request.resource_names_unsubscribe)
        _check_names(added | self._names)
        _check_names(dropped)
        nack = self._responses.answered(request)
        self._has_begun = True
        if begins:
            _check_names(request.initial_resource_versions)
            self._sent = dict(request.initial_resource_versions)
            self._wants_all = not added
        else:
            # Who subscribes again gets it again: they may have thrown it away.
            for name in added & self._sent.keys():
                self._sent[name] = _UNKNOWN
        self._drop(dropped)
        if _WILDCARD in added:
            self._wants_all = True
        self._names |= added - {_WILDCARD}
        self._given_up -= added
        return nack

    def _drop(self, names: set[str]) -> None:
        if _WILDCARD in names:
            self._wants_all = False
            # What it did not name is thrown away.
            self._sent = {name: one for name, one in self._sent.items() if name in self._names}
        for name in names & self._names:
            self._names.discard(name)
            self._sent.pop(name, None)
            if self._wants_all and len(self._given_up) < _MAX_NAMES:
                self._given_up.add(name)

    def respond(self, secrets: Secrets) -> discovery_pb2.DeltaDiscoveryResponse | None:
        """What has changed for the client."""
        if not self._has_begun:
            return None
        everything = set(secrets.everything) if self._wants_all else set()
        wanted = self._names | everything
        present = _present(wanted, secrets)
        due = [one for one in present.values() if self._sent.get(one.name) != one.version]
        # The client has them still, and they are no more; or it may believe to have them by
        # the wildcard, which does not cover them.
        gone = {name for name in self._sent if name in wanted and name not in present}
        if self._wants_all:
            gone |= set(self._sent) - wanted
            gone |= self._given_up - everything
        self._given_up.clear()
        self._sent = {name: one for name, one in self._sent.items() if name in present}
        if not due and not gone:
            return None
        self._sent.update((one.name, one.version) for one in due)
        return discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=_version(self._sent),
            resources=[
                discovery_pb2.Resource(name=one.name, version=one.version, resource=one.packed)
                for one in due
            ],
            type_url=TYPE_URL,
            nonce=self._responses.sent((*(one.name for one in due), *sorted(gone))),
            removed_resources=sorted(gone),
        )

    def missing(self, secrets: Secrets) -> list[str]:
        """Names asked for that stand for nothing."""
        return sorted(name for name in self._names if secrets.get(name) is None)


def _present(names: Iterable[str], secrets: Secrets) -> dict[str, NamedSecret]:
    found = (secrets.get(name) for name in sorted(names))
    return {one.name: one for one in found if one is not None}


def _check_type(type_url: str) -> None:
    # A service with one type may be asked without naming it.
    if type_url not in {"", TYPE_URL}:
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"there are no resources of the type {clean(type_url)} here: ask for {TYPE_URL}",
        )


def _check_names(names: Iterable[str]) -> None:
    given = tuple(names)
    if len(given) > _MAX_NAMES or any(len(name) > _MAX_NAME for name in given):
        raise Refusal(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"ask for at most {_MAX_NAMES} names of at most {_MAX_NAME} characters on one stream",
        )


def _version(versions: Mapping[str, str]) -> str:
    listed = "\n".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return hashlib.sha256(listed.encode()).hexdigest()[:32]
