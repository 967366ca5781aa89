"""Asks the API server whether a token still holds (TokenReview, authentication.k8s.io/v1).

The answer is believed only as far as it is specific: it must name our audience
and the very service account, pod and UIDs that the token names. A reviewer that
fails is never taken for one that says no.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping

import structlog

from meshmint_server.authn.clock import Clock
from meshmint_server.authn.https import HttpsClient
from meshmint_server.authn.refusal import Refusal, refuse
from meshmint_server.authn.service_account import ServiceAccount
from meshmint_server.authn.token import Json, ParsedToken, parse_json_object
from meshmint_server.authn.watched_file import WatchedFile
from meshmint_server.errors import VerifierUnavailable
from meshmint_server.single_flight import SingleFlight

__all__ = ["ApiServerCredential", "TokenReviewer"]

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
EXTRA = "authentication.kubernetes.io/"
REFUSAL_REMEMBERED_FOR = 3.0
MAX_REFUSALS = 1000
MAX_WAITING_PER_REVIEW = 16
OPERATOR_RETRY_AFTER = 5.0

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


class TokenReviewer:
    """Reviews the tokens of one cluster.

    Args:
        client: Verifies the API server by the cluster's CA.
        api_server: Its URL.
        credential: Our credential there.
        audiences: Our audiences, sorted.
        max_reviews: Reviews under way at one time.
        patience: Seconds that a token waits for its turn.
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
        max_reviews: int,
        patience: float,
        purpose: str,
        clock: Clock,
    ) -> None:
        self._client = client
        self._url = api_server.rstrip("/") + PATH
        self._credential = credential
        self._audiences = audiences
        self._slots = asyncio.Semaphore(max_reviews)
        self._max_flights = max_reviews * (1 + MAX_WAITING_PER_REVIEW)
        self._patience = patience
        self._purpose = purpose
        self._monotonic = clock.monotonic
        self._flights: SingleFlight[bytes, None] = SingleFlight()
        self._refusals: OrderedDict[bytes, float] = OrderedDict()

    async def review(self, token: ParsedToken, account: ServiceAccount) -> None:
        """Returns if the API server vouches for the token as this service account.

        Raises:
            Unauthenticated: It does not.
            VerifierUnavailable: It cannot be asked, or gives no sensible answer.
        """
        refused_until = self._refusals.get(token.digest)
        if refused_until is not None and self._monotonic() < refused_until:
            raise _rejected()
        if len(self._flights) >= self._max_flights:
            raise self._busy()
        await self._flights.run(token.digest, lambda: self._review(token, account))

    async def close(self) -> None:
        """Ends reviews that are under way, and closes the connections."""
        await self._flights.close()
        await self._client.close()

    async def _review(self, token: ParsedToken, account: ServiceAccount) -> None:
        body = json.dumps(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token.text, "audiences": list(self._audiences)},
            }
        ).encode()
        answer = await self._ask(body)
        status = self._status(answer)
        if status.get("authenticated") is not True:
            self._note(status.get("error"), token, account)
            self._remember_refusal(token.digest)
            raise _rejected()
        problem = self._contradiction(status, account)
        if problem is not None:
            self._note(problem, token, account)
            self._remember_refusal(token.digest)
            raise refuse(
                Refusal.CREDENTIAL_REJECTED,
                f"the cluster's answer about the token does not fit it: {problem}",
            )

    async def _ask(self, body: bytes) -> bytes:
        try:
            async with asyncio.timeout(self._patience):
                await self._slots.acquire()
        except TimeoutError as error:
            raise self._busy() from error
        try:
            return await self._client.post_json(self._url, self._credential.headers(), body)
        finally:
            self._slots.release()

    def _busy(self) -> VerifierUnavailable:
        return VerifierUnavailable(f"{self._purpose} has too many tokens waiting; try again")

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

    def _remember_refusal(self, digest: bytes) -> None:
        self._refusals[digest] = self._monotonic() + REFUSAL_REMEMBERED_FOR
        self._refusals.move_to_end(digest)
        if len(self._refusals) > MAX_REFUSALS:
            self._refusals.popitem(last=False)


def _rejected() -> Exception:
    return refuse(
        Refusal.CREDENTIAL_REJECTED,
        "the cluster does not accept the token: it may be from another cluster, or its pod or "
        "service account deleted; get a new token",
    )
