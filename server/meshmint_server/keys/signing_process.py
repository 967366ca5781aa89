"""The process that holds the signing keys of one worker: ``python -m`` this module.

It has the PIN, the login and the sessions, and its worker has none of them: what reads
requests from strangers cannot reach a key but by asking for a signature. A module that
crashes or hangs takes this process with it, and no request but those being signed.

Its main thread reads what the worker wants. Signing threads write the answers
themselves, many at a time, so that one change of threads serves a whole batch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

from meshmint_server.audit import configure_logging
from meshmint_server.errors import MeshmintError
from meshmint_server.keys import wire
from meshmint_server.keys.algorithm import public_key_info
from meshmint_server.keys.key import KeyFault
from meshmint_server.keys.ring import KeyRing, OpenKey
from meshmint_server.keys.settings import KeySettings
from meshmint_server.keys.wire import NOT_HELD, Answer, Kind, SignatureJob

__all__ = ["EXIT_STUCK", "main"]

_log = logging.getLogger(__name__)

EXIT_STUCK: Final = 69  # sysexits.h: EX_UNAVAILABLE

# Answers are sent when a batch is done, or this often while it is not: a system call
# costs about as much as a fast signature, and an answer that is held back costs latency.
_SEND_SECONDS: Final = 0.002
_WATCH_SECONDS: Final = 0.5
_CLOSE_SECONDS: Final = 3.0
_READ_BYTES: Final = 256 * 1024


class SigningProcess:
    """Serves one worker over one socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._keys: dict[int, OpenKey] = {}
        self._loop = asyncio.new_event_loop()
        self._ring: KeyRing | None = None
        self._limit = 0.0

    def serve(self) -> None:
        """Until the worker is gone, or closes its end."""
        threading.Thread(target=self._loop.run_forever, name="asked", daemon=True).start()
        frames = wire.Frames()
        while data := self._receive():
            for kind, body in frames.feed(data):
                if kind == Kind.SIGN:
                    self._sign(wire.unpack_jobs(body))
                elif kind == Kind.ASK:
                    asked = wire.unpack_json(body)
                    asyncio.run_coroutine_threadsafe(self._answer(asked), self._loop)

    def close(self) -> None:
        """Ends the sessions, unless a call into the token hangs."""
        if self._ring is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._ring.close(), self._loop)
        with suppress(TimeoutError, MeshmintError):
            closing.result(_CLOSE_SECONDS)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_READ_BYTES)
        except ConnectionError:
            return b""

    def _send(self, frame: bytes) -> None:
        # A worker that is gone has no use for it; the main thread notices the same.
        with self._sending, suppress(ConnectionError):
            self._socket.sendall(frame)

    # Signing

    def _sign(self, jobs: Sequence[SignatureJob]) -> None:
        by_key: dict[int, list[SignatureJob]] = {}
        for job in jobs:
            by_key.setdefault(job.key, []).append(job)
        for number, of_key in by_key.items():
            key = self._keys.get(number)
            if key is None:
                unknown = KeyFault("The signing process does not have this key.", reason=NOT_HELD)
                self._send(wire.pack_answers(_failed(job, unknown) for job in of_key))
                continue
            # To each thread its part; one thread gets all, in one piece.
            part = -(-len(of_key) // key.signer.threads)
            for start in range(0, len(of_key), part):
                work = partial(self._sign_all, key, of_key[start : start + part])
                key.signer.post(work, timeout=self._limit)

    def _sign_all(self, key: OpenKey, jobs: Sequence[SignatureJob]) -> None:
        """On a signing thread."""
        done: list[Answer] = []
        sent = monotonic()
        for job in jobs:
            now = monotonic()
            if now >= job.deadline:
                # Nobody waits any more, but the worker should know that nothing hangs.
                done.append(_failed(job, KeyFault("There was no time left to sign.")))
                continue
            if done and now - sent >= _SEND_SECONDS:
                self._send(wire.pack_answers(done))
                done, sent = [], now
            # A call that hangs is told from a batch that is long.
            key.signer.touch()
            try:
                done.append(Answer(job.number, True, key.sign_now(job.data, job.algorithm)))
            except MeshmintError as error:
                # Frames of this thread hold session objects that must be freed on it.
                error.__traceback__ = error.__context__ = error.__cause__ = None
                done.append(_failed(job, error))
            except Exception as error:  # noqa: BLE001  a job without an answer holds up all others
                _log.error("bug: could not sign", exc_info=error)
                fault = KeyFault(f"The signing process failed: {type(error).__name__}.")
                done.append(_failed(job, fault.for_callers()))
        if done:
            self._send(wire.pack_answers(done))

    # What is rare

    async def _answer(self, asked: dict[str, Any]) -> None:
        number = asked["number"]
        try:
            told = {"number": number, "result": await self._do(asked)}
        except MeshmintError as error:
            told = {"number": number, "error": wire.encode_error(error)}
        except Exception as error:  # noqa: BLE001  the outermost edge: a bug is said, and it goes on
            _log.error("bug: could not %s", asked.get("do"), exc_info=error)
            fault = KeyFault(f"The signing process failed: {type(error).__name__}.")
            told = {"number": number, "error": wire.encode_error(fault)}
        self._send(wire.pack_json(Kind.ANSWER, told))

    async def _do(self, asked: dict[str, Any]) -> Any:
        if asked["do"] == "start":
            configure_logging(asked["log_format"], asked["log_level"])
            settings = KeySettings.model_validate(asked["settings"])
            self._ring, self._limit = settings.build(), settings.sign_timeout
            self._watch()
            return None
        ring = self._ring
        if ring is None:
            raise KeyFault("The signing process has not been told its keys yet.")
        match asked["do"]:
            case "find_token":
                return await ring.find_token()
            case "connect":
                return await ring.connect()
            case "open":
                key = await ring.open(asked["uri"], _bytes(asked["public_key"]))
            case "generate":
                key = await ring.generate(asked["label"], asked["algorithm"])
            case "find_or_generate":
                key = await ring.find_or_generate(asked["place"], asked["algorithm"])
            case "adopt":
                key = await ring.adopt(asked["uri"], bytes.fromhex(asked["public_key"]))
            case "attributes":
                held = await self._keys[asked["key"]].attributes()
                return {name: getattr(held, name) for name in held.__dataclass_fields__}
            case _:
                raise KeyFault("The signing process was asked for something unknown.")
        self._keys[asked["key"]] = key
        return {"uri": key.uri, "public_key": public_key_info(key.public_key).hex()}

    def _watch(self) -> None:
        """Ends this process when a call hangs: it cannot be cancelled, and holds a session."""
        assert self._ring is not None  # noqa: S101
        if self._ring.is_stuck(self._limit):
            _log.error("a call into the token hangs; the signing process is replaced")
            os._exit(EXIT_STUCK)
        self._loop.call_later(_WATCH_SECONDS, self._watch)


def _failed(job: SignatureJob, error: MeshmintError) -> Answer:
    return Answer(job.number, False, wire.pack_error(error))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def main() -> None:
    """Serves the socket whose number is the first argument."""
    # Whoever ends the worker ends this: what drains there still needs signatures.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    configure_logging()
    process = SigningProcess(socket.socket(fileno=int(sys.argv[1])))
    process.serve()
    process.close()
    # Not waiting for a thread that may be stuck inside the module.
    os._exit(0)


if __name__ == "__main__":
    main()
