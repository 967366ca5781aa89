"""Initialises a PKCS#11 token, as a program of its own, with nothing but ctypes.

Run as a child process: the module must not be initialised twice in one process,
and the PINs come through standard input, as JSON, so that no process list ever
shows them. Prints the token's serial number.
"""

import ctypes
import json
import sys

_INIT, _LABEL_SIZE, _USER_SO = 0, 32, 0
_RW_SERIAL = 0x2 | 0x4
_TOKEN_INITIALIZED = 0x400


class _TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO, PKCS#11 2.40 section 3.4."""

    _fields_ = (
        ("label", ctypes.c_char * 32),
        ("manufacturer_id", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial_number", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("numbers", ctypes.c_ulong * 10),
        ("versions", ctypes.c_ubyte * 4),
        ("utc_time", ctypes.c_char * 16),
    )


def _check(name: str, status: int) -> None:
    if status:
        raise SystemExit(f"{name} failed with 0x{status:08x}")


def _slots(library: ctypes.CDLL) -> list[int]:
    count = ctypes.c_ulong()
    _check("C_GetSlotList", library.C_GetSlotList(1, None, ctypes.byref(count)))
    slots = (ctypes.c_ulong * count.value)()
    _check("C_GetSlotList", library.C_GetSlotList(1, slots, ctypes.byref(count)))
    return list(slots[: count.value])


def _info(library: ctypes.CDLL, slot: int) -> _TokenInfo:
    info = _TokenInfo()
    _check("C_GetTokenInfo", library.C_GetTokenInfo(ctypes.c_ulong(slot), ctypes.byref(info)))
    return info


def main() -> None:
    """Read {module, label, so_pin, pin} and initialise the first free slot with them."""
    order = json.load(sys.stdin)
    label, so_pin, pin = (order[name].encode() for name in ("label", "so_pin", "pin"))
    library = ctypes.CDLL(order["module"])
    _check("C_Initialize", library.C_Initialize(None))
    slots = _slots(library)
    taken = {_info(library, slot).label.rstrip(b" \0") for slot in slots}
    if label in taken:
        raise SystemExit("a token with this label already exists")
    free = [slot for slot in slots if not _info(library, slot).flags & _TOKEN_INITIALIZED]
    if not free:
        raise SystemExit("there is no free slot")
    _check(
        "C_InitToken",
        library.C_InitToken(
            ctypes.c_ulong(free[0]), so_pin, ctypes.c_ulong(len(so_pin)), label.ljust(_LABEL_SIZE)
        ),
    )
    # The module may renumber slots once a token is in one: find it again by its label.
    slot = next(
        slot for slot in _slots(library) if _info(library, slot).label.rstrip(b" \0") == label
    )
    session = ctypes.c_ulong()
    _check(
        "C_OpenSession",
        library.C_OpenSession(
            ctypes.c_ulong(slot), ctypes.c_ulong(_RW_SERIAL), None, None, ctypes.byref(session)
        ),
    )
    _check(
        "C_Login",
        library.C_Login(session, ctypes.c_ulong(_USER_SO), so_pin, ctypes.c_ulong(len(so_pin))),
    )
    _check("C_InitPIN", library.C_InitPIN(session, pin, ctypes.c_ulong(len(pin))))
    print(_info(library, slot).serial_number.decode().strip())
    _check("C_Finalize", library.C_Finalize(None))


if __name__ == "__main__":
    main()
