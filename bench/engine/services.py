"""The services that are measured: the real `meshmintd serve`, set up for one question each.

Whoever asks for one gets it running, and it ends with the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from growth.fill import fill_store
from growth.service import make_probe
from peers.meshmint import Meshmint
from peers.workload import ROLE
from support.hsm_shim import Shim, build_shim
from support.service import Service
from support.softhsm import require_module

from engine.sessions import signatures_per_second

__all__ = ["put_roles", "serving", "serving_from_hsm", "serving_with_records"]

_PROXIES: Final = (
    "/usr/lib/x86_64-linux-gnu/p11-kit-proxy.so",
    "/usr/lib/aarch64-linux-gnu/p11-kit-proxy.so",
    "/usr/lib64/p11-kit-proxy.so",
    "/usr/lib/p11-kit-proxy.so",
    "/usr/local/lib/p11-kit-proxy.so",
    "/opt/homebrew/lib/p11-kit-proxy.so",
)


@contextmanager
def serving(directory: Path, **options: Any) -> Iterator[tuple[Service, Meshmint]]:
    """A service with SQLite, its key in SoftHSM."""
    with _running(Service(directory, **options)) as started:
        yield started


@contextmanager
def serving_with_records(directory: Path, count: int, workers: int) -> Iterator[Meshmint]:
    """A service whose store has so many records, as `make growth` fills it."""
    # Nothing of what is filled in may be tidied away meanwhile.
    service = Service(directory, workers=workers, tidy={"enabled": False})
    service.start()
    try:
        probe = make_probe(service)
    finally:
        service.stop()
    fill_store(service.config["store"], count, probe, lambda _: None)
    with _running(service) as (_, server):
        yield server


@contextmanager
def serving_from_hsm(
    directory: Path, threads: int, workers: int
) -> Iterator[tuple[Meshmint, Shim, Callable[[float], float]]]:
    """A service whose HSM takes as long as it is told to; several threads go through p11-kit.

    With it comes what tells how many signatures a second as many sessions give without a
    service, when they sign for so many seconds.
    """
    directory.mkdir()
    control = directory / "control"
    keys: dict[str, int] = {}
    if threads == 1:
        shim = Shim(build_shim(directory), require_module(), control)
    else:
        # Only under this name may a module have several threads. The delay comes before the
        # proxy: p11-kit lets nobody but packages say, if run by root, what it loads.
        shim = Shim(build_shim(directory, _proxy().name), _proxy(), control)
        shim.environment["HOME"] = str(directory)
        _tell_proxy_of_softhsm(directory)
        keys["threads"] = threads
    with _running(Service(directory, workers=workers, shim=shim, keys=keys)) as (service, server):

        def sessions_give(seconds: float) -> float:
            return signatures_per_second(
                service.module,
                "meshmint",
                seconds,
                processes=workers,
                sessions=threads,
                environment=service.token_environment,
            )

        yield server, shim, sessions_give
    shim.close()


def _proxy() -> Path:
    proxy = next((place for place in map(Path, _PROXIES) if place.is_file()), None)
    if proxy is None:
        raise FileNotFoundError("p11-kit-proxy.so is missing. Install the package p11-kit.")
    return proxy


def _tell_proxy_of_softhsm(home: Path) -> None:
    """Under the name that packages use, so that it is not there twice."""
    modules = home / ".config" / "pkcs11" / "modules"
    modules.mkdir(parents=True)
    (modules / "softhsm2.module").write_text(f"module: {require_module()}\n", "utf-8")


@contextmanager
def _running(service: Service) -> Iterator[tuple[Service, Meshmint]]:
    service.start()
    try:
        yield service, Meshmint.on_sqlite(service.directory.name, service)
    finally:
        service.stop()


def put_roles(service: Service, count: int) -> tuple[str, ...]:
    """Puts so many roles that allow the same, and tells their names."""
    names = tuple(f"role-{number:04}" for number in range(count))
    for name in names:
        service.put_named_role(name, ROLE | {"spiffe": "own"})
    service.wait_until_everywhere(names[-1])
    return names
