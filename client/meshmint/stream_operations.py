"""The calls for many certificates over one stream, as values.

Each request goes as the single call would send it, and is checked as there: nothing
is built or accepted here that is not in meshmint.operations. Nothing in here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from meshmint import operations
from meshmint.operations import Operation
from meshmint.requests import CertificateRequest, IssueRequest, SignRequest, SvidRequest
from meshmint.results import IssuedCertificate, SignedCertificate, Svid
from meshmint.v1 import certificate_service_pb2 as pb

__all__ = ["ISSUE_MANY", "REQUEST_CERTIFICATES", "REQUEST_SVIDS", "SIGN_MANY", "StreamOperation"]

Request = TypeVar("Request")
Result = TypeVar("Result")

_SERVICE = "/meshmint.v1.CertificateService/"


@dataclass(frozen=True, slots=True)
class StreamOperation(Generic[Request, Result]):
    """A call for many.

    Attributes:
        path: Full name of the RPC.
        message: Makes an empty message for some of the requests, its ``items``.
        answer: Parses the bytes of a message with some of the answers.
        single: The single call for one request.
        makes_keys: Whether ``single`` makes a key, which may take long.
    """

    path: str
    message: Callable[[], Any]
    answer: Callable[[bytes], Any]
    single: Callable[[Request], Operation[Result]]
    makes_keys: bool


def _over_sign_stream(
    single: Callable[[Request], Operation[Result]], *, makes_keys: bool
) -> StreamOperation[Request, Result]:
    return StreamOperation(
        _SERVICE + "SignStream",
        pb.SignStreamRequest,
        pb.SignStreamResponse.FromString,
        single,
        makes_keys,
    )


def _svid(request: SvidRequest) -> Operation[Svid]:
    return operations.request_svid(
        request.role,
        request.key_algorithm,
        request.spiffe_id,
        {"dns_names": request.dns_names, "ttl": request.ttl, "timeout": request.timeout},
    )


def _certificate(request: CertificateRequest) -> Operation[IssuedCertificate]:
    return operations.request_certificate(request.role, request.key_algorithm, request.options)


def _signed(request: SignRequest) -> Operation[SignedCertificate]:
    return operations.sign(request.csr, request.role, request.options)


def _issued(request: IssueRequest) -> Operation[IssuedCertificate]:
    return operations.issue(request.role, request.key_algorithm, request.options)


REQUEST_SVIDS = _over_sign_stream(_svid, makes_keys=True)
REQUEST_CERTIFICATES = _over_sign_stream(_certificate, makes_keys=True)
SIGN_MANY = _over_sign_stream(_signed, makes_keys=False)
ISSUE_MANY = StreamOperation(
    _SERVICE + "IssueStream",
    pb.IssueStreamRequest,
    pb.IssueStreamResponse.FromString,
    _issued,
    makes_keys=False,
)
