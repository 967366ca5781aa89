"""Hammers one token from many callers at once. Run as a process of its own.

    python -m support.key_hammer <token URI> <threads> <seconds>

A module that is used from two threads without locking corrupts its memory and
takes the process down: a crash here is a failed test, not a dead test runner.
Prints how many signatures were made; every one of them has been verified.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from time import monotonic

from meshmint_server.keys import KeyRing, SigningKey, default_algorithm


async def hammer(keys: list[SigningKey], callers: int, seconds: float) -> int:
    """Sign from many tasks of this loop until time is up; verify everything."""
    end = monotonic() + seconds
    made = 0

    async def call(number: int) -> None:
        nonlocal made
        key = keys[number % len(keys)]
        algorithm = default_algorithm(key.public_key)
        while monotonic() < end:
            message = f"{number} {made}".encode() * 20
            signature = await key.sign(message, algorithm)
            assert algorithm.is_valid(key.public_key, signature, message)
            made += 1

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(call(number))
    return made


async def run(uri: str, threads: int, seconds: float) -> int:
    """Hammer from this loop and from the loops of four other threads, while keys come and go
    and sessions die."""
    ring = KeyRing(uri, threads=threads, queue_size=10_000, sign_timeout=60)
    keys = [
        await ring.generate("ec", "ec-p256"),
        await ring.generate("ed", "ed25519"),
        await ring.generate("ec-too", "ec-p384"),
    ]
    totals: list[int] = []
    others = [
        threading.Thread(target=lambda: totals.append(asyncio.run(hammer(keys, 50, seconds))))
        for _ in range(4)
    ]
    for other in others:
        other.start()

    async def come_and_go() -> None:
        while any(other.is_alive() for other in others):
            made = await ring.generate("passing", "ec-p256")
            await ring.open(made.uri)
            await made.attributes()
            await asyncio.sleep(0.05)

    async def damage() -> None:
        """Kill this ring's sessions under its feet, one by one and all at once."""
        module, token = ring._module, ring._token
        assert module is not None
        assert token is not None

        def close_session() -> None:
            opened = getattr(token._local, "opened", None)
            if opened is not None and opened.generation == module.generation:
                opened.session.close()

        while any(other.is_alive() for other in others):
            await asyncio.sleep(0.1)
            await module.signer.run(close_session, timeout=60)
            await asyncio.sleep(0.1)
            await module.signer.run(module.restart, timeout=60)

    own, _, _ = await asyncio.gather(hammer(keys, 300, seconds), come_and_go(), damage())
    for other in others:
        other.join()
    assert len(totals) == len(others), "a thread failed"
    await ring.close()
    return own + sum(totals)


if __name__ == "__main__":
    print(asyncio.run(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
