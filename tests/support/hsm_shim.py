"""An HSM that fails on command: a PKCS#11 module around SoftHSM, see shim/shim.c.

    shim = Shim(build_shim(directory), module, directory / "control")
    … start a program with module-path=shim.module and shim.environment …
    shim.fail("C_Sign", Ckr.DEVICE_ERROR)
    … the program's signatures fail, from now on and in all its processes …
    shim.heal()

Serves tests and benchmarks; knows nothing of the service.
"""

from __future__ import annotations

import mmap
import re
import signal
import struct
import subprocess
import time
from enum import IntEnum
from pathlib import Path

import pytest
from support.programs import program

__all__ = ["DEVICE", "Ckr", "Shim", "build_shim", "built_shim"]

_SOURCE = Path(__file__).with_name("shim")
# (name, number of arguments, whether the first is a session), in the order of struct control.
_TABLE: list[tuple[str, str, str]] = re.findall(
    r"^F\((C_\w+), (\d), (\w+)\)$", (_SOURCE / "functions.def").read_text(), re.MULTILINE
)
_INDEX = {name: index for index, (name, _, _) in enumerate(_TABLE)}

DEVICE = tuple(
    name
    for name, _, first in _TABLE
    if first == "SESSION" or name in {"C_OpenSession", "C_CloseAllSessions", "C_GetTokenInfo"}
)
"""What cannot be done without the device."""

# struct control: two times, then a struct fault for each function.
_TIMES = struct.Struct("@qq")
_FAULT = struct.Struct("@QQqQQ")
_SIZE = _TIMES.size + len(_TABLE) * _FAULT.size
_ENDLESS = -1


class Ckr(IntEnum):
    """Return values of PKCS#11 2.40, as far as tests need them."""

    HOST_MEMORY = 0x02
    GENERAL_ERROR = 0x05
    FUNCTION_FAILED = 0x06
    DEVICE_ERROR = 0x30
    DEVICE_MEMORY = 0x31
    DEVICE_REMOVED = 0x32
    FUNCTION_CANCELED = 0x50
    KEY_HANDLE_INVALID = 0x60
    OPERATION_ACTIVE = 0x90
    OPERATION_NOT_INITIALIZED = 0x91
    SESSION_CLOSED = 0xB0
    SESSION_HANDLE_INVALID = 0xB3
    TOKEN_NOT_PRESENT = 0xE0
    USER_NOT_LOGGED_IN = 0x101


class _Action(IntEnum):
    NONE, FAIL, HANG, DELAY, FLIP, CRASH = range(6)


def build_shim(directory: Path, name: str = "shim.so") -> Path:
    """Compiles the module into a directory, and tells where it is.

    Under the name ``p11-kit-proxy.so`` and around the real one, it takes several threads.
    """
    built = directory / name
    subprocess.run(
        [
            program("cc"), "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
            "-pthread", "-o", built, _SOURCE / "shim.c", "-ldl",
        ],
        check=True,
    )  # fmt: skip
    return built


class Shim:
    """The module, and what it does wrong at present. One fault per function at a time."""

    def __init__(self, built: Path, real_module: Path, control: Path) -> None:
        """Takes what `build_shim` made, the module that does the work, and a file to make."""
        self.module = built
        control.write_bytes(bytes(_SIZE))
        self.environment = {
            "MESHMINT_TEST_SHIM_MODULE": str(real_module),
            "MESHMINT_TEST_SHIM_CONTROL": str(control),
        }
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _SIZE)

    # Faults: each lasts until `heal`, or for a number of calls, all processes together

    def fail(self, *functions: str, with_: Ckr, calls: int = _ENDLESS) -> None:
        """Has functions do nothing and return an error."""
        for function in functions:
            self._set(function, _Action.FAIL, int(with_), calls)

    def hang(self, function: str, calls: int = _ENDLESS) -> None:
        """Has a function never return; `heal` is for later calls only."""
        self._set(function, _Action.HANG, 0, calls)

    def delay(self, function: str, seconds: float, calls: int = _ENDLESS) -> None:
        """Has a function take so much longer; calls wait side by side."""
        self._set(function, _Action.DELAY, round(seconds * 1e9), calls)

    def crash(self, function: str, number: signal.Signals, calls: int = _ENDLESS) -> None:
        """Has a function end its process, as SIGSEGV and abort() do."""
        self._set(function, _Action.CRASH, int(number), calls)

    def flip_signatures(self, calls: int = _ENDLESS) -> None:
        """Has C_Sign return signatures with a wrong bit."""
        self._set("C_Sign", _Action.FLIP, 0, calls)

    def end_idle_sessions(self, seconds: float) -> None:
        """Has sessions end that were not used for so long."""
        struct.pack_into("@q", self._control, 0, round(seconds * 1e9))

    def end_sessions(self) -> None:
        """Ends every session that is open now, as when a cluster of HSMs fails over."""
        struct.pack_into("@q", self._control, 8, time.monotonic_ns())

    def heal(self) -> None:
        """Ends every fault."""
        self.end_idle_sessions(0)
        for function in _INDEX:
            struct.pack_into("@Q", self._control, _offset(function), _Action.NONE)

    # What happened

    def met(self, function: str) -> int:
        """How many calls of a function have met a fault, ever."""
        return self._read(function)[3]

    def calls(self, function: str) -> int:
        """How often a function has been called, ever."""
        return self._read(function)[4]

    def _set(self, function: str, action: _Action, value: int, calls: int) -> None:
        offset = _offset(function)
        struct.pack_into("@Q", self._control, offset, _Action.NONE)
        struct.pack_into("@Qq", self._control, offset + 8, value, calls)
        struct.pack_into("@Q", self._control, offset, action)

    def _read(self, function: str) -> tuple[int, ...]:
        return _FAULT.unpack_from(self._control, _offset(function))

    def close(self) -> None:
        """Lets go of the control file."""
        self._control.close()


def _offset(function: str) -> int:
    return _TIMES.size + _INDEX[function] * _FAULT.size


@pytest.fixture(scope="session")
def built_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled module."""
    return build_shim(tmp_path_factory.mktemp("shim"))
