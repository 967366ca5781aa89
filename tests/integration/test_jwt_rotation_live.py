"""A key for JWT-SVIDs is rotated under verifiers in full use, and no token is refused.

Verifiers keep the published keys for a second, from whichever server they asked, as any of
them may; tokens come from all. A token must verify with what was known before it was made,
and with what is published for as long as it lives.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from meshmint import Client, MeshmintError
from support.service import Service, ServiceFactory

AUDIENCE = "https://api.example.org"
KEPT_SECONDS = 1.0
SETTINGS = {"workers": 2, "jwt_svid": {"enabled": True, "publish_for": "3s"}}
TOKENS = 30


@pytest.fixture(params=["sqlite", "postgresql with two replicas"])
def services(
    request: pytest.FixtureRequest, service_factory: ServiceFactory
) -> Iterator[list[Service]]:
    """A service of two workers, and in the second case a replica of it."""
    if request.param == "sqlite":
        with service_factory.start(**SETTINGS) as service:
            yield [service]
        return
    url = request.getfixturevalue("postgres_url")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(service_factory.start(**SETTINGS, store=url))
        yield [service, stack.enter_context(service.replica())]


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def fetch(service: Service) -> dict[str, Any]:
    """The keys by their kid, as some worker publishes them."""
    url = service.http_url + "/.well-known/jwks.json"
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
        keys = json.loads(response.read())["keys"]
    return {key["kid"]: jwt.PyJWK(key) for key in keys}


def verify(token: str, keys: dict[str, Any]) -> str:
    """The key that a token was signed with; raises if it is not to be believed."""
    kid: str = jwt.get_unverified_header(token)["kid"]
    jwt.decode(token, keys[kid], algorithms=["ES256"], audience=AUDIENCE)
    return kid


class Verifiers:
    """Get tokens and check them, without end, until they are stopped."""

    def __init__(self, services: list[Service], role: str) -> None:
        self._services = services
        self._role = role
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.first: dict[str, str] = {}
        self.faults: list[str] = []
        self.verified = 0

    def __enter__(self) -> Verifiers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        sources = itertools.cycle(self._services)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(
                    Client(one.address, token=one.token, root_certificates=one.ca_file)
                )
                for one in self._services
                for _ in range(2)
            ]
            for client in itertools.cycle(clients):
                if self._stopped.is_set():
                    return
                try:
                    self._round(client, fetch(next(sources)))
                except (MeshmintError, OSError) as error:
                    self.faults.append(f"no token or no keys: {error!r}")

    def _round(self, client: Client, known: dict[str, Any]) -> None:
        """Keys that were fetched first verify every token that is made while they are kept."""
        fetched_at = time.monotonic()
        while time.monotonic() < fetched_at + KEPT_SECONDS and not self._stopped.is_set():
            token = client.issue_jwt_svid([AUDIENCE], self._role).token
            self._check(token, known)
            for earlier in self.first.values():
                self._check(earlier, known)
            time.sleep(0.02)

    def _check(self, token: str, keys: dict[str, Any]) -> None:
        try:
            self.first.setdefault(verify(token, keys), token)
            self.verified += 1
        except (KeyError, jwt.InvalidTokenError) as error:
            self.faults.append(repr(error))


def test_tokens_of_the_old_key_and_the_new_verify_at_all_times(services: list[Service]) -> None:
    service = services[0]
    role = service.put_role(
        {"spiffe": "own", "key_type": "ec", "jwt_svid": {"audiences": [AUDIENCE]}}
    )

    def rotate() -> bool:
        return service.meshmintd("jwt-keys", "rotate", "-c", service.config_path).returncode == 0

    def key_of_a_new_token(one: Service) -> str:
        with Client(one.address, token=one.token, root_certificates=one.ca_file) as client:
            token = client.issue_jwt_svid([AUDIENCE], role).token
        return str(jwt.get_unverified_header(token)["kid"])

    for one in services:
        one.wait_until_everywhere(role)
        until(lambda one=one: len(fetch(one)) == 1)
        until(lambda one=one: _answers(lambda: key_of_a_new_token(one)))
    (old,) = fetch(service)
    with Verifiers(services, role) as verifiers:
        until(lambda: verifiers.verified > TOKENS)
        assert rotate()
        (new,) = fetch_until_two(service) - {old}
        assert {key_of_a_new_token(one) for one in services} == {old}
        until(rotate)
        for one in services:
            until(lambda one=one: key_of_a_new_token(one) == new)
        seen = verifiers.verified
        until(lambda: set(verifiers.first) == {old, new} and verifiers.verified > seen + TOKENS)
    assert verifiers.faults == []
    for one in services:
        assert set(fetch(one)) == {old, new}
        for token in verifiers.first.values():
            verify(token, fetch(one))
    refused = service.meshmintd("jwt-keys", "remove", "-c", service.config_path, old)
    assert refused.returncode == 1
    assert "may live until" in refused.stderr
    done = service.meshmintd("jwt-keys", "remove", "-c", service.config_path, old, "--at-once")
    assert done.returncode == 0, done.stderr
    for one in services:
        until(lambda one=one: set(fetch(one)) == {new}, 10)
    with Client(service.address, root_certificates=service.ca_file) as client:
        bundle = next(client.watch_trust_bundle())
    assert [key["kid"] for key in json.loads(bundle.jwt_keys)["keys"]] == [new]


def fetch_until_two(service: Service) -> set[str]:
    until(lambda: len(fetch(service)) == 2)
    return set(fetch(service))


def _answers(call: Callable[[], object]) -> bool:
    try:
        call()
    except MeshmintError:
        return False
    return True
