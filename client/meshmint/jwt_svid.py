"""JWT-SVIDs: what is sent, and whether the answer is the token that was asked for.

Guards against a server that mixes up answers, not against one that lies: the signature
is for the audiences to verify, with keys that they got in their own way.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from meshmint.errors import AnswerRefused
from meshmint.operations import SERVICE, Operation, moment
from meshmint.requests import jwt_svid_message
from meshmint.results import JwtSvid
from meshmint.v1 import certificate_service_pb2 as pb

__all__ = ["issue_jwt_svid"]


def issue_jwt_svid(
    audiences: Sequence[str], role: str, ttl: timedelta | None, timeout: float | None
) -> Operation[JwtSvid]:
    """IssueJwtSvid."""
    request = jwt_svid_message(role, audiences, ttl)
    asked = set(request.audiences)

    def result(answer: pb.IssueJwtSvidResponse) -> JwtSvid:
        svid = JwtSvid(
            token=answer.token,
            spiffe_id=answer.spiffe_id,
            audiences=_audiences(answer.token, answer.spiffe_id),
            issued_at=moment(answer.issued_at),
            expires_at=moment(answer.expires_at),
            role=answer.role,
            jwt_id=answer.jwt_id,
            warnings=tuple(answer.warnings),
        )
        if set(svid.audiences) != asked:
            raise AnswerRefused("the token in the answer is for other audiences than asked for")
        return svid

    return Operation(
        SERVICE + "IssueJwtSvid",
        request,
        pb.IssueJwtSvidResponse.FromString,
        result,
        timeout=timeout,
    )


def _audiences(token: str, spiffe_id: str) -> tuple[str, ...]:
    """The audiences of a token for this SPIFFE ID.

    Raises:
        AnswerRefused: It is no such token. The message does not hold any of it.
    """
    claims = _claims(token)
    if not spiffe_id.startswith("spiffe://") or claims.get("sub") != spiffe_id:
        raise AnswerRefused("the token in the answer is for another SPIFFE ID than the answer says")
    found = claims.get("aud")
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise AnswerRefused("the token in the answer has no audiences that can be read")
    return tuple(found)


def _claims(token: str) -> dict[str, Any]:
    try:
        _, payload, _ = token.split(".")
        content = base64.b64decode(payload + "=" * (-len(payload) % 4), b"-_", validate=True)
        claims = json.loads(content)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise AnswerRefused("the token in the answer cannot be read")
    return claims
