"""What a client is made with: checked once, and the same for both kinds of client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from meshmint.errors import MeshmintError, error_from_rpc
from meshmint.operations import Operation
from meshmint.retry import Attempts, Reconnects, RetryPolicy
from meshmint.tls import ClientCertificate, PemSource, Transport
from meshmint.tokens import Tokens, TokenSource

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was made with, checked.

    Attributes:
        transport: Where to, and how it is protected.
        tokens: Where the credential comes from.
        timeout: Seconds for a call with all its retries.
        retry: When to try again.
    """

    transport: Transport
    tokens: Tokens
    timeout: float
    retry: RetryPolicy

    @classmethod
    def of(
        cls,
        target: str,
        *,
        token: TokenSource | None,
        root_certificates: PemSource | None,
        insecure: bool,
        timeout: float,
        retry: RetryPolicy | None,
        client_certificate: ClientCertificate | None,
        server_name: str | None,
        options: Sequence[tuple[str, str | int]],
    ) -> Settings:
        """Checks what a client is made with; Client documents each argument.

        Raises:
            MeshmintError: Settings that cannot work.
        """
        transport = Transport.to(
            target,
            root_certificates=root_certificates,
            insecure=insecure,
            client_certificate=client_certificate,
            server_name=server_name,
            options=options,
        )
        return cls(transport, Tokens.of(token), timeout, retry or RetryPolicy())

    def attempts(self, operation: Operation[Any]) -> Attempts:
        """The attempts of a call, its deadline running from now on."""
        timeout = self.timeout if operation.timeout is None else operation.timeout
        return Attempts(self.retry, timeout)

    def reconnects(self, operation: Operation[Any]) -> Reconnects:
        """The attempts to keep a stream open, beginning now."""
        timeout = self.timeout if operation.timeout is None else operation.timeout
        return Reconnects(self.retry, timeout)

    def failed(self, error: grpc.RpcError) -> MeshmintError:
        """Translates what gRPC raised; both kinds of client raise this shape."""
        return error_from_rpc(error, target=self.transport.target)
