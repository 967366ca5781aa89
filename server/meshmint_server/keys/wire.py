"""What a worker and its signing process say to each other over their socket.

Frames in both directions: length, kind, body. Signatures go in batches and packed;
everything that is rare is JSON. Neither side believes lengths over the limit, and no
object is ever unpickled: the module behind the signing process is somebody else's code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, get_args

from meshmint_server.errors import InvalidRequest, MeshmintError, Overloaded, Unavailable
from meshmint_server.keys.algorithm import HashName, Scheme, SignatureAlgorithm
from meshmint_server.keys.key import KeyFault
from meshmint_server.keys.uri import InvalidKeyUri

__all__ = [
    "NOT_HELD",
    "Answer",
    "Frames",
    "Kind",
    "SignatureJob",
    "decode_error",
    "encode_error",
    "pack_answers",
    "pack_error",
    "pack_jobs",
    "pack_json",
    "unpack_answers",
    "unpack_error",
    "unpack_jobs",
    "unpack_json",
]

# A CRL of a million entries stays below, the only large thing that is ever signed.
MAX_FRAME: Final = 256 * 1024 * 1024

# Of a fault between the two: the process that had the key is gone.
NOT_HELD: Final = "KEY_NOT_HELD"

_HEADER: Final = struct.Struct("<IB")
# Number, key, algorithm, deadline on the monotonic clock, size of the data. Keys are
# numbered with jobs, of which there are billions in the life of a worker.
_JOB: Final = struct.Struct("<QQBdI")
# Number, whether it is a signature, size.
_ANSWER: Final = struct.Struct("<Q?I")

# In both processes the same list, as both are of one release.
_ALGORITHMS: Final = (
    *(
        SignatureAlgorithm(scheme, name)
        for scheme in (Scheme.ECDSA, Scheme.RSA_PKCS1, Scheme.RSA_PSS)
        for name in get_args(HashName)
    ),
    SignatureAlgorithm(Scheme.ED25519, None),
)
_NUMBERS: Final = {str(algorithm): number for number, algorithm in enumerate(_ALGORITHMS)}


class Kind:
    """What a frame holds."""

    SIGN: Final = 1
    SIGNED: Final = 2
    ASK: Final = 3
    ANSWER: Final = 4


class SignatureJob(NamedTuple):
    """A signature that is wanted.

    Attributes:
        number: Of the job, chosen by the worker.
        key: Number of the key, chosen by the worker.
        algorithm: How to sign.
        deadline: When nobody waits any more, on the machine's monotonic clock.
        data: What to sign.
    """

    number: int
    key: int
    algorithm: SignatureAlgorithm
    deadline: float
    data: bytes


class Answer(NamedTuple):
    """What became of a job: a signature, or an error as `encode_error` writes it."""

    number: int
    is_signature: bool
    payload: bytes


class Frames:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Takes bytes, and yields kind and body of each frame that is whole.

        Raises:
            ValueError: A frame is larger than any can be.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _HEADER.size:
            size, kind = _HEADER.unpack_from(buffer, start)
            if size > MAX_FRAME:
                raise ValueError("a frame that is too large")
            end = start + _HEADER.size + size
            if len(buffer) < end:
                break
            yield kind, bytes(buffer[start + _HEADER.size : end])
            start = end
        del buffer[:start]


def _frame(kind: int, parts: list[bytes]) -> bytes:
    return b"".join((_HEADER.pack(sum(map(len, parts)), kind), *parts))


def pack_jobs(jobs: Iterable[SignatureJob]) -> bytes:
    """A frame of jobs."""
    parts = []
    for job in jobs:
        algorithm = _NUMBERS[job.algorithm.name]
        parts.append(_JOB.pack(job.number, job.key, algorithm, job.deadline, len(job.data)))
        parts.append(job.data)
    return _frame(Kind.SIGN, parts)


def unpack_jobs(body: bytes) -> list[SignatureJob]:
    """The jobs of a frame."""
    jobs, at = [], 0
    while at < len(body):
        number, key, algorithm, deadline, size = _JOB.unpack_from(body, at)
        at += _JOB.size
        jobs.append(
            SignatureJob(number, key, _ALGORITHMS[algorithm], deadline, body[at : at + size])
        )
        at += size
    return jobs


def pack_answers(answers: Iterable[Answer]) -> bytes:
    """A frame of answers."""
    parts = []
    for answer in answers:
        parts.append(_ANSWER.pack(answer.number, answer.is_signature, len(answer.payload)))
        parts.append(answer.payload)
    return _frame(Kind.SIGNED, parts)


def unpack_answers(body: bytes) -> list[Answer]:
    """The answers of a frame.

    Raises:
        struct.error: It is no such frame.
    """
    answers, at = [], 0
    while at < len(body):
        number, is_signature, size = _ANSWER.unpack_from(body, at)
        at += _ANSWER.size
        answers.append(Answer(number, is_signature, body[at : at + size]))
        at += size
    return answers


def pack_json(kind: int, value: Any) -> bytes:
    """A frame of JSON."""
    return _frame(kind, [json.dumps(value).encode()])


def unpack_json(body: bytes) -> dict[str, Any]:
    """The object in a frame of JSON.

    Raises:
        ValueError: It is something else.
    """
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def encode_error(error: MeshmintError) -> dict[str, Any]:
    """An error as the other side can raise it again."""
    told: dict[str, Any] = {
        "message": error.message,
        "reason": error.reason,
        "retry_after": error.retry_after,
    }
    if isinstance(error, KeyFault):
        return told | {"type": "KeyFault", "detail": error.detail, "kind": error.kind}
    for kind in (InvalidKeyUri, InvalidRequest, Overloaded):
        if isinstance(error, kind):
            return told | {"type": kind.__name__}
    return told | {"type": "Unavailable"}


def pack_error(error: MeshmintError) -> bytes:
    """An error as an `Answer` carries it."""
    return json.dumps(encode_error(error)).encode()


def unpack_error(payload: bytes) -> MeshmintError:
    """The error in an `Answer`.

    Raises:
        ValueError: It holds none.
    """
    return decode_error(unpack_json(payload))


def decode_error(told: dict[str, Any]) -> MeshmintError:
    """The error that the other side met."""
    message, reason = str(told.get("message")), told.get("reason")
    retry_after = told.get("retry_after")
    match told.get("type"):
        case "KeyFault":
            return KeyFault(
                str(told.get("detail")),
                reason=reason,
                retry_after=retry_after,
                message=message,
                kind=told.get("kind"),
            )
        case "InvalidKeyUri":
            return InvalidKeyUri(message)
        case "InvalidRequest":
            return InvalidRequest(message, reason=reason)
        case "Overloaded":
            return Overloaded(message, reason=reason, retry_after=retry_after)
        case _:
            return Unavailable(message, reason=reason, retry_after=retry_after)
