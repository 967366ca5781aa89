"""Signing processes that die, hang or lie: the worker goes on, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from time import monotonic

import pytest
from meshmint_server.errors import Overloaded
from meshmint_server.keys import (
    InvalidKeyUri,
    KeyFault,
    KeySettings,
    RemoteKeyRing,
    default_algorithm,
    public_key_info,
    wire,
)
from meshmint_server.keys.algorithm import Scheme, SignatureAlgorithm
from meshmint_server.keys.signer import Signer
from meshmint_server.keys.signing_process import SigningProcess
from support.softhsm import Token

Make = Callable[..., RemoteKeyRing]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes rings of file keys in one directory, and ends them."""
    (tmp_path / "keys").mkdir()
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery staple\n", encoding="utf-8")
    rings = []

    def make(command: tuple[str, ...] | None = None, **settings: object) -> RemoteKeyRing:
        found = KeySettings(
            file_directory=tmp_path / "keys", passphrase_source=f"file:{secret}", **settings
        )
        ring = RemoteKeyRing(found, **({} if command is None else {"command": command}))
        rings.append(ring)
        return ring

    yield make
    for ring in rings:
        await ring.close()


def pid_of(ring: RemoteKeyRing) -> int:
    assert ring._life is not None
    return ring._life.process.pid


async def is_signing(ring: RemoteKeyRing, uri: str) -> bool:
    key = await ring.open(uri)
    algorithm = default_algorithm(key.public_key)
    return algorithm.is_valid(key.public_key, await key.sign(b"message", algorithm), b"message")


async def test_a_token_s_key_is_made_opened_and_signs_many_at_once(token: Token) -> None:
    ring = RemoteKeyRing(KeySettings(pkcs11=token.uri))
    try:
        told = await ring.find_token()
        assert told is not None
        assert token.label in told
        made = await ring.find_or_generate(ring.place_of("issuer"), "ec-p256")
        again = await ring.find_or_generate(ring.place_of("issuer"), "ec-p256")
        assert public_key_info(again.public_key) == public_key_info(made.public_key)
        opened = await ring.open(made.uri, public_key_info(made.public_key))
        algorithm = default_algorithm(opened.public_key)
        messages = [b"%d" % number for number in range(300)]
        signatures = await asyncio.gather(*(opened.sign(one, algorithm) for one in messages))
        for message, signature in zip(messages, signatures, strict=True):
            assert algorithm.is_valid(made.public_key, signature, message)
        held = await opened.attributes()
        assert held.storage == "pkcs11"
        assert held.is_extractable is False
    finally:
        await ring.close()


async def test_errors_cross_with_their_type_and_reason(make: Make) -> None:
    ring = make()
    await ring.generate("issuer", "ec-p256")
    with pytest.raises(InvalidKeyUri):
        await ring.open("pkcs11:object=x?pin-value=1234")
    with pytest.raises(KeyFault) as caught:
        await ring.generate("issuer", "ec-p256")
    assert caught.value.reason == "KEY_EXISTS"
    with pytest.raises(KeyFault) as caught:
        await ring.open("file:nowhere.pem")
    assert caught.value.reason == "KEY_NOT_FOUND"


async def test_a_killed_process_is_replaced_and_what_it_was_signing_is_signed(make: Make) -> None:
    ring = make()
    key = await ring.generate("issuer", "rsa-2048")
    algorithm = default_algorithm(key.public_key)
    for _ in range(2):
        killed = pid_of(ring)
        # Stopped, so that none is signed by it.
        os.kill(killed, signal.SIGSTOP)
        waiting = [asyncio.create_task(key.sign(b"%d" % n, algorithm)) for n in range(20)]
        await asyncio.sleep(0.1)
        os.kill(killed, signal.SIGKILL)
        for number, signature in enumerate(await asyncio.gather(*waiting)):
            assert algorithm.is_valid(key.public_key, signature, b"%d" % number)
        assert pid_of(ring) != killed


async def test_a_process_that_hangs_is_replaced_and_waiting_has_an_end(make: Make) -> None:
    ring = make(sign_timeout=0.5)
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    hanging = pid_of(ring)
    os.kill(hanging, signal.SIGSTOP)
    with pytest.raises(KeyFault) as caught:
        await key.sign(b"message", algorithm)
    assert caught.value.reason == "KEY_UNAVAILABLE"
    async with asyncio.timeout(30):
        while True:
            try:
                signature = await key.sign(b"message", algorithm)
            except KeyFault:
                await asyncio.sleep(0.1)
            else:
                break
    assert algorithm.is_valid(key.public_key, signature, b"message")
    assert pid_of(ring) != hanging


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(3)",
        "import socket,sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'\\xff' * 64); input()",
        "import socket,sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'\\0\\0\\0\\0\\2' * 9)",
        # An answer to a question that nobody asked, and one that is no object.
        "import socket,sys; s=socket.socket(fileno=int(sys.argv[1])); "
        "s.sendall(b'\\x0c\\0\\0\\0\\4{\"number\":99}' + b'\\2\\0\\0\\0\\4[]'); s.recv(9)",
    ],
)
async def test_a_process_that_dies_or_talks_nonsense_is_a_fault_and_no_storm(
    make: Make, tmp_path: Path, program: str
) -> None:
    log = tmp_path / "starts"
    counted = f"open({str(log)!r}, 'a').write('x');{program}"
    ring = make((sys.executable, "-c", counted))
    async with asyncio.timeout(30):
        for _ in range(3):
            with pytest.raises(KeyFault):
                await ring.open("file:issuer.pem")
    starts = len(log.read_text(encoding="utf-8"))
    assert 2 <= starts <= 5, starts


async def test_a_key_that_is_opened_after_billions_of_signatures_signs(make: Make) -> None:
    ring = make()
    made = await ring.generate("issuer", "ec-p256")
    # Keys are numbered with signatures: this many are made in two weeks of full load.
    ring._number = 2**32
    assert await is_signing(ring, made.uri)


async def test_what_nobody_waits_for_any_more_is_not_sent_to_be_signed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make()
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    sent: list[bytes] = []
    pack = wire.pack_jobs

    def pack_and_count(jobs: Iterable[wire.SignatureJob]) -> bytes:
        jobs = list(jobs)
        sent.extend(job.data for job in jobs)
        return pack(jobs)

    monkeypatch.setattr(wire, "pack_jobs", pack_and_count)
    stopped = pid_of(ring)
    os.kill(stopped, signal.SIGSTOP)
    first = asyncio.create_task(key.sign(b"first", algorithm))
    await asyncio.sleep(0.05)
    left = [asyncio.create_task(key.sign(b"left", algorithm)) for _ in range(50)]
    await asyncio.sleep(0.05)
    for one in left:
        one.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    os.kill(stopped, signal.SIGCONT)
    await first
    await key.sign(b"last", algorithm)
    assert sent == [b"first", b"last"]


async def test_a_slow_token_has_its_next_job_before_it_has_done_its_last(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make()
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    sent: list[wire.SignatureJob] = []
    pack = wire.pack_jobs

    def pack_and_note(jobs: Iterable[wire.SignatureJob]) -> bytes:
        jobs = list(jobs)
        sent.extend(jobs)
        return pack(jobs)

    monkeypatch.setattr(wire, "pack_jobs", pack_and_note)
    os.kill(pid_of(ring), signal.SIGSTOP)
    tasks = [asyncio.create_task(key.sign(data, algorithm)) for data in (b"one", b"two")]
    await asyncio.sleep(0.05)
    tasks.append(asyncio.create_task(key.sign(b"three", algorithm)))
    await asyncio.sleep(0.05)
    assert [job.data for job in sent] == [b"one", b"two"]
    assert ring._life is not None
    # The first answer alone, as from a token that takes longer than a message does.
    ring.received(ring._life, wire.pack_answers([wire.Answer(sent[0].number, True, b"signature")]))
    assert [job.data for job in sent] == [b"one", b"two", b"three"]
    assert await tasks[0] == b"signature"
    os.kill(pid_of(ring), signal.SIGCONT)
    for task in tasks:
        task.cancel()


async def test_a_key_that_is_not_held_is_asked_for_once_however_many_want_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make()
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    asked: list[str] = []
    question = ring._question

    async def ask(do: str, **arguments: object) -> object:
        asked.append(do)
        return await question(do, **arguments)

    monkeypatch.setattr(ring, "_question", ask)
    (tmp_path / "keys/issuer.pem").rename(tmp_path / "aside.pem")
    os.kill(pid_of(ring), signal.SIGKILL)
    outcomes = await asyncio.gather(
        *(key.sign(b"message", algorithm) for _ in range(100)), return_exceptions=True
    )
    assert all(isinstance(one, KeyFault) for one in outcomes)
    await ring.find_token()  # answered after those that were asked for before
    # By the process when it started, and by all who missed the key then.
    assert asked.count("adopt") == 2


async def test_a_process_is_replaced_also_while_no_thread_is_to_be_had(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    ring = make()
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    with monkeypatch.context() as shortage:
        shortage.setattr(asyncio, "to_thread", refuse)
        os.kill(pid_of(ring), signal.SIGKILL)
        await key.sign(b"message", algorithm)
    assert await is_signing(ring, key.uri)


class Broken:
    """A key whose module raises what no module should."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer

    def sign_now(self, data: bytes, _algorithm: object) -> bytes:
        if data == b"broken":
            raise ZeroDivisionError
        return b"signature of " + data


async def test_every_job_is_answered_also_where_the_module_meets_a_bug() -> None:
    ours, theirs = socket.socketpair()
    signer = Signer("test")
    with ours, theirs:
        ours.settimeout(10)
        process = SigningProcess(theirs)
        process._limit = 5.0
        process._keys[1] = Broken(signer)  # type: ignore[assignment]
        algorithm = SignatureAlgorithm(Scheme.ECDSA, "sha256")
        data = (b"one", b"broken", b"two")
        process._sign(
            [wire.SignatureJob(n, 1, algorithm, monotonic() + 60, d) for n, d in enumerate(data)]
        )
        answers: list[wire.Answer] = []
        frames = wire.Frames()
        while len(answers) < len(data):
            for _, body in frames.feed(ours.recv(65536)):
                answers += wire.unpack_answers(body)
        assert [answer.is_signature for answer in answers] == [True, False, True]
        assert isinstance(wire.unpack_error(answers[1].payload), KeyFault)
        process._loop.close()
    assert signer.close()


async def test_more_than_the_queue_holds_is_refused_at_once(make: Make) -> None:
    ring = make(queue_size=5)
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    stopped = pid_of(ring)
    os.kill(stopped, signal.SIGSTOP)
    waiting = [asyncio.create_task(key.sign(b"message", algorithm)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await key.sign(b"message", algorithm)
    os.kill(stopped, signal.SIGCONT)
    await asyncio.gather(*waiting)
    assert await is_signing(ring, key.uri)


async def test_a_key_file_that_was_away_at_the_restart_signs_once_it_is_back(
    make: Make, tmp_path: Path
) -> None:
    ring = make()
    key = await ring.generate("issuer", "ec-p256")
    algorithm = default_algorithm(key.public_key)
    file, aside = tmp_path / "keys/issuer.pem", tmp_path / "aside.pem"
    file.rename(aside)
    os.kill(pid_of(ring), signal.SIGKILL)
    with pytest.raises(KeyFault) as caught:
        await key.sign(b"message", algorithm)
    assert caught.value.reason == "KEY_UNAVAILABLE"
    aside.rename(file)
    async with asyncio.timeout(30):
        while True:
            try:
                await key.sign(b"message", algorithm)
            except KeyFault:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("is_killed", [False, True])
async def test_the_process_ends_with_its_worker(
    make: Make, tmp_path: Path, is_killed: bool
) -> None:
    ring = make()
    key = await ring.generate("issuer", "ec-p256")
    await ring.close()
    program = (
        "import asyncio, sys, time\n"
        "from meshmint_server.keys import KeySettings, RemoteKeyRing\n"
        "async def main():\n"
        f"    settings = KeySettings(file_directory={str(tmp_path / 'keys')!r},\n"
        f"        passphrase_source='file:{tmp_path / 'passphrase'}')\n"
        "    ring = RemoteKeyRing(settings)\n"
        f"    await ring.open({key.uri!r})\n"
        "    print(ring._life.process.pid, flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "asyncio.run(main())\n"
    )
    worker = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    child = int(await asyncio.to_thread(worker.stdout.readline))
    if is_killed:
        worker.kill()
    await asyncio.to_thread(worker.communicate, b"")
    async with asyncio.timeout(30):
        while _is_alive(child):  # noqa: ASYNC110  nobody tells of somebody else's child
            await asyncio.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
