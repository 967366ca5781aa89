"""`meshmintd doctor` finds each fault, says what to do, and tells no secret.

A healthy installation (real token, real root, SQLite) is made once; each test
breaks a copy of its own in one place.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)
from meshmint_server.cli.doctor.authenticators import check_authenticators
from meshmint_server.cli.doctor.clocks import check_clocks
from meshmint_server.cli.doctor.crls import check_crls
from meshmint_server.cli.doctor.finding import Level
from meshmint_server.cli.doctor.tls import check_bundle_endpoint, check_tls
from meshmint_server.config import Config
from meshmint_server.grpc_api.issuer_messages import issuer_message
from meshmint_server.store import CrlKind, CrlRow, IssuerState
from support.rows import issuer_row
from support.service import ADMIN, Service, free_port, sign_intermediate

HOUR = timedelta(hours=1)

ROLE = {
    "name": "workload",
    "callers": [{"authenticator": "cluster", "namespace": "shop"}],
    "spiffe": "own",
    "max_ttl": "1h",
}

# What no operator should do: a key that can leave its token, and can do more than sign.
MAKE_LOOSE_KEY = """
import os, sys, pkcs11
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
token = pkcs11.lib(sys.argv[1]).get_token(token_label="meshmint")
with token.open(rw=True, user_pin=os.environ["MESHMINT_TEST_PIN"]) as session:
    curve = session.create_domain_parameters(
        pkcs11.KeyType.EC,
        {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
        local=True,
    )
    public, _ = curve.generate_keypair(
        store=True, label="loose", id=b"\\x77",
        capabilities=pkcs11.MechanismFlag.SIGN
        | pkcs11.MechanismFlag.VERIFY
        | pkcs11.MechanismFlag.DERIVE,
        private_template={pkcs11.Attribute.EXTRACTABLE: True, pkcs11.Attribute.SENSITIVE: True},
    )
    print(encode_ec_public_key(public).hex())
"""


@dataclass
class Patient:
    """An installation of a test's own, and what doctor says of it."""

    directory: Path
    service: Service
    config: dict[str, Any]
    environment: dict[str, str]
    outputs: list[str] = field(default_factory=list)

    @property
    def config_file(self) -> Path:
        return self.directory / "config.yaml"

    @property
    def database(self) -> Path:
        return self.directory / "meshmint.db"

    @property
    def pin_file(self) -> Path:
        return self.directory / "pin"

    def change_config(self, **changes: Any) -> None:
        self.config |= changes
        self.config_file.write_text(yaml.safe_dump(self.config))

    def change_store(self, statement: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.database)) as connection, connection:
            connection.execute(statement, values)

    def issuer_certificate(self) -> x509.Certificate:
        with closing(sqlite3.connect(self.database)) as connection:
            (der,) = connection.execute("SELECT certificate FROM issuers").fetchone()
        return x509.load_der_x509_certificate(der)

    def give_issuer(self, csr: Any, lifetime: timedelta) -> None:
        """Has the root sign the issuer's certificate anew, for this name and key."""
        signed = sign_intermediate(csr, self.service.root_key, self.service.root, lifetime)
        self.change_store("UPDATE issuers SET certificate = ?", signed.public_bytes(Encoding.DER))

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "meshmint_server.cli", "doctor", "-c", self.config_file,
             *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        self.outputs.append(done.stdout + done.stderr)
        return done

    def examine(self, status: int) -> list[dict[str, str]]:
        """The findings, after the exit status and an empty standard error were seen to."""
        done = self.doctor("--json")
        assert done.returncode == status, done.stdout + done.stderr
        assert done.stderr == ""
        found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        return found

    def bad(self, status: int) -> list[tuple[str, str, str]]:
        """What is not ok: level, subject and message. Each comes with advice."""
        bad = [one for one in self.examine(status) if one["level"] != "ok"]
        assert all(one["advice"] for one in bad)
        return [(one["level"], one["subject"], one["message"]) for one in bad]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Made once and never broken."""
    made = Service(tmp_path_factory.mktemp("healthy"))
    roles = made.directory / "roles.yaml"
    roles.write_text(yaml.safe_dump(ROLE))
    done = made.meshmintd("apply", "-c", made.config_path, "-f", roles)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def patient(healthy: Service, tmp_path: Path) -> Iterator[Patient]:
    """A copy to break; whatever was done to it, no secret was told."""
    directory = tmp_path / "patient"
    shutil.copytree(healthy.directory, directory)
    for name in ("config.yaml", "softhsm/softhsm2.conf"):
        file = directory / name
        file.write_text(file.read_text().replace(str(healthy.directory), str(directory)))
    made = Patient(
        directory,
        healthy,
        yaml.safe_load((directory / "config.yaml").read_text()),
        {**healthy.token_environment, "SOFTHSM2_CONF": str(directory / "softhsm/softhsm2.conf")},
    )
    # However long ago that was: doctor is patient with a CRL that is not there just yet.
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    made.change_store("UPDATE issuers SET published_at = ?", now)
    yield made
    assert not any(healthy.pin in output for output in made.outputs)


def test_a_healthy_installation_is_all_ok_and_left_as_it_was(patient: Patient) -> None:
    before = patient.database.read_bytes()

    found = patient.examine(0)

    assert {one["level"] for one in found} == {"ok"}, found
    subjects = list(dict.fromkeys(one["subject"] for one in found))
    assert subjects == [
        "configuration", "keys", "store", "clock", "issuer issuer-1", "rotation", "token",
        "key of issuer-1", "crl of issuer-1", "authenticator cluster", "role workload", "admins",
        "tls",
    ]  # fmt: skip
    assert any("signature was verified" in one["message"] for one in found)
    assert patient.database.read_bytes() == before
    # The lock is from the setting up, where it was held while a key was made.
    files = sorted(file.name for file in patient.directory.glob("meshmint.db*"))
    assert files == ["meshmint.db", "meshmint.db.issuer-key.lock"]


def test_json_has_findings_and_a_summary(patient: Patient) -> None:
    patient.pin_file.chmod(0o644)

    document = json.loads(patient.doctor("--json").stdout)

    assert set(document) == {"findings", "summary"}
    for finding in document["findings"]:
        assert set(finding) == {"level", "subject", "message", "advice"}
        assert finding["level"] in {"ok", "warning", "error"}
    counts = document["summary"]
    assert counts == {"ok": len(document["findings"]) - 1, "warnings": 1, "errors": 0}


def test_people_read_plain_text_with_advice(patient: Patient) -> None:
    patient.pin_file.chmod(0o644)

    done = patient.doctor()

    assert done.returncode == 0
    assert f"chmod 600 {patient.pin_file}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("errors: 0, warnings: 1, ok: ")
    assert "\x1b" not in done.stdout


def test_a_wrong_command_line_ends_with_status_2(patient: Patient) -> None:
    assert patient.doctor("--nonsense").returncode == 2


def test_an_unusable_configuration_is_an_error(patient: Patient) -> None:
    patient.change_config(trust_domain="Not A Domain")
    patient.config_file.chmod(0o666)

    (first, second) = patient.bad(1)

    assert first[:2] == ("error", "configuration")
    assert "trust_domain" in first[2]
    assert "written by every user" in second[2]


def test_a_password_in_the_stores_url_is_never_shown(patient: Patient) -> None:
    patient.change_config(store=f"postgresql://mesh:hunter2@127.0.0.1:{free_port()}/mesh")
    patient.change_config(admins=[])

    unreachable = patient.doctor()
    patient.config_file.write_text(
        patient.config_file.read_text().replace("hunter2", '"hunter2: [')
    )
    malformed = patient.doctor()

    assert unreachable.returncode == malformed.returncode == 1
    assert "The store does not answer (ConnectionRefusedError" in unreachable.stdout
    assert "config.yaml: " in malformed.stdout
    assert not any("hunter2" in output for output in patient.outputs)


def test_a_pin_file_that_every_user_can_read_is_a_warning(patient: Patient) -> None:
    patient.pin_file.chmod(0o644)

    ((level, subject, message),) = patient.bad(0)

    assert (level, subject) == ("warning", "keys")
    assert f"{patient.pin_file}, which holds the PIN, is open to every user" in message


def test_a_database_that_every_user_can_read_is_a_warning_and_stays(patient: Patient) -> None:
    patient.database.chmod(0o644)

    assert [bad[:2] for bad in patient.bad(0)] == [("warning", "store")]
    assert patient.database.stat().st_mode & 0o777 == 0o644


def test_a_missing_token_is_an_error(patient: Patient) -> None:
    shutil.rmtree(patient.directory / "softhsm" / "tokens")
    (patient.directory / "softhsm" / "tokens").mkdir()

    token, key = patient.bad(1)

    assert token[:2] == ("error", "token")
    assert "shows no token that matches pkcs11:token=meshmint" in token[2]
    assert key[:2] == ("warning", "key of issuer-1")


def test_a_wrong_pin_is_an_error_and_tried_once(patient: Patient) -> None:
    spy = next(Path("/usr/lib").glob("*/pkcs11-spy.so"), None)
    assert spy is not None, "pkcs11-spy is missing: install the system package opensc"
    calls = patient.directory / "calls"
    patient.environment |= {"PKCS11SPY": patient.service.module, "PKCS11SPY_OUTPUT": str(calls)}
    uri = f"pkcs11:token=meshmint?module-path={spy}&pin-source=file:{patient.pin_file}"
    patient.change_config(keys={"pkcs11": uri})
    patient.pin_file.write_text("not-the-pin")
    # A second issuer in the same token must not cost a second try.
    patient.change_store(
        "INSERT INTO issuers (name, state, key_uri, public_key, certificate, chain, roots, "
        "created_at, published_at) SELECT 'issuer-2', 'retired', key_uri, public_key, certificate, "
        "chain, roots, created_at, published_at FROM issuers"
    )

    token, *keys = patient.bad(1)

    assert token[:2] == ("error", "token")
    assert "refused the PIN" in token[2]
    assert [key[:2] for key in keys] == [
        ("warning", "key of issuer-1"),
        ("warning", "key of issuer-2"),
    ]
    assert calls.read_text(errors="replace").count("C_Login\n") == 1
    assert "not-the-pin" not in patient.outputs[0]


def test_a_key_that_is_not_there_is_an_error(patient: Patient) -> None:
    patient.change_store("UPDATE issuers SET key_uri = 'pkcs11:token=meshmint;id=%99;type=private'")

    ((level, subject, message),) = patient.bad(1)

    assert (level, subject) == ("error", "key of issuer-1")
    assert "no private key" in message


def test_an_extractable_key_that_may_do_more_than_sign_is_an_error(patient: Patient) -> None:
    made = subprocess.run(
        [sys.executable, "-c", MAKE_LOOSE_KEY, patient.service.module],
        env=patient.environment, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    public_key = bytes.fromhex(made.stdout)
    csr = patient.issuer_certificate()
    patient.give_issuer(
        SimpleNamespace(
            subject=csr.subject,
            extensions=csr.extensions,
            public_key=lambda: load_der_public_key(public_key),
        ),
        timedelta(days=400),
    )
    patient.change_store(
        "UPDATE issuers SET public_key = ?, key_uri = ?",
        public_key,
        "pkcs11:token=meshmint;object=loose;id=%77;type=private",
    )

    bad = patient.bad(1)

    assert {subject for _, subject, _ in bad} == {"key of issuer-1"}
    errors = [message for level, _, message in bad if level == "error"]
    assert any("can be extracted" in message for message in errors)
    assert any("more than sign: derive" in message for message in errors)


def test_an_expired_issuer_is_an_error(patient: Patient) -> None:
    patient.give_issuer(patient.issuer_certificate(), timedelta(minutes=-1))

    (level, subject, message), rotation = patient.bad(1)

    assert (level, subject) == ("error", "issuer issuer-1")
    assert "expired at" in message
    assert rotation[:2] == ("error", "rotation")


def test_an_issuer_about_to_expire_is_a_warning(patient: Patient) -> None:
    # Valid for five minutes already: less than a fifth is left.
    patient.give_issuer(patient.issuer_certificate(), timedelta(seconds=70))

    (level, subject, message), rotation = patient.bad(0)

    assert (level, subject) == ("warning", "issuer issuer-1")
    assert "expires at" in message
    assert rotation[:2] == ("warning", "rotation")
    assert "long ones are refused" in rotation[2]


def test_what_the_rotation_waits_for_is_told_with_the_command(patient: Patient) -> None:
    def rotation(lifetime: timedelta, status: int) -> tuple[str, str]:
        patient.give_issuer(patient.issuer_certificate(), lifetime)
        (told,) = [one for one in patient.examine(status) if one["subject"] == "rotation"]
        return told["level"], told["message"]

    patient.change_config(max_ttl="1h", default_ttl="1h", rotation={"prepare_before": "39d"})
    level, message = rotation(timedelta(days=40), 0)
    assert level == "ok"
    assert "Make its successor from" in message
    level, message = rotation(timedelta(days=38), 0)
    assert level == "warning"
    assert "'meshmintd ca rotate' makes its key and a CSR" in message
    patient.change_config(rotation={"prepare_before": "39d", "activate_before": "7d"})
    level, message = rotation(timedelta(days=6), 1)
    assert level == "error"
    assert "certificates that would outlive it are refused" in message


def test_an_issuer_of_another_root_is_an_error(patient: Patient) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    forged = sign_intermediate(
        patient.issuer_certificate(),
        other,
        patient.service.root,
        timedelta(days=1),  # type: ignore[arg-type]
    )
    patient.change_store("UPDATE issuers SET certificate = ?", forged.public_bytes(Encoding.DER))

    level, subject, message = patient.bad(1)[0]

    assert (level, subject) == ("error", "issuer issuer-1")
    assert "does not verify" in message


def test_no_active_issuer_is_an_error(patient: Patient) -> None:
    patient.change_store("UPDATE issuers SET state = 'retired'")

    assert [bad[:2] for bad in patient.bad(1)] == [("error", "issuers")]


def test_an_issuer_that_is_gone_is_nobodys_business_any_more(patient: Patient) -> None:
    patient.change_store(
        "INSERT INTO issuers (name, state, key_uri, public_key, certificate, chain, roots, "
        "created_at) SELECT 'issuer-0', 'gone', 'pkcs11:object=nowhere', public_key, x'00', chain, "
        "roots, created_at FROM issuers"
    )

    assert not [one for one in patient.examine(0) if "issuer-0" in one["subject"]]


def test_a_database_that_is_gone_is_an_error_and_the_rest_is_checked(patient: Patient) -> None:
    patient.database.unlink()

    bad = patient.bad(1)

    assert [one[:2] for one in bad] == [
        ("error", "store"), ("warning", "issuers"), ("warning", "roles"),
    ]  # fmt: skip
    assert not patient.database.exists()


def test_a_file_that_is_no_database_is_an_error(patient: Patient) -> None:
    patient.database.write_bytes(b"not a database, but long enough to look like one" * 100)

    (level, subject, message), *_ = patient.bad(1)

    assert (level, subject) == ("error", "store")
    assert "file is not a database" in message


def test_a_damaged_issuer_row_is_an_error(patient: Patient) -> None:
    patient.change_store("UPDATE issuers SET state = 'nonsense'")

    assert ("error", "store") in [bad[:2] for bad in patient.bad(1)]


def test_a_damaged_issuer_can_still_be_listed(patient: Patient) -> None:
    patient.change_store("UPDATE issuers SET certificate = ?", b"broken")
    done = subprocess.run(
        [sys.executable, "-m", "meshmint_server.cli", "ca", "show", "-c", patient.config_file],
        env=patient.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Issuer      issuer-1 (active)")
    with closing(sqlite3.connect(patient.database)) as connection:
        (uri,) = connection.execute("SELECT key_uri FROM issuers").fetchone()
    row = issuer_row(name="damaged", certificate=b"broken", key_uri=uri)
    message = issuer_message(row)
    assert (message.name, message.certificate, message.key_uri) == ("damaged", "", uri)


def test_an_unreadable_role_is_an_error_and_others_are_read(patient: Patient) -> None:
    patient.change_store("""INSERT INTO roles VALUES ('broken', '{"name": "broken", "ttk": 1}')""")

    ((level, subject, message),) = patient.bad(1)

    assert (level, subject) == ("error", "role broken")
    assert "ttk" in message


def test_a_role_for_an_unknown_authenticator_is_a_warning(patient: Patient) -> None:
    document = json.dumps({**ROLE, "name": "lost", "callers": [{"authenticator": "clustre"}]})
    patient.change_store("INSERT INTO roles VALUES ('lost', ?)", document)

    ((level, subject, message),) = patient.bad(0)

    assert (level, subject) == ("warning", "role lost")
    assert "Nobody can use it" in message
    assert "'clustre'" in message


def test_an_administrator_of_an_unknown_authenticator_is_an_error(patient: Patient) -> None:
    patient.change_config(admins=[{"authenticator": "clustre", "namespace": ADMIN[0]}])

    ((level, subject, message),) = patient.bad(1)

    assert (level, subject) == ("error", "admins")
    assert "'clustre'" in message


def test_a_key_set_that_is_gone_is_an_error(patient: Patient) -> None:
    (settings,) = patient.config["authenticators"]
    Path(settings["jwks_file"]).unlink()

    ((level, subject, message),) = patient.bad(1)

    assert (level, subject) == ("error", "authenticator cluster")
    assert f"{settings['jwks_file']}, cannot be used: it cannot be read: No such file" in message


@pytest.mark.parametrize("content", ["{", '{"keys": []}', '{"keys": [{"kty": "oct"}]}'])
def test_a_key_set_that_holds_no_key_is_an_error(patient: Patient, content: str) -> None:
    config = Config.load(patient.config_file)
    (settings,) = patient.config["authenticators"]
    Path(settings["jwks_file"]).write_text(content)

    bad = [finding for finding in check_authenticators(config) if finding.level is Level.ERROR]

    assert [finding.subject for finding in bad] == ["authenticator cluster"]


def another_cluster(patient: Patient, **changes: str) -> None:
    settings = patient.config["authenticators"][0]
    other = {**settings, "name": "west", "issuer": "https://west.example", **changes}
    patient.change_config(authenticators=[settings, other])


def test_clusters_with_the_same_spiffe_ids_are_a_warning(patient: Patient) -> None:
    # However it is spelled.
    same = "spiffe://{trust_domain}/ns/{kubernetes.namespace}/sa/{service_account}"
    another_cluster(patient, spiffe_id=same)

    ((level, subject, message),) = patient.bad(0)

    assert (level, subject) == ("warning", "authenticators")
    assert "'cluster' and 'west' make SPIFFE IDs by the same template" in message
    another_cluster(
        patient, spiffe_id="spiffe://{trust_domain}/west/ns/{namespace}/sa/{service_account}"
    )
    assert patient.bad(0) == []


def test_an_upstream_that_others_can_write_or_that_is_not_there_is_an_error(
    patient: Patient,
) -> None:
    directory = patient.directory / "upstream"
    directory.mkdir(0o755)
    script = directory / "sign"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)

    def bad(*command: object) -> list[tuple[str, str, str]]:
        patient.change_config(rotation={"upstream": {"command": [*map(str, command)]}})
        return [one for one in patient.bad(1) if one[1] == "upstream"]

    patient.change_config(rotation={"upstream": {"command": [str(script)]}})
    assert patient.bad(0) == []
    ((level, _, message),) = bad(directory / "gone")
    assert (level, "cannot be executed" in message) == ("error", True)
    script.chmod(0o777)
    for command in ((script,), ("/bin/sh", script)):
        ((level, _, message),) = bad(*command)
        assert (level, message) == ("error", f"{script} can be written by every user (mode 0777).")


def use_tls_files(patient: Patient, section: str = "tls") -> Path:
    """Has a listener show a certificate from files; returns its key's."""
    certificate, key = patient.directory / "tls.pem", patient.directory / "tls.key"
    patient.service.renew_tls_files()
    shutil.copy(patient.service.tls_certificate_file, certificate)
    shutil.copy(patient.service.tls_key_file, key)
    key.chmod(0o600)
    files = {"certificate": str(certificate), "key": str(key)}
    if section == "tls":
        patient.change_config(tls={"mode": "files", **files})
    else:
        listen = f"127.0.0.1:{free_port()}"
        patient.change_config(bundle_endpoint={"listen": listen, "profile": "https_web", **files})
    return key


def test_a_tls_pair_that_belongs_together_is_ok(patient: Patient) -> None:
    use_tls_files(patient)
    use_tls_files(patient, "bundle_endpoint")
    config, now = Config.load(patient.config_file), datetime.now(UTC)

    for found in ([*check_tls(config.tls, now)],
                  [*check_bundle_endpoint(config.bundle_endpoint, now)]):  # fmt: skip
        assert [finding.level for finding in found] == [Level.OK]
        assert "localhost" in found[0].message


@pytest.mark.parametrize("section", ["tls", "bundle_endpoint"])
def test_a_tls_key_of_another_certificate_is_an_error(patient: Patient, section: str) -> None:
    key = use_tls_files(patient, section)
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )

    ((level, subject, message),) = patient.bad(1)

    assert (level, subject) == ("error", section)
    assert "is not that of the first certificate" in message


def test_a_bundle_endpoint_whose_key_is_gone_is_an_error(patient: Patient) -> None:
    use_tls_files(patient, "bundle_endpoint").unlink()

    ((level, subject, message),) = patient.bad(1)

    assert (level, subject) == ("error", "bundle_endpoint")
    assert "cannot be read: No such file" in message


def test_a_bundle_endpoint_with_an_own_certificate_is_ok(patient: Patient) -> None:
    patient.change_config(bundle_endpoint={"listen": f"127.0.0.1:{free_port()}"})

    endpoint = Config.load(patient.config_file).bundle_endpoint
    (found,) = check_bundle_endpoint(endpoint, datetime.now(UTC))
    assert (found.level, found.subject) == (Level.OK, "bundle_endpoint")


@pytest.mark.parametrize(
    ("now", "at_store", "levels"),
    [
        (lambda now: now, lambda now: now, [Level.OK]),
        (lambda now: now, lambda now: now - timedelta(seconds=20), [Level.WARNING]),
        (lambda now: now, lambda now: now + timedelta(minutes=5), [Level.ERROR]),
        (lambda now: now.replace(year=1970), lambda now: None, [Level.ERROR]),
    ],
    ids=["agree", "seconds apart", "minutes apart", "1970"],
)
def test_clocks_that_are_wrong_are_told(
    now: Callable[[datetime], datetime],
    at_store: Callable[[datetime], datetime | None],
    levels: list[Level],
) -> None:
    moment = datetime(2027, 2, 3, tzinfo=UTC)

    found = check_clocks(now(moment), at_store(moment), ())

    assert [finding.level for finding in found] == levels


def crl_row(shard: int, age: timedelta, lifetime: timedelta = timedelta(days=1)) -> CrlRow:
    this_update = datetime.now(UTC) - age
    return CrlRow(
        issuer="mesh-1",
        shard=shard,
        kind=CrlKind.FULL,
        number=shard + 1,
        base_number=None,
        this_update=this_update,
        next_update=this_update + lifetime,
        through=0,
        entries=0,
        document=b"",
    )


@pytest.mark.parametrize(
    ("age", "crls", "url", "expected"),
    [
        (timedelta(hours=1), [crl_row(0, HOUR), crl_row(1, HOUR)], "http://a", "It is fresh"),
        (timedelta(0), [], "http://a", "There is none yet"),
        (timedelta(hours=1), [crl_row(1, HOUR)], "http://a", "Missing: 1 of 2"),
        (timedelta(hours=1), [crl_row(0, HOUR), crl_row(1, 25 * HOUR)], "http://a", "It expired"),
        (timedelta(hours=1), [crl_row(0, HOUR), crl_row(1, 9 * HOUR)], "http://a", "overdue"),
        (timedelta(hours=1), [crl_row(0, HOUR), crl_row(1, HOUR)], None, "is not set"),
    ],
)
def test_crls_are_looked_at(
    healthy: Service, age: timedelta, crls: list[CrlRow], url: str | None, expected: str
) -> None:
    config = Config.model_validate({**healthy.config, "publication": {"url": url}})
    now = datetime.now(UTC)
    issuer = issuer_row(
        state=IssuerState.RETIRED, published_at=now - age, crl_shards=2, crl_url="http://a"
    )
    pending = issuer_row(name="mesh-2")
    findings = list(check_crls([issuer, pending], crls, config, now))
    found = findings[0]
    assert expected in found.message
    is_well = expected in ("It is fresh", "There is none yet")
    assert (found.level is Level.OK) == is_well
    assert bool(found.advice) != is_well
    assert {one.subject for one in findings} == {"crl of mesh-1"}


# --- JWT-SVIDs -----------------------------------------------------------------------


def test_keys_for_jwt_svids_are_looked_for_and_tried(patient: Patient) -> None:
    patient.change_config(jwt_svid={"enabled": True})
    ((level, subject, message),) = patient.bad(0)
    assert (level, subject) == ("warning", "jwt_svid")
    assert "No key signs" in message

    done = subprocess.run(
        [sys.executable, "-m", "meshmint_server.cli", "jwt-keys", "rotate", "--at-once",
         "-c", patient.config_file],
        env=patient.environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = patient.examine(0)
    assert {one["level"] for one in found} == {"ok"}, found
    (key,) = {one["subject"] for one in found if one["subject"].startswith("key of jwt-")}

    patient.change_store("UPDATE jwt_keys SET key_uri = 'pkcs11:token=meshmint;object=gone'")
    ((level, subject, message),) = patient.bad(1)
    assert (level, subject) == ("error", key)
    assert "gone" in message
    advice = [one["advice"] for one in patient.examine(1) if one["subject"] == key]
    assert "meshmintd jwt-keys rotate" in advice[0]


def test_a_step_with_a_key_that_nobody_does_is_found(patient: Patient) -> None:
    patient.change_config(jwt_svid={"enabled": True})
    long_ago = int((datetime.now(UTC) - timedelta(days=40)).timestamp() * 1_000_000)
    patient.change_store(
        "INSERT INTO jwt_keys (key_id, state, key_uri, public_key, created_at, published_at,"
        " activated_at) SELECT 'k', 'active', key_uri, public_key, ?, ?, ? FROM issuers",
        long_ago, long_ago, long_ago,
    )  # fmt: skip
    ((level, subject, message),) = patient.bad(0)
    assert (level, subject) == ("warning", "jwt_svid")
    assert "prepare, has been due since" in message


def test_roles_for_jwt_svids_that_are_off_and_tokens_without_end_are_doubtful(
    patient: Patient,
) -> None:
    role = {**ROLE, "jwt_svid": {"audiences": ["https://api.example.org"]}}
    patient.change_store("UPDATE roles SET document = ?", json.dumps(role))
    ((level, subject, message),) = patient.bad(0)
    assert (level, subject) == ("warning", "jwt_svid")
    assert "workload" in message

    own = {"kind": "jwt", "name": "own", "issuer": "https://jwt.example", "audiences": ["me"],
           "jwks_file": str(patient.directory / "tokens-issuer" / "jwks.json")}  # fmt: skip
    patient.change_config(
        jwt_svid={"enabled": True, "issuer": "https://jwt.example", "publish_for": "4m"},
        authenticators=[*patient.config["authenticators"], own],
    )
    messages = [message for _, subject, message in patient.bad(0) if subject == "jwt_svid"]
    assert any("own JWT-SVIDs" in message and "without end" in message for message in messages)
    assert any("verifiers may keep the keys" in message for message in messages)
