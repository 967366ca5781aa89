"""The agent's connection to the service, made anew when the roots of its certificate change."""

from __future__ import annotations

import asyncio

from meshmint.agent.auth import TokenCall, token_source
from meshmint.agent.config import AuthSettings, ServerSettings
from meshmint.aio import AsyncClient
from meshmint.errors import ConfigurationError

__all__ = ["Connection"]

# A client that was replaced ends what it has begun.
_GRACE_SECONDS = 60.0


class Connection:
    """Gives the client to use.

    Args:
        server: The service.
        auth: Where the token comes from.
    """

    def __init__(self, server: ServerSettings, auth: AuthSettings) -> None:
        self._server = server
        self._auth = auth
        self._roots: bytes | None = None
        self._client: AsyncClient | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def configure(self, server: ServerSettings, auth: AuthSettings) -> None:
        """Uses other settings from now on; calls under way end as they were begun."""
        if (server, auth) != (self._server, self._auth):
            self._server, self._auth = server, auth
            self._replace()

    def token_source(self) -> TokenCall:
        """What gives the agent's own token."""
        return token_source(self._auth)

    async def client(self) -> AsyncClient:
        """The client, with the roots as they are now in the file.

        Raises:
            ConfigurationError: The file cannot be read, or holds no roots.
        """
        roots = await asyncio.to_thread(self._read_roots)
        if self._client is not None and roots != self._roots:
            self._replace()
        if self._client is None:
            server = self._server
            self._client = AsyncClient(
                server.address,
                token=self.token_source(),
                root_certificates=roots,
                insecure=server.insecure,
                timeout=server.timeout.total_seconds(),
                server_name=server.server_name,
                # Two clients of one process must not share what one of them trusts.
                options=[("grpc.use_local_subchannel_pool", 1)],
            )
            self._roots = roots
        return self._client

    def _read_roots(self) -> bytes | None:
        path = self._server.ca_file
        if path is None:
            return None
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read server.ca_file {path}: {error.strerror or error}"
            ) from error

    def _replace(self) -> None:
        if self._client is None:
            return
        task = asyncio.create_task(_close_later(self._client))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        self._client = None

    async def close(self) -> None:
        """Ends every call."""
        for task in tuple(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._client is not None:
            await self._client.close()
            self._client = None


async def _close_later(client: AsyncClient) -> None:
    try:
        await asyncio.sleep(_GRACE_SECONDS)
    finally:
        await client.close()
