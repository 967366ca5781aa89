"""What the agent keeps on disk is believed only if it holds together."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from meshmint import ConfigurationError, generate_key, private_key_pem
from meshmint.agent.config import CertificateSettings, NamesSettings
from meshmint.agent.holdings import Holdings
from meshmint.agent.identities import Bundle
from meshmint.agent.kept import KeptCertificate, Unusable
from meshmint.agent.state import StateDirectory
from meshmint.errors import AnswerRefused
from meshmint.results import IssuedCertificate
from support.fake_service import OWN_SPIFFE_ID, Authority, pem

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def issued(authority: Authority, *names: x509.GeneralName) -> IssuedCertificate:
    key = generate_key()
    leaf = authority.mint(key.public_key(), [x509.UniformResourceIdentifier(OWN_SPIFFE_ID), *names])
    return IssuedCertificate(
        certificate_pem=pem(leaf),
        chain_pem=(pem(authority.certificate),),
        trust_bundle_pem=(pem(authority.root),),
        serial_number=f"{leaf.serial_number:x}",
        spiffe_id=OWN_SPIFFE_ID,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        role="workload",
        issuer="issuer-1",
        warnings=(),
        private_key_pem=private_key_pem(key),
    )


def kept(authority: Authority, name: str = "web") -> KeptCertificate:
    settings = CertificateSettings(name=name)
    return KeptCertificate.issued(issued(authority), settings, NOW)


def test_what_is_kept_is_read_again_as_it_was(authority: Authority, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    written = kept(authority)
    with state.locked():
        state.save("web", written)
        read = state.load("web")
        assert state.load("other") is None
    assert read is not None
    assert (read.certificate, read.chain, read.roots) == (
        written.certificate,
        written.chain,
        written.roots,
    )
    assert private_key_pem(read.key) == private_key_pem(written.key)
    assert (read.wanted, read.obtained_at) == (written.wanted, written.obtained_at)
    assert stat.S_IMODE((tmp_path / "state/certificates/web.json").stat().st_mode) == 0o600


def change(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        document[field] = value

    return changed


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (change("private_key", private_key_pem(generate_key())), "another public key"),
        (change("chain", []), "not signed by any root"),
        (change("roots", []), "no trust bundle"),
        (change("version", 2), "unknown version 2"),
        (change("private_key", ""), "cannot be parsed"),
        (change("certificate", "é"), "cannot be parsed"),
        (change("obtained_at", 1e300), "cannot be parsed"),
        (change("obtained_at", "x"), "not what the agent writes"),
        (change("more", 1), "not what the agent writes"),
    ],
)
def test_what_does_not_hold_together_is_not_used(
    authority: Authority, damage: Callable[[dict[str, Any]], None], told: str
) -> None:
    document = json.loads(kept(authority).to_text())
    damage(document)
    with pytest.raises(Unusable, match=told) as caught:
        KeptCertificate.from_text(json.dumps(document).encode())
    assert "PRIVATE" not in str(caught.value)


def test_a_certificate_of_another_authority_is_not_used(authority: Authority) -> None:
    document = json.loads(kept(authority).to_text())
    document["roots"] = [pem(Authority.create().root)]
    with pytest.raises(Unusable, match="not signed by any root"):
        KeptCertificate.from_text(json.dumps(document).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_are_more_than_unusable(text: bytes) -> None:
    with pytest.raises(Unusable):
        KeptCertificate.from_text(text)


@pytest.mark.parametrize("end", [1, 100, 700, 1500])
def test_a_file_that_ends_too_early_is_not_used(authority: Authority, end: int) -> None:
    with pytest.raises(Unusable):
        KeptCertificate.from_text(kept(authority).to_text().encode()[:end])


def test_no_key_is_in_a_repr(authority: Authority) -> None:
    shown = repr(kept(authority))
    assert "PRIVATE" not in shown
    assert "PrivateKey" not in shown


def test_an_answer_that_lacks_a_name_asked_for_is_refused(authority: Authority) -> None:
    settings = CertificateSettings(
        name="web", names=NamesSettings(dns_names=("a.example", "b.example"))
    )
    answer = issued(authority, x509.DNSName("a.example"))
    with pytest.raises(AnswerRefused, match=r"lacks b\.example"):
        KeptCertificate.issued(answer, settings, NOW)


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_state_directory_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "state"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 0700"), StateDirectory(path).locked():
        pass


def test_a_state_directory_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        state = StateDirectory(tmp_path / name)
        with pytest.raises(ConfigurationError, match="is not a directory"), state.locked():
            pass


def test_no_link_is_followed_in_the_state_directory(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    secret = tmp_path / "secret"
    secret.write_text("{}")
    with state.locked():
        (state.path / "certificates").mkdir()
        (state.path / "certificates/web.json").symlink_to(secret)
        with pytest.raises(Unusable):
            state.load("web")
        os.mkfifo(state.path / "certificates/pipe.json")
        with pytest.raises(Unusable):
            state.load("pipe")


def test_bundles_are_read_again_as_they_were(authority: Authority, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    keys = '{"keys":[{"kty":"EC","ü":1}]}'.encode()
    bundles = {
        "example.org": Bundle("example.org", (authority.root,), keys, 7),
        "other.example": Bundle("other.example", ()),
    }
    with state.locked():
        assert state.load_bundles() is None
        state.save_bundles(("example.org", bundles))
        assert state.load_bundles() == ("example.org", bundles)
        (state.path / "bundles.json").write_text('{"version":1,"own":"x","bundles":{}}')
        with pytest.raises(Unusable):
            state.load_bundles()


class TestHoldings:
    """What is published, and when."""

    def bundle(self, authority: Authority, name: str = "example.org", number: int = 1) -> Bundle:
        return Bundle(name, (authority.root,), sequence=number)

    async def test_nothing_is_published_before_it_is_known_whom_to_trust(
        self, authority: Authority
    ) -> None:
        holdings = Holdings()
        holdings.arrange(["web"], NOW)
        holdings.hold("web", kept(authority), NOW)
        assert holdings.identities.picture is None
        holdings.hold_bundle(self.bundle(authority), is_own=True, now=NOW)
        picture = holdings.identities.picture
        assert picture is not None
        assert [identity.name for identity in picture.identities] == ["web"]

    async def test_an_expired_certificate_is_left_out_and_the_order_is_that_of_the_file(
        self, authority: Authority
    ) -> None:
        holdings = Holdings()
        holdings.arrange(["second", "first"], NOW)
        holdings.hold_bundle(self.bundle(authority), is_own=True, now=NOW)
        for name in ("first", "second"):
            holdings.hold(name, kept(authority, name), NOW)
        picture = holdings.identities.picture
        assert picture is not None
        assert [identity.name for identity in picture.identities] == ["second", "first"]
        holdings.publish(NOW + timedelta(days=2))
        picture = holdings.identities.picture
        assert picture is not None
        assert picture.identities == ()

    async def test_what_says_nothing_new_is_not_published_again(self, authority: Authority) -> None:
        holdings = Holdings()
        holdings.arrange(["web"], NOW)
        assert holdings.hold_bundle(self.bundle(authority), is_own=True, now=NOW)
        holdings.hold("web", kept(authority), NOW)
        picture = holdings.identities.picture
        assert not holdings.hold_bundle(self.bundle(authority), is_own=True, now=NOW)
        holdings.publish(NOW)
        assert holdings.identities.picture is picture

    async def test_another_service_takes_nothing_over_of_the_trust_of_the_last_one(
        self, authority: Authority
    ) -> None:
        holdings = Holdings()
        holdings.hold_bundle(self.bundle(authority), is_own=True, now=NOW)
        holdings.hold_bundle(self.bundle(authority, "friend.example"), is_own=False, now=NOW)
        assert set(holdings.bundles[1]) == {"example.org", "friend.example"}
        holdings.hold_bundle(self.bundle(authority, "new.example"), is_own=True, now=NOW)
        assert set(holdings.bundles[1]) == {"new.example"}

    async def test_a_trust_domain_that_is_no_longer_federated_with_is_let_go(
        self, authority: Authority
    ) -> None:
        holdings = Holdings()
        holdings.hold_bundle(self.bundle(authority), is_own=True, now=NOW)
        holdings.hold_bundle(self.bundle(authority, "friend.example"), is_own=False, now=NOW)
        assert holdings.drop_bundles([], NOW)
        picture = holdings.identities.picture
        assert picture is not None
        assert set(picture.bundles) == {"example.org"}
