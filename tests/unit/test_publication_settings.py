"""Where certificates say that CRLs are: what may go into a certificate for years."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.authority import shard_of
from meshmint_server.config import PublicationSettings
from pydantic import ValidationError


@pytest.mark.parametrize(
    "url",
    ["http://pki.example.org", "https://pki.example.org:8443/mesh/ca", "http://[2001:db8::1]:80"],
)
def test_base_urls(url: str) -> None:
    assert PublicationSettings(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://pki.example.org/",
        "http://pki.example.org?x=1",
        "http://pki.example.org#x",
        "http://user@pki.example.org",
        "http://pki.example.org/../ca",
        "http://pki.example.org/a b",
        "http://pki.example.org\n",
        "http://PKI.example.org",
        "http://pki.exämple.org",
        "ldap://pki.example.org",
        "pki.example.org",
        "http://",
        "http://" + "a" * 200,
    ],
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(ValidationError, match="lower-case host"):
        PublicationSettings(url=url)


@pytest.mark.parametrize(
    "settings",
    [
        {"crl_shards": 2},
        {"crl_shards": 2, "url": "http://pki.example.org", "include": ["ocsp"]},
        {"crl_shards": 0},
        {"crl_shards": 257, "url": "http://pki.example.org"},
        {"include": ["crl", "crl"]},
        {"include": ["aia"]},
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PublicationSettings.model_validate(settings)


@given(st.integers(min_value=1, max_value=2**159), st.integers(min_value=1, max_value=256))
def test_a_certificate_belongs_to_one_of_the_shards(serial: int, shards: int) -> None:
    assert shard_of(serial, shards) in range(shards)
    assert shard_of(serial, 1) == 0
