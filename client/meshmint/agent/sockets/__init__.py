"""The agent's unix sockets: the SPIFFE Workload API, and Envoy's Secret Discovery Service.

They hand out what `Identities` publishes, private keys included, to whoever may
open the socket: the permissions of its file are the attestation, and there is no
other. Nothing here asks the service for anything, except for JWT-SVIDs by way of
`JwtSource`.
"""

from meshmint.agent.sockets.jwt_svids import JwtSource, JwtSvid
from meshmint.agent.sockets.serving import serve_socket
from meshmint.agent.sockets.settings import SocketSettings
from meshmint.agent.sockets.socket_file import SocketError

__all__ = ["JwtSource", "JwtSvid", "SocketError", "SocketSettings", "serve_socket"]
