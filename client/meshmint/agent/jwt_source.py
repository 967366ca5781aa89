"""JWT-SVIDs for the agent's sockets, asked of the service with the role of the certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshmint.agent.connection import Connection
from meshmint.agent.identities import Identity
from meshmint.agent.sockets import JwtSvid
from meshmint.errors import AnswerRefused

__all__ = ["ServiceJwtSource"]


class ServiceJwtSource:
    """Asks the service.

    Args:
        connection: Gives the client.
        role: The role of the certificate of that name; empty if the service is to choose.
    """

    def __init__(self, connection: Connection, role: Callable[[str], str]) -> None:
        self._connection = connection
        self._role = role

    async def fetch_jwt_svid(self, identity: Identity, audiences: Sequence[str]) -> JwtSvid:
        """A new JWT-SVID of the identity.

        Raises:
            MeshmintError: There is none.
        """
        client = await self._connection.client()
        svid = await client.issue_jwt_svid(audiences, self._role(identity.name))
        if identity.spiffe_id is not None and svid.spiffe_id != identity.spiffe_id:
            raise AnswerRefused("the token in the answer is that of another SPIFFE ID")
        return JwtSvid(svid.spiffe_id, svid.token, svid.expires_at)
