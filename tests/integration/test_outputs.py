"""Outputs as programs read them: PEM, DER, PKCS#12, Java stores and templates, by openssl."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key, pkcs12
from meshmint.agent.outputs import Output, OutputError, OutputInUse, OutputSettings
from meshmint.keys import KeyAlgorithm
from pydantic import TypeAdapter
from support.held import MeshCa, make_bundle
from support.programs import program

SETTINGS: TypeAdapter[Any] = TypeAdapter(OutputSettings)
MESH = MeshCa()
PASSWORD = "pässword 4711"


def output(**settings: Any) -> Output:
    return Output(SETTINGS.validate_python(settings))


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        [program("openssl"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.mark.parametrize("algorithm", ["ec-p256", "rsa-2048", "ed25519"])
def test_pem_files_are_what_openssl_verifies_with(tmp_path: Path, algorithm: KeyAlgorithm) -> None:
    tls, identity = tmp_path / "tls", MESH.issue(algorithm=algorithm)

    assert output(format="pem", directory=tls).write(identity, MESH.bundles)

    verified = openssl(
        "verify", "-CAfile", tls / "bundle.pem", "-untrusted", tls / "chain.pem", tls / "cert.pem"
    )
    assert verified.strip().endswith("OK")
    public = openssl("pkey", "-in", tls / "key.pem", "-pubout")
    assert public == openssl("x509", "-in", tls / "fullchain.pem", "-noout", "-pubkey")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tls.glob("*.pem")}
    assert modes.pop("key.pem") == 0o600
    assert set(modes.values()) == {0o644}


def test_one_file_can_hold_key_and_chain(tmp_path: Path) -> None:
    identity, tls = MESH.issue(), tmp_path / "tls"
    output(
        format="pem",
        directory=tls,
        files={"combined": {"name": "haproxy.pem", "mode": "0440"}},
    ).write(identity, MESH.bundles)

    names = [path.name for path in tls.iterdir() if not path.name.startswith("..")]
    assert names == ["haproxy.pem"]
    text = (tls / "haproxy.pem").read_text()
    assert re.findall("BEGIN ([A-Z ]+)-", text) == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    assert stat.S_IMODE((tls / "haproxy.pem").stat().st_mode) == 0o440


def test_bundles_of_other_trust_domains_stay_apart(tmp_path: Path) -> None:
    other = make_bundle(trust_domain="other.example")
    third = make_bundle(trust_domain="third.example")
    hostile = make_bundle(trust_domain="../../etc")
    long = make_bundle(trust_domain="a" * 220)
    longer = make_bundle(trust_domain="a" * 221)
    empty = dataclasses.replace(third, trust_domain="empty.example", roots=())
    bundles = {
        one.trust_domain: one for one in (other, third, hostile, long, longer, empty)
    } | MESH.bundles
    identity = MESH.issue()

    every = output(format="pem", directory=tmp_path / "all", federated_bundles="all")
    every.write(identity, bundles)
    found = {path.name for path in (tmp_path / "all").glob("bundle*")}
    assert found == {
        "bundle.pem",
        "bundle-other.example.pem",
        "bundle-third.example.pem",
        f"bundle-{long.trust_domain}.pem",
    }
    own = x509.load_pem_x509_certificates((tmp_path / "all" / "bundle.pem").read_bytes())
    assert own == [MESH.root.certificate]

    one = output(format="der", directory=tmp_path / "one", federated_bundles=["other.example"])
    one.write(identity, bundles)
    data = (tmp_path / "one" / "bundle-other.example.der").read_bytes()
    assert x509.load_der_x509_certificate(data) == other.roots[0]
    assert one.write(identity, MESH.bundles), "a bundle that is gone goes"
    assert not (tmp_path / "one" / "bundle-other.example.der").is_symlink()


def test_der_files_are_read_by_openssl(tmp_path: Path) -> None:
    identity, tls = MESH.issue(), tmp_path / "tls"
    output(format="der", directory=tls).write(identity, MESH.bundles)

    assert identity.spiffe_id in openssl(
        "x509", "-inform", "DER", "-in", tls / "cert.der", "-noout", "-ext", "subjectAltName"
    )
    key = load_der_private_key((tls / "key.der").read_bytes(), None)
    assert key.public_key() == identity.certificate.public_key()


@pytest.mark.parametrize(
    ("encryption", "shown"),
    [
        ("modern", "PBES2, PBKDF2, AES-256-CBC, Iteration 100000, PRF hmacWithSHA256"),
        ("compatible", "pbeWithSHA1And3-KeyTripleDES-CBC, Iteration 50000"),
    ],
)
def test_pkcs12_is_encrypted_as_it_says_and_opened_by_openssl(
    tmp_path: Path, password_file: Path, encryption: str, shown: str
) -> None:
    identity, tls = MESH.issue(), tmp_path / "tls"
    output(
        format="pkcs12", directory=tls, password={"file": password_file}, encryption=encryption
    ).write(identity, MESH.bundles)

    store = tls / "keystore.p12"
    told = openssl("pkcs12", "-in", store, "-passin", f"file:{password_file}", "-info", "-nodes")

    assert told.count(shown) == 2, "for the key, and for the certificates"
    assert "friendlyName: web" in told
    (tmp_path / "key.pem").write_text(told)
    public = openssl("pkey", "-in", tmp_path / "key.pem", "-pubout")
    assert public == openssl("x509", "-in", tmp_path / "key.pem", "-noout", "-pubkey")
    assert stat.S_IMODE(store.stat().st_mode) == 0o600


def test_java_stores_hold_what_java_looks_for(tmp_path: Path, password_file: Path) -> None:
    tls = tmp_path / "tls"
    settings = {"format": "java", "directory": tls, "password": {"file": password_file}}
    output(**settings, alias="Web").write(MESH.issue(), MESH.bundles)
    word = f"file:{password_file}"

    trusted = openssl("pkcs12", "-in", tls / "truststore.p12", "-passin", word, "-info", "-nokeys")
    kept = openssl("pkcs12", "-in", tls / "keystore.p12", "-passin", word, "-info", "-nodes")

    # Oracle's trustedKeyUsage: without it Java sees no trusted certificate.
    # (2.16.840.1.113894.746875.1.1; OpenSSL 3.5 knows its name.)
    assert "2.16.840.1.113894.746875.1.1" in trusted or "Trusted key usage (Oracle)" in trusted
    assert "friendlyName: example.org-" in trusted
    assert "friendlyName: web" in kept, "Java knows no upper case in aliases"
    # Java finds the key's certificate by this.
    assert len(set(re.findall("localKeyID: ([0-9A-F ]+)", kept))) == 1
    assert kept.count("BEGIN CERTIFICATE") == 2


def test_a_store_is_made_anew_only_if_something_in_it_has_changed(
    tmp_path: Path, password_file: Path
) -> None:
    settings = {
        "format": "java", "directory": tmp_path / "tls", "password": {"file": password_file},
        "encryption": "compatible",
    }  # fmt: skip
    identity, stores = MESH.issue(), output(**settings)

    assert stores.write(identity, MESH.bundles)
    assert not stores.write(identity, MESH.bundles)
    assert not output(**settings).write(identity, MESH.bundles), "nor after a restart"

    two = {"example.org": make_bundle(MESH.root, MESH.intermediate)}
    assert output(**settings).write(identity, two)
    assert not output(**settings).write(identity, two)
    assert output(**settings, alias="other").write(identity, two)
    password_file.write_text("another")
    assert output(**settings).write(identity, two)
    assert pkcs12.load_pkcs12((tmp_path / "tls" / "keystore.p12").read_bytes(), b"another").key
    assert output(**settings | {"encryption": "modern"}).write(identity, two)
    (tmp_path / "tls" / "keystore.p12").write_bytes(b"\x30\x80 no store")
    assert output(**settings | {"encryption": "modern"}).write(identity, two)
    assert output(**settings | {"encryption": "modern"}).write(MESH.issue(), two)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file: put"),
        (b"", "holds no password"),
        (b"\n", "holds no password"),
        (b"\xff\xfe", "not UTF-8"),
        (b"Tr0ub4\ntwo\n", "more than a password"),
        (b"Tr0ub4" * 200, "at most 1024 bytes"),
    ],
)
def test_a_password_that_cannot_be_used_is_an_error_that_does_not_tell_it(
    tmp_path: Path, password_file: Path, content: bytes | None, told: str
) -> None:
    password_file.unlink()
    if content is not None:
        password_file.write_bytes(content)
    with pytest.raises(OutputError, match=told) as refused:
        output(format="pkcs12", directory=tmp_path / "tls", password={"file": password_file}).write(
            MESH.issue(), MESH.bundles
        )
    assert "Tr0ub4" not in str(refused.value)
    assert not (tmp_path / "tls").exists()


def test_a_password_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "format": "pkcs12", "directory": tmp_path / "tls", "encryption": "compatible",
        "password": {"environment": "STORE_PASSWORD"},
    }  # fmt: skip
    with pytest.raises(OutputError, match="STORE_PASSWORD: holds no password"):
        output(**settings).write(MESH.issue(), MESH.bundles)
    monkeypatch.setenv("STORE_PASSWORD", "changeit")
    assert output(**settings).write(MESH.issue(), MESH.bundles)


def test_a_bundle_that_is_not_there_is_waited_for_and_nothing_is_written(tmp_path: Path) -> None:
    for bundles in ({}, {"example.org": dataclasses.replace(make_bundle(), roots=())}):
        with pytest.raises(OutputError, match=r"'example\.org' is not there yet"):
            output(format="pem", directory=tmp_path / "tls").write(MESH.issue(), bundles)
    assert not (tmp_path / "tls").exists()
    assert output(
        format="pem", directory=tmp_path / "tls", files={"key": "key.pem"}
    ).write(MESH.issue(), {})  # fmt: skip


@pytest.mark.parametrize("who", [{"owner": "nobody-here"}, {"group": "nobody-here"}])
def test_an_unknown_owner_is_an_error_of_the_output(tmp_path: Path, who: dict[str, str]) -> None:
    with pytest.raises(OutputError, match="'nobody-here' here: make it, or give its number"):
        output(format="pem", directory=tmp_path / "tls", **who).write(MESH.issue(), MESH.bundles)
    inner = {"key": {"name": "key.pem"} | who}
    with pytest.raises(OutputError, match="'nobody-here'"):
        output(format="pem", directory=tmp_path / "tls", files=inner).write(MESH.issue(), {})


def test_owner_and_group_may_be_numbers_and_apply_to_all(tmp_path: Path) -> None:
    user, group = os.geteuid(), os.getegid()
    kept = output(
        format="pem", directory=tmp_path / "tls", owner=user, group=str(group),
        key_mode="0640", directory_mode="0750",
    )  # fmt: skip
    identity = MESH.issue()
    assert kept.write(identity, MESH.bundles)
    assert not kept.write(identity, MESH.bundles)
    found = (tmp_path / "tls" / "key.pem").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (user, group, 0o640)
    for folder in (tmp_path / "tls", tmp_path / "tls" / "..data"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_two_outputs_in_one_directory_are_refused(tmp_path: Path) -> None:
    first = output(format="pem", directory=tmp_path / "tls")
    second = output(format="der", directory=tmp_path / "tls")
    with first.lock(), pytest.raises(OutputInUse, match="two outputs of this agent"), second.lock():
        pass
    with second.lock():
        assert second.write(MESH.issue(), MESH.bundles)


def test_the_digest_changes_with_what_is_written_and_with_nothing_else(tmp_path: Path) -> None:
    identity, kept = MESH.issue(), output(format="pem", directory=tmp_path / "tls")
    kept.write(identity, MESH.bundles)
    first = kept.digest
    other = output(format="pem", directory=tmp_path / "tls")
    other.write(identity, MESH.bundles)
    assert other.digest == first
    other.write(MESH.issue(), MESH.bundles)
    assert other.digest != first


class TestTemplates:
    """A file made from a template."""

    def write(self, path: Path, template: str, **settings: Any) -> bool:
        return output(
            format="template", destination=path, template=template, **settings
        ).write(MESH.issue(), MESH.bundles)  # fmt: skip

    def test_it_sees_the_identity_and_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        path, identity = tmp_path / "made" / "app.conf", MESH.issue()
        template = (
            "id={{ spiffe_id }} serial={{ serial_number }} until={{ not_after.isoformat() }}\n"
            "{% for name in dns_names %}name={{ name }}{% endfor %}\n"
            "{{ combined }}{{ bundle }}{{ bundles['example.org'] }}"
        )
        kept = output(format="template", destination=path, template=template)

        assert kept.write(identity, MESH.bundles)

        text = path.read_text()
        assert text.startswith(
            f"id={identity.spiffe_id} serial={identity.certificate.serial_number:x} "
            f"until={identity.certificate.not_valid_after_utc.isoformat()}\nname=web.test\n"
        )
        assert text.count("BEGIN CERTIFICATE") == 4
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not kept.write(identity, MESH.bundles)

    def test_it_may_include_files_of_its_folder_and_none_outside(self, tmp_path: Path) -> None:
        (folder := tmp_path / "templates").mkdir()
        (tmp_path / "secret").write_text("secret")
        (folder / "head").write_text("head of {{ name }}\n")
        source = folder / "app.conf.j2"
        settings = {"format": "template", "destination": tmp_path / "app.conf", "source": source}
        source.write_text("{% include 'head' %}tail\n")
        assert output(**settings).write(MESH.issue(), MESH.bundles)
        assert (tmp_path / "app.conf").read_text() == "head of web\ntail\n"

        for outside in ("../secret", str(tmp_path / "secret")):
            source.write_text(f"{{% include '{outside}' %}}")
            with pytest.raises(OutputError, match="no template"):
                output(**settings).write(MESH.issue(), MESH.bundles)
        assert (tmp_path / "app.conf").read_text() == "head of web\ntail\n"

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{{ chian }}", "line 1: 'chian' is undefined"),
            ("\n{{ nothing.at.all }}", "line 2"),
            ("{% if %}", "line 1 is no template"),
            ("{{ ''.__class__.__mro__ }}", "cannot fill in"),
            ("{{ spiffe_id.__class__.__base__.__subclasses__() }}", "cannot fill in"),
            ("{{ bundles.clear() }}", "cannot fill in"),
            ("{% include '/etc/passwd' %}", "cannot fill in"),
            ("{{ 1 // 0 }}", "ZeroDivisionError"),
            ("{{ key | int('x') + 1 }}", "TypeError"),
            ("{{ bundles[key] }}", "line 1: UndefinedError"),
            ("{{ name.nothing }}", "'str object' has no attribute 'nothing'"),
            ("{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "more than 1048576 bytes"),
            ("{% for a in range(9999999) %}{% endfor %}", "OverflowError"),
        ],
    )
    def test_one_that_is_wrong_says_where_and_never_tells_the_key(
        self, tmp_path: Path, template: str, told: str
    ) -> None:
        (tmp_path / "app.conf").write_text("before")
        with pytest.raises(OutputError) as refused:
            self.write(tmp_path / "app.conf", template)
        assert told in str(refused.value)
        assert "PRIVATE" not in str(refused.value)
        assert (tmp_path / "app.conf").read_text() == "before"

    def test_nothing_is_escaped_as_in_html(self, tmp_path: Path) -> None:
        self.write(tmp_path / "app.conf", "{{ '<&>' }}\n")
        assert (tmp_path / "app.conf").read_text() == "<&>\n"

    def test_a_template_for_all_sees_every_certificate(self, tmp_path: Path) -> None:
        made = output(
            format="template", destination=tmp_path / "all",
            template="{% for name, one in certificates | dictsort %}"
            "{{ name }}={{ one.spiffe_id }}\n{% endfor %}",
        )  # fmt: skip
        assert made.write_all([MESH.issue("web"), MESH.issue("api")], MESH.bundles)
        assert (tmp_path / "all").read_text() == (
            "api=spiffe://example.org/api\nweb=spiffe://example.org/web\n"
        )

    def test_a_regular_file_is_replaced_and_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "app.conf").write_text("old")
        assert self.write(tmp_path / "app.conf", "new")
        assert (tmp_path / "app.conf").read_text() == "new"

        (tmp_path / "link.conf").symlink_to("app.conf")
        with pytest.raises(OutputError, match="symbolic link, which the agent does not follow"):
            self.write(tmp_path / "link.conf", "newer")
        assert self.write(tmp_path / "link.conf", "newer", replace=True)
        assert not (tmp_path / "link.conf").is_symlink()
        assert (tmp_path / "app.conf").read_text() == "new"
        (tmp_path / "folder.conf").mkdir()
        with pytest.raises(OutputError, match="is no regular file"):
            self.write(tmp_path / "folder.conf", "newer", replace=True)

    def test_what_a_killed_writer_left_goes_and_similar_names_stay(self, tmp_path: Path) -> None:
        (tmp_path / ".app.conf.meshmint-0123456789abcdef").write_text("half")
        (tmp_path / ".app.conf.meshmint-notes").write_text("mine")
        self.write(tmp_path / "app.conf", "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".app.conf.meshmint-lock",
            ".app.conf.meshmint-notes",
            "app.conf",
        ]

    def test_two_writers_of_one_file_are_refused_and_of_two_are_not(self, tmp_path: Path) -> None:
        one, same, other = (
            output(format="template", destination=tmp_path / name, template="x")
            for name in ("a", "a", "b")
        )
        with one.lock():
            with pytest.raises(OutputInUse), same.lock():
                pass
            with other.lock():
                assert other.write(MESH.issue(), MESH.bundles)
