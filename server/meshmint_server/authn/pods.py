"""Asks the API server which pods there are (core/v1, list of pods).

What it says is believed only where it fits the question: an API server that ignores a field
selector, or lies, makes no pod appear where it was asked for. Nothing is taken for "there is
none" but a list without it. All that is asked has a limit, and is asked once for all who
wait for the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from meshmint_server.authn.clock import Clock
from meshmint_server.authn.https import HttpsClient
from meshmint_server.authn.service_account import is_object_name
from meshmint_server.authn.token import Json, parse_json_object
from meshmint_server.authn.token_review import ApiServerCredential, ReviewLimits
from meshmint_server.authn.verdicts import Verdicts
from meshmint_server.authn.waiting import WaitingRoom, busy
from meshmint_server.errors import VerifierUnavailable
from meshmint_server.single_flight import SingleFlight

__all__ = ["Pod", "Pods"]

# A pod that is there is believed in for as long as a reviewed token; one that is not may
# appear at any moment, and its proxy asks again at once.
FOUND_REMEMBERED_FOR = 10.0
MISSING_REMEMBERED_FOR = 1.0
MAX_REMEMBERED = 5000
MAX_WAITING_PER_LOOKUP = 64
# One is enough. Of many, or large ones, the answer could be larger than what is read of it.
MOST_PODS = 1
OPERATOR_RETRY_AFTER = 5.0

_OVER = ("Succeeded", "Failed")
_Fits = Callable[["Pod"], bool]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod whose containers may run: none that has ended, or that no node has.

    Attributes:
        namespace: Its namespace.
        name: Its name.
        uid: Its UID, which tells it from a namesake that was deleted.
        service_account: Name of its service account.
        node: The node that it is on.
    """

    namespace: str
    name: str
    uid: str
    service_account: str
    node: str


class Pods:
    """The pods of one cluster.

    Args:
        client: Verifies the API server by the cluster's CA.
        api_server: Its URL.
        credential: Our credential there; it must be allowed to list pods.
        limits: How much may be asked.
        purpose: What it is, in words for messages.
        clock: The clock.
    """

    def __init__(
        self,
        client: HttpsClient,
        *,
        api_server: str,
        credential: ApiServerCredential,
        limits: ReviewLimits,
        purpose: str,
        clock: Clock,
    ) -> None:
        self._client = client
        self._api_server = api_server.rstrip("/")
        self._credential = credential
        self._purpose = purpose
        self._patience = limits.patience
        self._slots = asyncio.Semaphore(limits.reviews)
        self._most_flights = limits.reviews * MAX_WAITING_PER_LOOKUP
        self._room = WaitingRoom(limits.waiting, purpose)
        self._flights: SingleFlight[str, tuple[Pod, ...]] = SingleFlight()
        self._monotonic = clock.monotonic
        self._found: Verdicts[tuple[Pod, ...]] = Verdicts(MAX_REMEMBERED, clock)
        self._missing: Verdicts[tuple[Pod, ...]] = Verdicts(MAX_REMEMBERED, clock)

    async def named(self, namespace: str, name: str) -> Pod | None:
        """The pod of that name, if it is there.

        Args:
            namespace: A namespace's name that was checked to be one.
            name: A pod's name, likewise.

        Raises:
            VerifierUnavailable: The API server cannot be asked, or gives no sensible answer.
        """
        pods = await self._list(namespace, f"metadata.name={name}", lambda pod: pod.name == name)
        return pods[0] if pods else None

    async def is_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of that service account is on that node.

        Args:
            node: A node's name that was checked to be one.
            namespace: A namespace's, likewise.
            service_account: A service account's, likewise.

        Raises:
            VerifierUnavailable: The API server cannot be asked, or gives no sensible answer.
        """
        pods = await self._list(
            namespace,
            f"spec.nodeName={node},spec.serviceAccountName={service_account}",
            lambda pod: pod.node == node and pod.service_account == service_account,
        )
        return bool(pods)

    async def close(self) -> None:
        """Ends look-ups that are under way, and closes the connections."""
        await self._flights.close()
        await self._client.close()

    async def _list(self, namespace: str, selector: str, fits: _Fits) -> tuple[Pod, ...]:
        """The pods that fit, and are found by a field selector that says the same."""
        key = f"{namespace} {selector}"
        digest = key.encode()
        for verdicts in (self._found, self._missing):
            known = verdicts.get(digest)
            if known is not None:
                return known
        with self._room.place():
            if key not in self._flights and len(self._flights) >= self._most_flights:
                raise busy(self._purpose)
            return await self._flights.run(
                key, lambda: self._look_up(namespace, selector, fits, digest)
            )

    async def _look_up(
        self, namespace: str, selector: str, fits: _Fits, digest: bytes
    ) -> tuple[Pod, ...]:
        alive = ",".join(f"status.phase!={phase}" for phase in _OVER)
        query = urlencode({"fieldSelector": f"{selector},{alive}", "limit": MOST_PODS})
        url = f"{self._api_server}/api/v1/namespaces/{namespace}/pods?{query}"
        asked_at, answer = await self._ask(url)
        pods = tuple(pod for pod in self._pods(answer) if pod.namespace == namespace and fits(pod))
        if pods:
            self._found.keep(digest, pods, asked_at + FOUND_REMEMBERED_FOR)
        else:
            self._missing.keep(digest, pods, asked_at + MISSING_REMEMBERED_FOR)
        return pods

    async def _ask(self, url: str) -> tuple[float, bytes]:
        try:
            async with asyncio.timeout(self._patience):
                await self._slots.acquire()
        except TimeoutError as error:
            raise busy(self._purpose) from error
        try:
            asked_at = self._monotonic()
            return asked_at, await self._client.get(url, self._credential.headers())
        finally:
            self._slots.release()

    def _pods(self, answer: bytes) -> list[Pod]:
        try:
            found = parse_json_object(answer)
            if found.get("kind") != "PodList":
                raise ValueError("not a PodList")
            items = found["items"]
            if items is None:  # an empty list, as Go writes it
                return []
            if not isinstance(items, list):
                raise ValueError("no list")
            return [pod for pod in map(_pod, items) if pod is not None]
        except (ValueError, KeyError) as error:
            raise VerifierUnavailable(
                f"{self._purpose} answers with something else than a list of pods; "
                "an operator must look at its URL",
                retry_after=OPERATOR_RETRY_AFTER,
            ) from error


def _pod(item: Json) -> Pod | None:
    """A pod of the list; None if it has ended or is on no node yet.

    Raises:
        ValueError: It is no pod.
    """
    metadata, spec, status = (_object(item, part) for part in ("metadata", "spec", "status"))
    if status.get("phase") in _OVER or not spec.get("nodeName"):
        return None
    if not is_object_name(_text(spec, "nodeName")):
        raise ValueError("no name of a node")
    return Pod(
        namespace=_text(metadata, "namespace"),
        name=_text(metadata, "name"),
        uid=_text(metadata, "uid"),
        service_account=_text(spec, "serviceAccountName"),
        node=_text(spec, "nodeName"),
    )


def _object(item: Json, part: str) -> Mapping[str, Json]:
    value = item.get(part) if isinstance(item, dict) else None
    if not isinstance(value, dict):
        raise ValueError(f"no {part}")
    return value


def _text(values: Mapping[str, Json], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"no {name}")
    return value
