"""The ceremony of the offline root, executed as it is printed."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509
from support.printed import Block, blocks_of, configuration_of, type_lines
from support.programs import program
from support.service import Service

PAGE = Path(__file__).parents[2] / "docs/operations/ceremony.md"
# Two halves, typed one after the other.
PASSPHRASE = "correct horse battery staple anvil cloud bassoon"
ANSWERS = {
    "Enter Encryption Password:": PASSPHRASE,
    "Enter pass phrase for root.key:": PASSPHRASE,
    "[y/n]:": "y",
    "commit? [y/n]": "y",
}


class Ceremony:
    """The room of the root, the machine of the service, and the stick between them."""

    def __init__(self, directory: Path) -> None:
        self.service = Service(directory / "service")
        # The page is about a service that has no issuer yet.
        with closing(sqlite3.connect(self.service.directory / "meshmint.db")) as store, store:
            store.execute("DELETE FROM issuers")
        self.media = directory / "media"
        for stick in ("root-a", "root-b", "carry"):
            (self.media / stick).mkdir(parents=True)
        self.root = self.media / "root-a" / "root-2027"
        self.shown: dict[str, str] = {}
        self.verdicts: list[str] = []

    def type(self, block: Block) -> None:
        at_root = block.place == "at the root"
        self.shown[block.section] = self.shown.get(block.section, "") + type_lines(
            block.lines,
            cwd=self.root if at_root and self.root.exists() else self.service.directory,
            environment=self.service.environment,
            replaced={
                "/media/": f"{self.media}/",
                "/etc/meshmint/meshmint.yaml": self.service.config_path,
            },
            answers=ANSWERS if at_root else {},
        )

    def carried(self, name: str) -> Path:
        return self.media / "carry" / name

    def verify(self) -> None:
        """Asks openssl about the issuer, with the root's CRL that was carried last."""
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-crl_check",
             "-CAfile", self.carried("root.pem"), "-CRLfile", self.carried("root.crl"),
             self.carried("issuer-2027.pem")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.verdicts.append(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    """All of it, in the order of the page."""
    program("openssl")
    held = Ceremony(tmp_path_factory.mktemp("ceremony"))
    for block in blocks_of(PAGE):
        if block.section.startswith("2."):
            (held.root / "root.cnf").write_text(configuration_of(PAGE, "ini"))
        if block.section == "To revoke an issuer":
            held.verify()
        held.type(block)
    held.verify()
    return held


def test_the_lines_show_what_the_page_says(ceremony: Ceremony) -> None:
    shown = ceremony.shown
    assert shown["6. Look before you sign"].startswith(
        "Certificate request self-signature verify OK\n"
    )
    hashes = [
        line
        for section in ("5. A CSR of the service", "6. Look before you sign")
        for line in shown[section].splitlines()
        if line.startswith("SHA2-256(stdin)= ")
    ]
    assert len(hashes) == 2
    assert len(set(hashes)) == 1
    assert "issuer-2027.pem: OK" in shown["7. Sign"]
    assert "issuer-2027 (active)" in shown["8. Import and publish"]
    assert "not extractable" in shown["8. Import and publish"]
    assert "errors: 0," in shown["8. Import and publish"]
    assert "crlNumber=0x01" in shown["3. The root's first CRL"]
    assert "crlNumber=0x02" in shown["The root's CRL, once a year"]


def test_the_roots_crl_revokes_the_issuer_for_those_who_look(ceremony: Ceremony) -> None:
    before, after = ceremony.verdicts

    assert "issuer-2027.pem: OK" in before
    assert "certificate revoked" in after


def test_what_was_made_is_what_the_page_says(ceremony: Ceremony) -> None:
    root = x509.load_pem_x509_certificate(ceremony.carried("root.pem").read_bytes())
    issuer = x509.load_pem_x509_certificate(ceremony.carried("issuer-2027.pem").read_bytes())
    crl = x509.load_pem_x509_crl(ceremony.carried("root.crl").read_bytes())

    assert crl.get_revoked_certificate_by_serial_number(issuer.serial_number) is not None
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3
    extensions = issuer.extensions
    authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.key_identifier == subject.digest
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    (point,) = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    where = x509.UniformResourceIdentifier("http://pki.example.org/root-2027.crl")
    assert point.full_name == [where]
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://mesh.example"]


def test_only_public_things_were_carried_and_the_key_stays_encrypted(ceremony: Ceremony) -> None:
    carried = sorted((ceremony.media / "carry").iterdir())
    assert [file.name for file in carried] == [
        "issuer-2027.csr", "issuer-2027.pem", "root.crl", "root.pem",
    ]  # fmt: skip
    assert not any("PRIVATE KEY" in file.read_text() for file in carried)
    for stick in ("root-a", "root-b"):
        key = (ceremony.media / stick / "root-2027/root.key").read_text()
        assert key.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
