"""An HSM that fails in every way we know of, under a running service with callers.

What holds in each case: callers are told to come again, and nothing else; nothing that
does not verify or is not on record is handed out; readiness says what is; and when the
token is back, so is the service, by itself.
"""

from __future__ import annotations

import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.hsm_shim import DEVICE, Ckr, Shim
from support.service import Service
from support.softhsm import require_module
from support.steady_load import SteadyLoad

# Generous: these tests may not depend on the machine's pace.
RECOVERY_SECONDS = 60
SIGN_TIMEOUT = 3.0


class Faulty:
    """A service, and the faults of its HSM."""

    def __init__(self, directory: Path, built_shim: Path) -> None:
        self.shim = Shim(built_shim, require_module(), directory / "control")
        self.service = Service(
            directory / "service",
            workers=1,
            shim=self.shim,
            keys={"sign_timeout": SIGN_TIMEOUT},
        )
        self.service.start()
        self._health = health_pb2_grpc.HealthStub(self.service.channel)
        self.role = self.service.put_role({"spiffe": "own", "key_type": "ec"})

    def close(self) -> None:
        self.shim.heal()
        self.service.stop()
        self.shim.close()

    def health(self) -> int:
        """What a load balancer is told."""
        answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return int(answer.status)

    def is_ready(self) -> bool:
        """What Kubernetes and load balancers are told, once they are told the same."""

        def both() -> tuple[bool, bool]:
            try:
                with urllib.request.urlopen(self.service.http_url + "/readyz", timeout=10) as told:  # noqa: S310
                    http = told.status == 200
            except urllib.error.HTTPError as error:
                http = error.code != 503  # whatever else it is, it is no word on the token
            return http, self.health() == health_pb2.HealthCheckResponse.SERVING

        while len(set(told := both())) > 1:
            time.sleep(0.02)
        return told[0]

    def heal(self) -> None:
        """Ends the faults, and waits until the service has got over them."""
        self.shim.heal()
        wait_for(self.is_ready)

    def load(self) -> SteadyLoad:
        return SteadyLoad(self.service, self.role)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, built_shim: Path) -> Iterator[Faulty]:
    faulty = Faulty(tmp_path_factory.mktemp("hsm"), built_shim)
    yield faulty
    faulty.close()


@pytest.fixture
def faulty(started: Faulty) -> Iterator[Faulty]:
    """Well at the beginning, and again at the end."""
    workers = started.service.worker_pids()
    yield started
    started.heal()
    assert started.service.worker_pids() == workers, "a fault of the token cost a worker"


def gets_certificates(load: SteadyLoad) -> None:
    """Waits until callers get some again."""
    before = len(load.svids)
    wait_for(lambda: len(load.svids) > before + 3)


LASTING: dict[str, tuple[str, Callable[[Shim], None]]] = {
    "hangs in C_Sign": ("C_Sign", lambda shim: shim.hang("C_Sign")),
    "hangs in C_Login": ("C_Login", lambda shim: lose_sessions(shim).hang("C_Login")),
    "is removed": ("C_SignInit", lambda shim: shim.fail(*DEVICE, with_=Ckr.DEVICE_REMOVED)),
    "logs out": ("C_SignInit", lambda shim: shim.fail("C_SignInit", with_=Ckr.USER_NOT_LOGGED_IN)),
    "forgets sessions": (
        "C_SignInit",
        lambda shim: shim.fail("C_SignInit", with_=Ckr.SESSION_HANDLE_INVALID),
    ),
    "is busy": ("C_SignInit", lambda shim: shim.fail("C_SignInit", with_=Ckr.OPERATION_ACTIVE)),
    "errs": ("C_Sign", lambda shim: shim.fail("C_Sign", with_=Ckr.DEVICE_ERROR)),
    "errs without a word": ("C_Sign", lambda shim: shim.fail("C_Sign", with_=Ckr.GENERAL_ERROR)),
    "takes no login": (
        "C_Login",
        lambda shim: lose_sessions(shim).fail("C_Login", with_=Ckr.FUNCTION_FAILED),
    ),
    "cannot be started": (
        "C_Initialize",
        lambda shim: crash_once(shim).fail("C_Initialize", with_=Ckr.GENERAL_ERROR),
    ),
    "signs wrongly": ("C_Sign", lambda shim: shim.flip_signatures()),
    "crashes": ("C_Sign", lambda shim: shim.crash("C_Sign", signal.SIGSEGV)),
    "aborts": ("C_Sign", lambda shim: shim.crash("C_Sign", signal.SIGABRT)),
}


def lose_sessions(shim: Shim) -> Shim:
    shim.end_sessions()
    return shim


def crash_once(shim: Shim) -> Shim:
    shim.crash("C_Sign", signal.SIGSEGV, calls=1)
    return shim


@pytest.mark.parametrize("name", LASTING)
def test_a_token_that_fails_is_told_as_such_and_got_over_once_it_is_back(
    faulty: Faulty, name: str
) -> None:
    function, begin = LASTING[name]
    met = faulty.shim.met(function)
    with faulty.load() as load:
        gets_certificates(load)
        begin(faulty.shim)
        wait_for(lambda: not faulty.is_ready())
        refused = load.refusals.total()
        wait_for(lambda: load.refusals.total() > refused + 3)
        assert not faulty.is_ready()
        faulty.heal()
        gets_certificates(load)
    load.verify()
    assert faulty.shim.met(function) > met


@pytest.mark.parametrize(
    "value",
    [
        Ckr.DEVICE_REMOVED,
        Ckr.USER_NOT_LOGGED_IN,
        Ckr.SESSION_HANDLE_INVALID,
        Ckr.SESSION_CLOSED,
        Ckr.OPERATION_ACTIVE,
        Ckr.DEVICE_ERROR,
        Ckr.GENERAL_ERROR,
        Ckr.KEY_HANDLE_INVALID,
    ],
)
def test_callers_do_not_notice_what_fails_once(faulty: Faulty, value: Ckr) -> None:
    with faulty.load() as load:
        for function in ("C_SignInit", "C_Sign"):
            met = faulty.shim.met(function)
            faulty.shim.fail(function, with_=value, calls=1)
            wait_for(lambda function=function, met=met: faulty.shim.met(function) > met)
            gets_certificates(load)
    load.verify()
    assert not load.refusals


def test_callers_do_not_notice_that_all_sessions_end_at_once(faulty: Faulty) -> None:
    with faulty.load() as load:
        for _ in range(12):
            opened = faulty.shim.calls("C_OpenSession")
            faulty.shim.end_sessions()
            wait_for(lambda opened=opened: faulty.shim.calls("C_OpenSession") > opened)
            gets_certificates(load)
    load.verify()
    assert not load.refusals


def test_callers_do_not_notice_that_idle_sessions_end(faulty: Faulty) -> None:
    faulty.shim.end_idle_sessions(0.2)
    opened = faulty.shim.calls("C_OpenSession")
    with SteadyLoad(faulty.service, faulty.role, callers=1, pause=0.4) as load:
        wait_for(lambda: len(load.svids) >= 12)
    load.verify()
    assert not load.refusals
    assert faulty.shim.calls("C_OpenSession") > opened + 10


def test_one_crash_or_hang_is_got_over_by_itself(faulty: Faulty) -> None:
    with faulty.load() as load:
        for begin in (crash_once, lambda shim: shim.hang("C_Sign", calls=1)):
            met = faulty.shim.met("C_Sign")
            begin(faulty.shim)
            wait_for(lambda met=met: faulty.shim.met("C_Sign") > met)
            gets_certificates(load)
            wait_for(faulty.is_ready)
    load.verify()


def test_a_token_that_starts_slower_than_it_may_sign_is_waited_for(faulty: Faulty) -> None:
    started = faulty.shim.met("C_Initialize")
    faulty.shim.delay("C_Initialize", SIGN_TIMEOUT + 2)
    with faulty.load() as load:
        crash_once(faulty.shim)
        wait_for(lambda: faulty.shim.met("C_Initialize") > started)
        gets_certificates(load)
    load.verify()


def test_a_worker_that_starts_with_a_slow_token_serves_once_it_can(started: Faulty) -> None:
    started.shim.delay("C_Initialize", SIGN_TIMEOUT + 2)
    before = started.service.worker_pids()
    started.service.restart_workers()
    started.service.wait_until_ready(without=before)
    with started.load() as load:
        gets_certificates(load)
    load.verify()
    started.heal()
