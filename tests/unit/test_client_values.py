"""Keys, requests, results, files and role documents: the client without a network."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import meshmint
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint import (
    AnswerRefused,
    InvalidArgument,
    IssuedCertificate,
    KeyAlgorithm,
    MeshmintError,
    generate_key,
    make_csr,
    private_key_pem,
)
from meshmint.files import Content, write_set
from meshmint.keys import KEY_ALGORITHMS
from meshmint.requests import issue_message, names_message, validity_message
from meshmint.roles import duration_from_text, role_document, role_message
from meshmint.v1 import role_pb2
from meshmint.verify import check_chain, order_chain
from support.fake_service import Authority, make_certificate, pem

NOW = datetime(2030, 1, 1, tzinfo=UTC)

# --- the public interface ---------------------------------------------------


def test_every_public_name_is_there_and_has_a_home_that_type_checkers_see() -> None:
    source = Path(meshmint.__file__).read_text()
    seen = re.findall(r"^    from meshmint\.(\w+) import (?:\(([^()]*)\)|(.*))$", source, re.M)
    by_module = {
        module: tuple(re.findall(r"\w+", several or single)) for module, several, single in seen
    }
    assert by_module == meshmint._MODULES
    assert sorted(name for names in by_module.values() for name in names) == meshmint.__all__
    for name in meshmint.__all__:
        assert getattr(meshmint, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        _ = meshmint.Clint  # type: ignore[attr-defined]


REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/guide/client.md", "client/README.md"])
def test_the_python_of_the_pages_compiles_and_imports_what_exists(page: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / page).read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        compile(block, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for names in re.findall(r"^from meshmint import (.*)$", block, re.M):
            assert set(names.split(", ")) <= set(meshmint.__all__)


def test_the_guide_has_every_error_with_its_code() -> None:
    guide = (REPOSITORY / "docs/guide/client.md").read_text()
    table = guide[guide.index("| Class | gRPC code |") :]
    for name in meshmint.__all__:
        found = getattr(meshmint, name)
        if isinstance(found, type) and issubclass(found, MeshmintError) and name != "MeshmintError":
            (row,) = (line for line in table.splitlines() if f"`{name}`" in line)
            assert f"| {found.default_code} |" in row


# --- keys and CSRs ----------------------------------------------------------


@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS)
def test_openssl_reads_the_key_and_accepts_the_csr(algorithm: KeyAlgorithm, tmp_path: Path) -> None:
    key = generate_key(algorithm)
    csr = tmp_path / "csr.pem"
    csr.write_bytes(
        make_csr(
            key,
            common_name="a.example",
            dns_names=["a.example"],
            ip_addresses=["10.0.0.1", "::1"],
            uris=["spiffe://example.org/a"],
            email_addresses=["a@a.example"],
        ).public_bytes(Encoding.PEM)
    )
    checked = subprocess.run(
        ["openssl", "req", "-in", csr, "-verify", "-noout", "-text"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "verify OK" in checked.stdout + checked.stderr
    assert "URI:spiffe://example.org/a" in checked.stdout
    assert "IP Address:0:0:0:0:0:0:0:1" in checked.stdout
    public = subprocess.run(
        ["openssl", "pkey", "-pubout", "-outform", "DER"],
        input=private_key_pem(key).encode(),
        capture_output=True,
        check=True,
    )
    csr_public = subprocess.run(
        ["openssl", "req", "-in", csr, "-noout", "-pubkey"], capture_output=True, check=True
    )
    as_der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"],
        input=csr_public.stdout,
        capture_output=True,
        check=True,
    )
    assert public.stdout == as_der.stdout


def test_names_that_a_csr_cannot_hold_are_all_told() -> None:
    with pytest.raises(InvalidArgument) as caught:
        make_csr(
            generate_key(),
            common_name="x" * 65,
            dns_names=["ok.example", "bücher.example"],
            ip_addresses=["10.0.0"],
        )
    assert [violation.field for violation in caught.value.violations] == [
        "names.dns_names[1]",
        "names.ip_addresses[0]",
        "names.common_name",
    ]


def test_an_unknown_key_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="ec-p256, ec-p384"):
        generate_key("dsa")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        issue_message("web", "rsa-1024", {})  # type: ignore[arg-type]


# --- requests ---------------------------------------------------------------


def test_a_single_string_is_not_taken_for_a_list_of_names() -> None:
    with pytest.raises(InvalidArgument, match=r"dns_names=\['a.example'\]"):
        names_message({"dns_names": "a.example"})


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no time zone"):
        validity_message({"not_after": datetime(2030, 1, 1)})  # noqa: DTZ001 - the fault


def test_ttl_and_not_after_exclude_each_other() -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        validity_message({"not_after": NOW, "ttl": timedelta(hours=1)})


def test_times_of_other_zones_are_sent_in_utc() -> None:
    zoned = datetime.fromisoformat("2030-01-01T02:00:00+02:00")
    assert validity_message({"not_before": zoned}).not_before.ToDatetime(tzinfo=UTC) == NOW


# --- results and files ------------------------------------------------------


@pytest.fixture
def issued() -> IssuedCertificate:
    authority = Authority.create()
    key = generate_key()
    leaf = authority.mint(key.public_key(), [x509.DNSName("a.example")])
    return IssuedCertificate(
        certificate_pem=pem(leaf),
        chain_pem=(pem(authority.certificate),),
        trust_bundle_pem=(pem(authority.root),),
        serial_number=f"{leaf.serial_number:x}",
        spiffe_id=None,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        role="web",
        issuer="issuer-1",
        warnings=(),
        private_key_pem=private_key_pem(key),
    )


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_no_repr_shows_a_private_key(issued: IssuedCertificate) -> None:
    shown = repr(issued) + str(issued)
    assert "PRIVATE" not in shown
    assert issued.serial_number in shown


def test_results_parse_what_they_hold(issued: IssuedCertificate) -> None:
    assert issued.private_key.public_key() == issued.certificate.public_key()
    assert issued.chain[0].subject == issued.certificate.issuer
    assert issued.trust_bundle[0].subject == issued.chain[0].issuer
    assert issued.expires_in(issued.not_after) == timedelta(0)
    assert timedelta(minutes=50) < issued.expires_in() < timedelta(hours=1)


@pytest.mark.usefixtures("open_umask")
def test_files_have_the_right_modes_even_under_an_open_umask(
    issued: IssuedCertificate, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "svid"
    written = issued.write_files(folder)
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()}
    assert modes == {
        "key.pem": "0o600",
        "cert.pem": "0o644",
        "chain.pem": "0o644",
        "fullchain.pem": "0o644",
        "bundle.pem": "0o644",
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in written} == set(modes)
    checked = subprocess.run(
        ["openssl", "verify", "-CAfile", "bundle.pem", "-untrusted", "chain.pem", "fullchain.pem"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == "fullchain.pem: OK\n", checked.stderr


@pytest.mark.usefixtures("open_umask")
def test_a_key_is_private_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    real = os.open

    def watched(path: str, flags: int, mode: int = 0o777, **kwargs: int) -> int:
        descriptor = real(path, flags, mode, **kwargs)
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    write_set(tmp_path, {"key.pem": Content("x", is_private=True)})
    assert modes[0] == 0o600


def test_an_open_key_file_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("old")
    key.chmod(0o666)
    with key.open() as old:
        write_set(tmp_path, {"key.pem": Content("new", is_private=True)})
        assert old.read() == "old"
    assert key.read_text() == "new"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "out" / "cert.pem"
    link.parent.mkdir()
    link.symlink_to(victim)
    write_set(link.parent, {"cert.pem": Content("new")})
    assert victim.read_text() == "precious"
    assert not link.is_symlink()


def test_if_one_file_fails_the_old_set_stays_whole_and_nothing_is_left_over(
    tmp_path: Path,
) -> None:
    write_set(tmp_path, {"key.pem": Content("old", is_private=True), "cert.pem": Content("old")})
    with pytest.raises(UnicodeEncodeError):
        write_set(
            tmp_path, {"key.pem": Content("new", is_private=True), "cert.pem": Content("\udcff")}
        )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "key.pem": "old",
        "cert.pem": "old",
    }


# --- chains -----------------------------------------------------------------


def test_a_chain_holds_only_with_cas_that_may_sign_at_this_depth() -> None:
    root_key, ca_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = make_certificate("root", root_key.public_key(), "root", root_key, ca=True, path_length=0)
    ca = make_certificate("ca", ca_key.public_key(), "root", root_key, ca=True)
    no_ca = make_certificate("ca", ca_key.public_key(), "root", root_key, ca=False)
    leaf = make_certificate("leaf", leaf_key.public_key(), "ca", ca_key)
    with pytest.raises(AnswerRefused, match="allows 0 CAs below it"):
        check_chain(leaf, [ca], [root])
    with pytest.raises(AnswerRefused, match="is not a CA certificate"):
        check_chain(leaf, [no_ca], [root])
    check_chain(ca, [], [root])


def test_a_root_of_the_same_name_with_another_key_does_not_help() -> None:
    authority, impostor = Authority.create(), Authority.create()
    leaf = authority.mint(generate_key().public_key(), [x509.DNSName("a.example")])
    with pytest.raises(AnswerRefused, match="not signed by any root"):
        check_chain(leaf, [authority.certificate], [impostor.root])
    check_chain(leaf, [authority.certificate], [impostor.root, authority.root])


def test_validity_counts_where_a_time_is_given() -> None:
    authority = Authority.create()
    leaf = authority.mint(
        generate_key().public_key(), [x509.DNSName("a.example")], lifetime=timedelta(minutes=-5)
    )
    check_chain(leaf, [authority.certificate], [authority.root])
    with pytest.raises(AnswerRefused, match="and not now"):
        check_chain(leaf, [authority.certificate], [authority.root], now=datetime.now(UTC))


def test_a_chain_is_put_in_order_and_strangers_are_left_out() -> None:
    authority, stranger = Authority.create(), Authority.create()
    leaf = authority.mint(generate_key().public_key(), [x509.DNSName("a.example")])
    others = [stranger.certificate, authority.root, stranger.root, leaf, authority.certificate]
    assert order_chain(leaf, others) == [authority.certificate, authority.root]


# --- role documents ---------------------------------------------------------


def test_a_role_written_for_vault_becomes_the_message_it_means() -> None:
    role = role_message(
        {
            "name": "web",
            "allowed_domains": "example.com, internal.example.com",
            "allow_subdomains": "true",
            "max_ttl": "720h",
            "ttl": 3600,
            "not_before_duration": "1h30m",
            "key_type": "ec",
            "key_bits": 256,
            "require_cn": False,
            "allowed_uri_sans": ["spiffe://example.com/*"],
            "key_usage": "DigitalSignature,KeyAgreement",
            "not_after": datetime(2031, 1, 1, tzinfo=UTC),
            "policy_identifiers": ["1.2.3"],
            "callers": [{"namespace": "shop", "attributes": {"claims.team": "a"}}],
            "country": None,
        }
    )
    assert role_document(role) == {
        "name": "web",
        "allowed_domains": ["example.com", "internal.example.com"],
        "allow_subdomains": True,
        "max_ttl": "2592000s",
        "ttl": "3600s",
        "not_before_duration": "5400s",
        "key_type": "ec",
        "key_bits": 256,
        "require_cn": False,
        "allowed_uri_sans": ["spiffe://example.com/*"],
        "key_usage": ["DigitalSignature", "KeyAgreement"],
        "not_after": "2031-01-01T00:00:00+00:00",
        "policy_identifiers": [{"oid": "1.2.3"}],
        "callers": [{"namespace": "shop", "attributes": {"claims.team": "a"}}],
    }
    assert role_message(role_document(role)) == role


def test_an_empty_key_usage_is_not_an_unset_one() -> None:
    assert role_message({"name": "a", "key_usage": []}).HasField("key_usage")
    assert not role_message({"name": "a"}).HasField("key_usage")
    assert role_document(role_pb2.Role(name="a")) == {"name": "a"}


def test_everything_wrong_with_a_role_document_is_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        role_message(
            {
                "name": "web",
                "allowed_domain": "typo",
                "ttl": "soon",
                "require_cn": "maybe",
                "key_bits": "many",
                "callers": [{"nmaespace": "shop"}],
                "not_before": datetime(2031, 1, 1),  # noqa: DTZ001 - the fault
            }
        )
    assert [violation.field for violation in caught.value.violations] == [
        "role.allowed_domain",
        "role.ttl",
        "role.require_cn",
        "role.key_bits",
        "role.callers",
        "role.not_before",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("7d", 604800), ("1.5h", 5400)],
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert duration_from_text(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "-1h", "1h 30m", "1w", "1h\n2", "9" * 400])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_from_text(text)
