"""How a JWK set is found: by its URL, by OpenID discovery, or at a Kubernetes API server."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meshmint_server.authn.https import HttpsClient
from meshmint_server.authn.settings import refuse_url_but_https
from meshmint_server.authn.token import Json, parse_json_object
from meshmint_server.errors import VerifierUnavailable

__all__ = ["ClusterDiscovery", "JwksUrl", "OpenIdDiscovery"]

WELL_KNOWN = "/.well-known/openid-configuration"
CLUSTER_JWKS = "/openid/v1/jwks"
OPERATOR_RETRY_AFTER = 5.0


class JwksUrl:
    """A JWK set at a fixed URL."""

    def __init__(self, client: HttpsClient, url: str) -> None:
        self._client = client
        self._url = url

    async def fetch(self) -> bytes:
        """Fetches the set."""
        return await self._client.get(self._url)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


class OpenIdDiscovery:
    """The JWK set that an OpenID provider's configuration names (OpenID Connect Discovery 4)."""

    def __init__(self, client: HttpsClient, url: str, issuer: str, purpose: str) -> None:
        base = url.removesuffix(WELL_KNOWN).rstrip("/")
        self._client = client
        self._url = base + WELL_KNOWN
        self._issuer = issuer
        self._purpose = purpose

    async def fetch(self) -> bytes:
        """Fetches the configuration, then the set."""
        document = _configuration(await self._client.get(self._url), self._issuer, self._purpose)
        jwks_uri = document.get("jwks_uri")
        try:
            url = refuse_url_but_https(jwks_uri if isinstance(jwks_uri, str) else "")
        except ValueError as error:
            raise _unusable(self._purpose, "name no https jwks_uri") from error
        return await self._client.get(url)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


class ClusterDiscovery:
    """The JWK set of a Kubernetes API server's service accounts.

    The configuration's jwks_uri is not followed: API servers put an address
    there that is often not reachable from a pod, and our credential must not
    go anywhere else than to the API server.

    Args:
        client: Verifies the API server by the cluster's CA.
        api_server: Its URL.
        issuer: The issuer that it must announce.
        headers: Makes the headers that carry our credential, if there is one.
        purpose: What the keys are, in words for messages.
    """

    def __init__(
        self,
        client: HttpsClient,
        api_server: str,
        issuer: str,
        headers: Callable[[], Mapping[str, str]],
        purpose: str,
    ) -> None:
        self._client = client
        self._api_server = api_server.rstrip("/")
        self._issuer = issuer
        self._headers = headers
        self._purpose = purpose

    async def fetch(self) -> bytes:
        """Checks the configuration, then fetches the set."""
        headers = self._headers()
        body = await self._client.get(self._api_server + WELL_KNOWN, headers)
        _configuration(body, self._issuer, self._purpose)
        return await self._client.get(self._api_server + CLUSTER_JWKS, headers)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()


def _configuration(body: bytes, issuer: str, purpose: str) -> dict[str, Json]:
    try:
        document = parse_json_object(body)
    except ValueError as error:
        raise _unusable(purpose, "are not announced in JSON") from error
    # OpenID Connect Discovery section 4.3: else one issuer could speak for another.
    if document.get("issuer") != issuer:
        raise _unusable(purpose, "are announced by another issuer than the configured one")
    return document


def _unusable(purpose: str, problem: str) -> VerifierUnavailable:
    return VerifierUnavailable(
        f"{purpose} {problem}; an operator must mend the configuration",
        retry_after=OPERATOR_RETRY_AFTER,
    )
