"""Tokens, transports and retries: what a client accepts before it sends anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint import (
    Client,
    ClientCertificate,
    ConfigurationError,
    InternalError,
    MeshmintError,
    ResourceExhausted,
    RetryPolicy,
    TokenFile,
    TokenUnavailable,
    Unavailable,
    UnsafeTransport,
)
from meshmint.retry import Attempts
from meshmint.tls import Transport, is_local
from meshmint.tokens import Tokens

# --- tokens -----------------------------------------------------------------


def test_token_file_loses_the_white_space_around_the_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  abc.def.ghi \r\n\n")
    assert TokenFile(path)() == "abc.def.ghi"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"two tokens", "one bearer token"),
        (b"\xff", "one"),
    ],
)
def test_token_file_without_a_token_is_named(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "the-token-file"
    path.write_bytes(content)
    with pytest.raises(TokenUnavailable, match=f"the-token-file.*{complaint}"):
        TokenFile(path)()


def test_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenUnavailable, match=r"nothing-here: No such file"):
        TokenFile(tmp_path / "nothing-here")()


@pytest.mark.parametrize("token", ["a b", "a\r\nx-evil: 1", "ü", "", " "])
def test_a_token_that_could_break_a_header_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(TokenUnavailable) as caught:
        Tokens.of(token)
    assert "evil" not in str(caught.value)
    with pytest.raises(TokenUnavailable):
        Tokens.of(lambda: token).get()


def test_a_token_larger_than_any_service_takes_is_refused_before_it_is_sent() -> None:
    assert Tokens.of("a" * 16 * 1024).get()
    with pytest.raises(TokenUnavailable, match="16385 bytes"):
        Tokens.of("a" * (16 * 1024 + 1))


def test_a_path_given_as_a_token_is_noticed() -> None:
    with pytest.raises(ConfigurationError, match="TokenFile"):
        Tokens.of("/var/run/secrets/tokens/meshmint")


def test_no_repr_shows_a_token() -> None:
    assert "s3cret" not in repr(Tokens.of("s3cret"))
    assert "s3cret" not in repr(ClientCertificate("chain.pem", b"s3cret"))


async def test_a_blocking_source_may_give_an_awaitable() -> None:
    class Source:
        async def __call__(self) -> str:
            return "token"

    assert await Tokens.of(Source()).get_async() == "token"
    assert await Tokens.of(lambda: "plain").get_async() == "plain"
    assert await Tokens.of(None).get_async() is None


# --- transport --------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8443",
        "127.0.0.1:1",
        "127.1.2.3:1",
        "[::1]:8443",
        "ipv4:127.0.0.1:1",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "ipv6:[::1]:1",
        "dns:localhost:1",
        "dns:///localhost:1",
        "unix:/run/meshmint.sock",
        "unix:///run/meshmint.sock",
        "unix-abstract:meshmint",
        "localhost",
    ],
)
def test_targets_on_this_machine_may_do_without_tls(target: str) -> None:
    assert is_local(target)
    assert Transport.to(target, insecure=True).credentials is None


@pytest.mark.parametrize(
    "target",
    [
        "meshmint.example.org:8443",
        "localhost.example.org:1",
        "10.0.0.1:1",
        "0.0.0.0:1",
        "[::]:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "dns://10.0.0.1/localhost:1",
        "dns://localhost:1",
        "dns:///example.org:1",
        "xds:///localhost:1",
        "passthrough:///10.0.0.1:1",
        "127.0.0.1.example.org:1",
        "dns:1",
        "localhost:1,example.org:2",
    ],
)
def test_a_credential_never_goes_over_a_network_in_the_clear(target: str) -> None:
    with pytest.raises(UnsafeTransport, match="in the clear"):
        Client(target, token="t", insecure=True)


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="do not go together"):
        Transport.to("localhost:1", insecure=True, root_certificates=b"-----BEGIN ")
    with pytest.raises(ConfigurationError, match="without a scheme"):
        Transport.to("https://meshmint.example.org")
    with pytest.raises(ConfigurationError, match="no server"):
        Transport.to("")
    with pytest.raises(ConfigurationError, match=r"cannot read the root certificates from .*gone"):
        Transport.to("a:1", root_certificates=tmp_path / "gone.pem")
    with pytest.raises(ConfigurationError, match="no PEM block"):
        Transport.to("a:1", root_certificates=b"\x30\x82")


def test_the_system_roots_can_be_set_with_the_variable_that_openssl_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "roots.pem"
    path.write_text("not pem")
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(path))
    with pytest.raises(ConfigurationError, match=r"system's root certificates in .*roots\.pem"):
        Transport.to("a:1")


# --- retries ----------------------------------------------------------------


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    policy=st.builds(
        RetryPolicy,
        max_attempts=st.integers(1, 50),
        initial_delay=st.floats(0, 1),
        max_delay=st.floats(1, 100),
        multiplier=st.floats(1, 10),
    ),
    timeout=st.floats(0.01, 100),
    asked=st.lists(st.none() | st.floats(0, 20), max_size=60),
    share=st.floats(0, 1),
)
def test_pauses_never_pass_the_deadline_and_never_fall_short_of_retry_info(
    policy: RetryPolicy, timeout: float, asked: list[float | None], share: float
) -> None:
    clock = Clock()
    attempts = Attempts(
        policy, timeout, clock=clock, draw=lambda low, high: low + share * (high - low)
    )
    made = 0
    for retry_after in asked:
        made += 1
        pause = attempts.pause_after(Unavailable("x", retry_after=retry_after))
        if pause is None:
            break
        assert (retry_after or 0) <= pause <= (retry_after or 0) + policy.max_delay
        clock.now += pause
        assert clock.now < 1000.0 + timeout
    assert made <= policy.max_attempts


def test_back_off_grows_up_to_its_limit() -> None:
    policy = RetryPolicy(initial_delay=0.1, max_delay=1.0, multiplier=2)
    assert [policy.longest_delay(n) for n in (1, 2, 3, 4, 5, 10_000)] == [0.1, 0.2, 0.4, 0.8, 1, 1]


@pytest.mark.parametrize(
    "error",
    [
        InternalError("x"),
        MeshmintError("x"),
        # gRPC's own, without details: a message over the size limit.
        ResourceExhausted("x"),
    ],
)
def test_what_will_not_get_better_is_not_tried_again(error: MeshmintError) -> None:
    assert Attempts(RetryPolicy(), 10).pause_after(error) is None


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_time_out_must_be_a_time(timeout: float) -> None:
    with (
        Client("localhost:1", insecure=True, timeout=timeout) as client,
        pytest.raises(ConfigurationError, match="time-out"),
    ):
        client.get_chain()


@pytest.mark.parametrize(
    "wrong",
    [{"max_attempts": 0}, {"initial_delay": -1}, {"multiplier": 0.5}, {"max_delay": float("inf")}],
)
def test_a_retry_policy_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
