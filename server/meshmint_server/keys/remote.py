"""The keys of one worker, in a signing process of its own.

A `RemoteKeyRing` starts that process, gives it what has to be signed, and starts
another one when it dies or hangs; what was being signed is tried once more there. What
one turn of the event loop wants signed travels together, and no thread is involved:
the interpreter's lock is never fought for.

Nothing here sees a PIN. Of what a signing process says only errors and signatures
count, and whoever asked for a signature verifies it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Literal

from meshmint_server.errors import MeshmintError, Overloaded
from meshmint_server.keys import wire
from meshmint_server.keys.algorithm import (
    KeyAlgorithmName,
    PublicKey,
    SignatureAlgorithm,
    load_public_key,
    public_key_info,
)
from meshmint_server.keys.gathering import Gathering
from meshmint_server.keys.key import KeyAttributes, KeyFault
from meshmint_server.keys.ring import place_of
from meshmint_server.keys.settings import KeySettings
from meshmint_server.keys.uri import parse_token_uri
from meshmint_server.keys.wire import Kind, SignatureJob

__all__ = ["RemoteKey", "RemoteKeyRing"]

_log = logging.getLogger(__name__)

_COMMAND: Final = (sys.executable, "-m", "meshmint_server.keys.signing_process")
_SWEEP_SECONDS: Final = 0.25
# An RSA-4096 key takes tokens up to a minute to make, and a token may be slow to start.
_ASK_SECONDS: Final = 120.0
_CLOSE_SECONDS: Final = 5.0
# More than a signature's own time: the process itself notices most hangs before.
_HANG_GRACE: Final = 2.0
# The first death is followed by a new process at once, others after this, doubling.
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 5.0
_MOST_ATTEMPTS: Final = 2
# Signatures in a message that are worth no more waiting.
_ENOUGH: Final = 32


@dataclass(slots=True)
class _Signing:
    """A signature that somebody waits for."""

    job: SignatureJob
    future: asyncio.Future[bytes]
    attempts: int = 1


@dataclass(slots=True)
class _Asking:
    """A question that somebody waits for the answer to."""

    future: asyncio.Future[Any]
    ends: float


@dataclass(slots=True)
class _Life:
    """One signing process, from its start to its death."""

    process: subprocess.Popen[bytes]
    frames: wire.Frames = field(default_factory=wire.Frames)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.WriteTransport | None = None
    is_ready: bool = False
    unanswered: int = 0
    # Whether answers come a few at a time: the token takes longer than messages do.
    is_slow: bool = False


class RemoteKeyRing:
    """Opens and makes keys as `KeyRing` does, elsewhere. Belongs to one event loop."""

    def __init__(
        self,
        settings: KeySettings,
        *,
        log_format: Literal["json", "console"] = "json",
        log_level: Literal["debug", "info", "warning", "error"] = "info",
        command: tuple[str, ...] = _COMMAND,
    ) -> None:
        """Take the settings; the process is started when it is first needed.

        Args:
            settings: Where keys are.
            log_format: How the process logs.
            log_level: What it logs.
            command: What to run; the number of its socket is added.
        """
        self._settings = settings
        # A thread that signs is left alone until it has answered.
        self._threads = settings.threads
        self._log = {"log_format": log_format, "log_level": log_level}
        self._command = command
        self._token = None if settings.pkcs11 is None else parse_token_uri(settings.pkcs11)
        self._life: _Life | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._deaths = 0
        self._fault: KeyFault | None = None
        self._turn: asyncio.Future[None] | None = None
        self._number = 0
        self._signing: dict[int, _Signing] = {}
        self._asking: dict[int, _Asking] = {}
        self._outbox: list[SignatureJob] = []
        self._gathering = Gathering(self._flush)
        self._keys: dict[int, RemoteKey] = {}
        self._known: dict[tuple[str, bytes], RemoteKey] = {}
        self._adopting: set[int] = set()
        # Since when the process owes an answer and has given none; None if it owes none.
        self._owes_since: float | None = None

    @property
    def waiting(self) -> int:
        """Signatures that somebody waits for."""
        return len(self._signing)

    # What is rare: finding, opening and making keys

    async def find_token(self) -> str | None:
        """Log in to the configured token, and tell which it is; None if none is configured.

        Raises:
            KeyUnavailable: It is not there, or does not let us in.
        """
        told = await self._ask("find_token")
        return None if told is None else str(told)

    async def open(self, uri: str, public_key_spki_der: bytes | None = None) -> RemoteKey:
        """Open a key and prove that it signs; see `KeyRing.open`."""
        if public_key_spki_der is None:
            return await self._get("open", uri=uri, public_key=None)
        known = self._known.get((uri, public_key_spki_der))
        opened = await self._get("open", known, uri=uri, public_key=public_key_spki_der.hex())
        return self._known.setdefault((uri, public_key_spki_der), opened)

    async def generate(self, label: str, algorithm: KeyAlgorithmName | str) -> RemoteKey:
        """Make a key; see `KeyRing.generate`."""
        return await self._get("generate", label=label, algorithm=str(algorithm))

    def place_of(self, label: str) -> str:
        """Where a key of this label will be; see `KeyRing.place_of`."""
        return place_of(label, None if self._token is None else self._token.token_part)

    async def find_or_generate(self, place: str, algorithm: KeyAlgorithmName | str) -> RemoteKey:
        """The key at a place, made if there is none; see `KeyRing.find_or_generate`."""
        return await self._get("find_or_generate", place=place, algorithm=str(algorithm))

    async def attributes(self, number: int) -> KeyAttributes:
        """How the token holds a key; see `SigningKey.attributes`."""
        told = await self._ask("attributes", key=number)
        return KeyAttributes(**told | {"other_uses": tuple(told["other_uses"])})

    async def close(self) -> None:
        """End the process and whatever waits for it."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _get(self, do: str, known: RemoteKey | None = None, **arguments: object) -> RemoteKey:
        number = self._next_number() if known is None else known.number
        told = await self._ask(do, key=number, **arguments)
        if known is not None:
            return known
        public_key = load_public_key(bytes.fromhex(told["public_key"]))
        key = self._keys[number] = RemoteKey(self, number, told["uri"], public_key)
        return key

    async def _ask(self, do: str, **arguments: object) -> Any:
        await asyncio.shield(self._up())
        return await self._question(do, **arguments)

    async def _question(self, do: str, **arguments: object) -> Any:
        life = self._life
        if life is None or life.over.is_set():
            raise self._fault or KeyFault("There is no signing process.")
        number = self._next_number()
        asking = _Asking(asyncio.get_running_loop().create_future(), monotonic() + _ASK_SECONDS)
        self._asking[number] = asking
        self._send(life, wire.pack_json(Kind.ASK, {"number": number, "do": do, **arguments}))
        try:
            return await asking.future
        finally:
            self._asking.pop(number, None)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    # Signing

    async def sign(self, key: int, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Have the process sign; see `SigningKey.sign`."""
        life = self._life
        if life is None or not life.is_ready:
            self._up()
            if self._deaths > 1 and self._fault is not None:
                # It dies again and again: nobody is kept waiting for the next attempt.
                raise self._fault.for_callers()
        if len(self._signing) >= self._settings.queue_size:
            raise Overloaded("Too many signatures are waiting. Retry later.")
        number = self._next_number()
        deadline = monotonic() + self._settings.sign_timeout
        job = SignatureJob(number, key, algorithm, deadline, data)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._signing[number] = _Signing(job, future)
        self._post(job)
        try:
            return await future
        finally:
            self._signing.pop(number, None)

    def _post(self, job: SignatureJob) -> None:
        self._outbox.append(job)
        if len(self._outbox) == 1:
            self._gathering.begin()
        elif self._gathering.is_on and len(self._outbox) >= _ENOUGH:
            self._gathering.end()

    def _flush(self) -> None:
        """Sends what is wanted, unless more is gathered, or the process has enough to do.

        So a message carries the more the more is asked for: each job that was sent is
        answered, and what is held goes with that answer. A slow token gets its next
        while it still has one for each thread: it would stand idle for as long as this
        event loop takes to notice.
        """
        life = self._life
        if life is None or not life.is_ready or self._gathering.is_on:
            return
        if life.unanswered < (2 * self._threads if life.is_slow else self._threads):
            # Without those that nobody waits for any more.
            jobs = [job for job in self._outbox if job.number in self._signing]
            self._outbox = []
            if jobs:
                life.unanswered += len(jobs)
                self._send(life, wire.pack_jobs(jobs))

    def _send(self, life: _Life, frame: bytes) -> None:
        if life.transport is not None:
            life.transport.write(frame)
        if self._owes_since is None:
            self._owes_since = monotonic()

    def _settle(self, answer: wire.Answer) -> None:
        signing = self._signing.get(answer.number)
        if signing is None or signing.future.done():
            return
        if answer.is_signature:
            self._deaths = 0
            signing.future.set_result(answer.payload)
            return
        error = wire.unpack_error(answer.payload)
        if error.reason == wire.NOT_HELD:
            self._start(self._adopt_once(signing.job.key))
            error = KeyFault(error.message).for_callers()
        signing.future.set_exception(error)

    # What arrives

    def received(self, life: _Life, data: bytes) -> None:
        """Bytes from a signing process."""
        try:
            for kind, body in life.frames.feed(data):
                if kind == Kind.SIGNED:
                    answers = wire.unpack_answers(body)
                    life.unanswered -= len(answers)
                    life.is_slow = life.unanswered > 0
                    for answer in answers:
                        self._settle(answer)
                elif kind == Kind.ANSWER:
                    self._tell(wire.unpack_json(body))
        except (ValueError, struct.error, KeyError, TypeError) as error:
            _log.error("the signing process talks nonsense (%s); it is replaced", error)
            life.process.kill()
        self._owes_since = monotonic() if life.unanswered or self._asking else None
        self._flush()

    def lost(self, life: _Life) -> None:
        """A signing process closed its end, as when it dies."""
        life.over.set()
        for asking in self._asking.values():
            _fail(asking.future, KeyFault("The signing process ended before it answered."))

    def _tell(self, told: dict[str, Any]) -> None:
        asking = self._asking.get(told["number"])
        if asking is None or asking.future.done():
            return
        if "error" in told:
            asking.future.set_exception(wire.decode_error(told["error"]))
        else:
            asking.future.set_result(told["result"])

    # The life of signing processes, one after the other

    def _up(self) -> asyncio.Future[None]:
        """Done when there is a process that is ready, or starting it has failed."""
        if self._is_closed:
            raise KeyFault("The signing process has been stopped.")
        if self._turn is None:
            self._turn = asyncio.get_running_loop().create_future()
            self._start(self._live())
            self._start(self._sweep())
        return self._turn

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self) -> None:
        while True:
            life: _Life | None = None
            detail = "The signing process ended."
            try:
                life = await self._spawn()
                await self._prepare(life)
                await life.over.wait()
            except OSError as error:
                detail = f"The signing process cannot be started: {error}."
            except MeshmintError as error:
                detail = error.detail if isinstance(error, KeyFault) else error.message
            except Exception as error:  # noqa: BLE001  without this task nothing is signed any more
                _log.error("bug: a signing process could not be used", exc_info=error)
            finally:
                self._life = None
                if life is not None:
                    detail = await _end(life, detail, at_once=not self._is_closed)
                self._renew(KeyFault(detail))
            _log.error("%s Another one is started.", detail)
            if self._deaths > 1:
                await asyncio.sleep(min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (self._deaths - 2)))

    async def _spawn(self) -> _Life:
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220, S603  returns at once; no shell, our own
                [*self._command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._life = life = _Life(process)
        self._owes_since = None
        loop = asyncio.get_running_loop()
        life.transport, _ = await loop.create_connection(lambda: _Listener(self, life), sock=ours)
        return life

    async def _prepare(self, life: _Life) -> None:
        """Tells a new process where keys are, and which ones the last one had."""
        await self._question("start", settings=self._settings.model_dump(mode="json"), **self._log)
        for number in tuple(self._keys):
            await self._adopt(number)
        if self._keys:
            await self._try("connect")
        life.is_ready = True
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        self._flush()

    async def _adopt(self, number: int) -> None:
        key = self._keys.get(number)
        if key is None:
            return
        public_key = public_key_info(key.public_key).hex()
        await self._try("adopt", key=number, uri=key.uri, public_key=public_key)

    async def _adopt_once(self, number: int) -> None:
        """However many want the key: to read a key file takes longer than a signature."""
        if number not in self._adopting:
            self._adopting.add(number)
            try:
                await self._adopt(number)
            finally:
                self._adopting.discard(number)

    async def _try(self, do: str, **arguments: object) -> None:
        """Asks for what a signature does for itself, too, if it fails now."""
        try:
            await self._question(do, **arguments)
        except MeshmintError as error:
            _log.warning("a key cannot be used at present: %s", error.message)

    def _renew(self, fault: KeyFault) -> None:
        """After a death: tells whoever waits, and keeps what gets its second attempt."""
        self._deaths += 1
        self._fault = fault
        if self._turn is not None:
            if not self._turn.done():
                self._turn.set_exception(fault)
                self._turn.exception()  # it may be that nobody waits
            self._turn = None if self._is_closed else self._turn.get_loop().create_future()
        self._outbox.clear()
        for signing in self._signing.values():
            if self._is_closed or signing.attempts >= _MOST_ATTEMPTS:
                _fail(signing.future, fault.for_callers())
            else:
                signing.attempts += 1
                self._outbox.append(signing.job)

    async def _sweep(self) -> None:
        """Ends what has waited too long, and a process that hangs."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = monotonic()
            limit = self._settings.sign_timeout
            for signing in self._signing.values():
                if now < signing.job.deadline:
                    break  # in order: all have the same time
                late = KeyFault(f"The key did not answer within {limit:g} seconds.")
                _fail(signing.future, late.for_callers())
            for asking in self._asking.values():
                if now >= asking.ends:
                    _fail(asking.future, KeyFault("The token did not answer in time."))
            if self._asking:
                limit = _ASK_SECONDS
            life, since = self._life, self._owes_since
            if life is not None and since is not None and now - since > limit + _HANG_GRACE:
                _log.error("the signing process does not answer; it is replaced")
                life.process.kill()


class _Listener(asyncio.Protocol):
    """The worker's end of the socket."""

    def __init__(self, ring: RemoteKeyRing, life: _Life) -> None:
        self._ring = ring
        self._life = life

    def data_received(self, data: bytes) -> None:
        self._ring.received(self._life, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ring.lost(self._life)


class RemoteKey:
    """A signing key that another process holds."""

    def __init__(self, ring: RemoteKeyRing, number: int, uri: str, public_key: PublicKey) -> None:
        self._ring = ring
        self.number = number
        self._uri = uri
        self._public_key = public_key

    @property
    def uri(self) -> str:
        """Where the key is, as the store keeps it."""
        return self._uri

    @property
    def public_key(self) -> PublicKey:
        """The public half, proven to belong to the private one."""
        return self._public_key

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Sign; see SigningKey."""
        return await self._ring.sign(self.number, data, algorithm)

    async def attributes(self) -> KeyAttributes:
        """How the token holds it; see SigningKey."""
        return await self._ring.attributes(self.number)

    def __repr__(self) -> str:
        return f"RemoteKey({self.uri})"


async def _end(life: _Life, detail: str, *, at_once: bool) -> str:
    """Has a process end, and adds to the detail how it did."""
    if life.transport is not None:
        life.transport.close()
    if at_once:
        life.process.kill()
    wait = asyncio.to_thread(life.process.wait, _CLOSE_SECONDS)
    try:
        status = await asyncio.shield(wait)
    except (subprocess.TimeoutExpired, asyncio.CancelledError, RuntimeError):
        # RuntimeError: no thread is to be had.
        life.process.kill()
        status = life.process.wait()
    return f"The signing process ended with status {status}." if life.is_ready else detail


def _fail(future: asyncio.Future[Any], fault: MeshmintError) -> None:
    if not future.done():
        future.set_exception(fault)
