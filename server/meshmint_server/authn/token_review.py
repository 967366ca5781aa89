"""Asks the API server whether a token still holds (TokenReview, authentication.k8s.io/v1).

The answer is believed only as far as it is specific: it must name our audience
and the very service account, pod and UIDs that the token names. A reviewer that
fails is never taken for one that says no, and nothing of it is remembered.

Who asks is mostly not known yet, so everything has a limit: what is asked at one
time, what waits for its turn, who waits, and for how long. Tokens that held a
moment ago have places of their own, so that strangers cannot keep them out.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from meshmint_server.authn.clock import Clock
from meshmint_server.authn.https import HttpsClient
from meshmint_server.authn.refusal import Refusal, refuse
from meshmint_server.authn.service_account import ServiceAccount
from meshmint_server.authn.token import Json, ParsedToken, parse_json_object
from meshmint_server.authn.verdicts import Verdicts
from meshmint_server.authn.waiting import WaitingRoom, busy
from meshmint_server.authn.watched_file import WatchedFile
from meshmint_server.errors import Unauthenticated, VerifierUnavailable
from meshmint_server.single_flight import SingleFlight

__all__ = ["ApiServerCredential", "ReviewLimits", "TokenReviewer"]

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
EXTRA = "authentication.kubernetes.io/"
REFUSAL_REMEMBERED_FOR = 3.0
MAX_VERDICTS = 1000
MAX_WAITING_PER_REVIEW = 16
OPERATOR_RETRY_AFTER = 5.0
REJECTED = (
    "the cluster does not accept the token: it may be from another cluster, or its pod or "
    "service account deleted; get a new token"
)
# An API server whose own look-ups fail says "not authenticated" as it does of a bad token,
# and only the text tells which. Taking one for the other issues nothing either way.
_TROUBLE = re.compile(
    r"deadline exceeded|context canceled|timed out|timeout|connection refused|connection reset"
    r"|etcdserver|too many requests|not initialized",
    re.IGNORECASE,
)

_log = structlog.stdlib.get_logger(__name__)


class ApiServerCredential:
    """Our own token at the API server, from a file that kubelet replaces.

    Args:
        file: The file.
        purpose: Whose credential it is, in words for messages.
    """

    def __init__(self, file: WatchedFile, purpose: str) -> None:
        self._file = file
        self._purpose = purpose

    def headers(self) -> dict[str, str]:
        """The headers that carry it.

        Raises:
            VerifierUnavailable: It cannot be read.
        """
        try:
            token = self._file.read().decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._unusable() from error
        if not token or not token.isprintable() or " " in token:
            raise self._unusable()
        return {"authorization": f"Bearer {token}"}

    def headers_if_any(self) -> dict[str, str]:
        """The headers that carry it; none where there is no file."""
        return self.headers() if self._file.path.exists() else {}

    def _unusable(self) -> VerifierUnavailable:
        return VerifierUnavailable(
            f"{self._purpose} cannot be asked: this service's own credential for it cannot be "
            "read; an operator must mend it",
            retry_after=OPERATOR_RETRY_AFTER,
        )


@dataclass(frozen=True, slots=True)
class ReviewLimits:
    """How much may be asked.

    Attributes:
        reviews: Reviews under way at one time.
        waiting: Calls that may wait for one, known ones and strangers apart.
        patience: Seconds that a token waits for its turn.
        vouched_for: Seconds that a yes counts; zero asks again for every call.
    """

    reviews: int
    waiting: int
    patience: float
    vouched_for: float


class _Lane:
    """Where either known tokens or strange ones wait.

    Args:
        reviews: How many of its own may be under way at one time.
        limits: The reviewer's limits.
        purpose: What the reviewer is, in words for messages.
    """

    def __init__(self, reviews: int, limits: ReviewLimits, purpose: str) -> None:
        self.slots = asyncio.Semaphore(reviews)
        self.room = WaitingRoom(limits.waiting, purpose)
        self.flights: SingleFlight[bytes, float] = SingleFlight()
        self._max_flights = reviews * (1 + MAX_WAITING_PER_REVIEW)

    @property
    def is_full(self) -> bool:
        """Whether no further token may queue."""
        return len(self.flights) >= self._max_flights


class TokenReviewer:
    """Reviews the tokens of one cluster.

    Args:
        client: Verifies the API server by the cluster's CA.
        api_server: Its URL.
        credential: Our credential there.
        audiences: Our audiences, sorted.
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
        audiences: tuple[str, ...],
        limits: ReviewLimits,
        purpose: str,
        clock: Clock,
    ) -> None:
        self._client = client
        self._url = api_server.rstrip("/") + PATH
        self._credential = credential
        self._audiences = audiences
        self._slots = asyncio.Semaphore(limits.reviews)
        self._known = _Lane(limits.reviews, limits, purpose)
        self._strangers = _Lane(limits.reviews - limits.reviews // 4, limits, purpose)
        self._patience = limits.patience
        self._purpose = purpose
        self._vouched_for = limits.vouched_for
        self._monotonic = clock.monotonic
        self._vouched: Verdicts[float] = Verdicts(MAX_VERDICTS, clock)
        self._refused: Verdicts[str] = Verdicts(MAX_VERDICTS, clock)

    async def review(self, token: ParsedToken, account: ServiceAccount, *, is_known: bool) -> float:
        """Returns if the API server vouches for the token as this service account.

        Args:
            token: The token.
            account: The service account that it claims.
            is_known: It held not long ago, and does not queue with strangers.

        Returns:
            When it was asked, monotonic seconds.

        Raises:
            Unauthenticated: It does not.
            VerifierUnavailable: It cannot be asked, or gives no sensible answer.
        """
        refusal = self._refused.get(token.digest)
        if refusal is not None:
            raise refuse(Refusal.CREDENTIAL_REJECTED, refusal)
        asked_at = self._vouched.get(token.digest)
        if asked_at is not None:
            return asked_at
        lane = self._known if is_known else self._strangers
        with lane.room.place():
            if token.digest not in lane.flights and lane.is_full:
                raise busy(self._purpose)
            return await lane.flights.run(token.digest, lambda: self._review(token, account, lane))

    async def close(self) -> None:
        """Ends reviews that are under way, and closes the connections."""
        for lane in (self._known, self._strangers):
            await lane.flights.close()
        await self._client.close()

    async def _review(self, token: ParsedToken, account: ServiceAccount, lane: _Lane) -> float:
        body = json.dumps(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token.text, "audiences": list(self._audiences)},
            }
        ).encode()
        asked_at, answer = await self._ask(body, lane)
        status = self._status(answer)
        if status.get("authenticated") is not True:
            error = status.get("error")
            self._note(error, token, account)
            if isinstance(error, str) and _TROUBLE.search(error):
                raise VerifierUnavailable(
                    f"{self._purpose} is in trouble itself; "
                    "the token was neither accepted nor refused, try again"
                )
            raise self._refuse(token.digest, REJECTED)
        problem = self._contradiction(status, account)
        if problem is not None:
            self._note(problem, token, account)
            raise self._refuse(
                token.digest, f"the cluster's answer about the token does not fit it: {problem}"
            )
        # Whoever asked may have given up by now, and will come back: not to ask again.
        self._vouched.keep(token.digest, asked_at, asked_at + self._vouched_for)
        return asked_at

    async def _ask(self, body: bytes, lane: _Lane) -> tuple[float, bytes]:
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(self._patience):
                    for slots in (lane.slots, self._slots):
                        await turn.enter_async_context(slots)
            except TimeoutError as error:
                raise busy(self._purpose) from error
            asked_at = self._monotonic()
            headers = self._credential.headers()
            return asked_at, await self._client.post_json(self._url, headers, body)

    def _status(self, answer: bytes) -> Mapping[str, Json]:
        try:
            status = parse_json_object(answer).get("status")
        except ValueError:
            status = None
        if not isinstance(status, dict):
            raise VerifierUnavailable(
                f"{self._purpose} answers with something else than a TokenReview; "
                "an operator must look at its URL",
                retry_after=OPERATOR_RETRY_AFTER,
            )
        return status

    def _contradiction(self, status: Mapping[str, Json], account: ServiceAccount) -> str | None:
        """How the answer differs from the token, if it does."""
        audiences = status.get("audiences")
        if not isinstance(audiences, list) or not set(self._audiences).intersection(
            one for one in audiences if isinstance(one, str)
        ):
            # A reviewer that knows nothing of audiences returns none, and would
            # vouch for tokens meant for others.
            return "it is not about this service's audience"
        user = status.get("user")
        if not isinstance(user, dict) or user.get("username") != account.username:
            return "it names another service account"
        if user.get("uid") != account.uid:
            return "it names a service account with another UID"
        extra = user.get("extra")
        facts = extra if isinstance(extra, dict) else {}
        if account.pod is not None and (
            facts.get(EXTRA + "pod-name") != [account.pod]
            or facts.get(EXTRA + "pod-uid") != [account.pod_uid]
        ):
            return "it names another pod"
        node = facts.get(EXTRA + "node-name")
        if node is not None and account.node is not None and node != [account.node]:
            return "it names another node"
        return None

    def _note(self, problem: Json, token: ParsedToken, account: ServiceAccount) -> None:
        text = problem if isinstance(problem, str) else ""
        if token.text in text:
            text = "(left out: it holds the token)"
        _log.info(
            "token review refused",
            verifier=self._purpose,
            claimed_subject=account.username,
            problem=text[:300],
        )

    def _refuse(self, digest: bytes, message: str) -> Unauthenticated:
        """Remembers a refusal for a moment, and makes the error to raise."""
        self._refused.keep(digest, message, self._monotonic() + REFUSAL_REMEMBERED_FOR)
        return refuse(Refusal.CREDENTIAL_REJECTED, message)
