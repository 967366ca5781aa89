"""What an HSM's sessions give with no service in between: they sign in a loop, by python-pkcs11.

A program, because PKCS#11 modules belong to a process:
`python -m engine.sessions MODULE TOKEN SECONDS SESSIONS`, with the PIN in MESHMINT_TEST_PIN.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import pkcs11
from pkcs11 import KeyType, Mechanism, ObjectClass

__all__ = ["signatures_per_second"]

_DIGEST = bytes(32)
_START_SECONDS = 60


def signatures_per_second(
    module: str,
    token: str,
    seconds: float,
    *,
    processes: int,
    sessions: int,
    environment: Mapping[str, str],
) -> float:
    """Signs with the token's first EC key, side by side.

    Args:
        module: Path of the PKCS#11 module.
        token: The token's label.
        seconds: For how long.
        processes: How many.
        sessions: How many each has, with a thread for each.
        environment: Of the processes; MESHMINT_TEST_PIN is the PIN.

    Raises:
        RuntimeError: A process has failed; its error is above.
    """
    command = [sys.executable, "-m", "engine.sessions", module, token, f"{seconds}", f"{sessions}"]
    running: list[subprocess.Popen[str]] = []
    # All begin when all are ready. One after the other gets so far: SoftHSM writes to its token
    # at a login, and who looks for tokens at that moment may not find it.
    for _ in range(processes):
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        process.stdout.readline()
    told = [process.communicate("\n", timeout=seconds + _START_SECONDS)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("what the sessions give could not be measured")
    return sum(map(float, told))


def _sign(session: pkcs11.Session, ends: float, counts: list[int]) -> None:
    (key, *_) = session.get_objects(
        {pkcs11.Attribute.CLASS: ObjectClass.PRIVATE_KEY, pkcs11.Attribute.KEY_TYPE: KeyType.EC}
    )
    count = 0
    while time.monotonic() < ends:
        key.sign(_DIGEST, mechanism=Mechanism.ECDSA)
        count += 1
    counts.append(count)


def main() -> None:
    """Says when it is ready, waits for a line, signs, and prints signatures per second."""
    module, label, seconds, wanted = sys.argv[1:]
    token = pkcs11.lib(module).get_token(token_label=label)
    # Whoever logs in does it for the whole process.
    sessions = [token.open(user_pin=os.environ["MESHMINT_TEST_PIN"])]
    sessions += [token.open() for _ in range(int(wanted) - 1)]
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    counts: list[int] = []
    threads = [
        threading.Thread(target=_sign, args=(session, began + float(seconds), counts))
        for session in sessions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != len(threads):
        sys.exit(1)
    print(sum(counts) / (time.monotonic() - began))


if __name__ == "__main__":
    main()
