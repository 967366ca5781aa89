"""The run-books of the rotation, executed as they are printed against a running service."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from meshmint import AdminClient, Client
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint_server.keys import softhsm
from support.mesh import wait_until
from support.printed import Block, blocks_of, configuration_of, type_lines
from support.programs import program
from support.service import ADMIN, Service, ServiceFactory, make_root, sign_intermediate, timedelta

PAGE = Path(__file__).parents[2] / "docs/operations/rotation.md"
CEREMONY = PAGE.with_name("ceremony.md")

pytestmark = pytest.mark.timeout(600)


class RunBooks:
    """An operator with the page, a service in use, and somebody who signs at the root."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.carry = service.directory / "carry"
        self.carry.mkdir()
        self.root = (service.root_key, service.root)
        self.role = service.put_role(
            {"spiffe": "own", "ttl": "1h", "max_ttl": "1h", "key_type": "ec"}
        )
        service.wait_until_everywhere(self.role)

    def type(self, block: Block) -> str:
        shown = type_lines(
            block.lines,
            cwd=self.service.directory,
            environment={
                **self.service.environment,
                "MESHMINT_SERVER": self.service.address,
                "MESHMINT_CA_FILE": str(self.service.ca_file),
            },
            replaced={
                "/media/carry": self.carry,
                "/etc/meshmint/meshmint.yaml": self.service.config_path,
                "/etc/meshmint/new-token.yaml": self.service.directory / "new-token.yaml",
                "systemctl reload meshmintd": f"kill -HUP {self.service.process.pid}",
            },
            answers={},
        )
        self.sign_at_the_root()
        return shown

    def sign_at_the_root(self) -> None:
        """Signs what came on the stick, as the ceremony does."""
        for request in self.carry.glob("*.csr"):
            csr = x509.load_pem_x509_csr(request.read_bytes())
            # Each a little longer than the one before, as if years had passed.
            lifetime = timedelta(days=500 + len(list(self.carry.glob("*.pem"))))
            signed = sign_intermediate(csr, *self.root, lifetime)
            request.with_suffix(".pem").write_bytes(signed.public_bytes(Encoding.PEM))
            (self.carry / "root.pem").write_bytes(self.root[1].public_bytes(Encoding.PEM))
            request.unlink()

    def states(self) -> dict[str, str]:
        with self._administrator() as admin:
            return {one.name: one.state for one in admin.list_issuers().items}

    def prepare(self, name: str) -> None:
        """Somebody has begun to make an issuer."""
        self.service.admin.PrepareIssuer(
            admin_pb.PrepareIssuerRequest(name=name), metadata=self.service.admin_metadata
        )

    def is_signing(self, name: str) -> bool:
        """Whether a workload that trusts the newest root gets a certificate of this issuer."""
        with Client(
            self.service.address, token=self.service.token(), root_certificates=self._roots()
        ) as client:
            return client.request_svid(self.role).issuer == name

    def bundle(self) -> set[x509.Certificate]:
        """The trust bundle as the service hands it out."""
        with Client(self.service.address, root_certificates=self._roots()) as client:
            return set(client.get_chain().trust_bundle)

    def lose_key(self, name: str) -> None:
        """Takes an issuer's key out of the token."""
        keys = self._pkcs11_tool("--list-objects")
        label = re.search(rf"{name}-\w+", keys)
        assert label is not None, keys
        self._pkcs11_tool("--delete-object", "--label", label[0])

    def _pkcs11_tool(self, *arguments: str) -> str:
        return subprocess.run(
            [program("pkcs11-tool"), "--module", self.service.module, "--token-label", "meshmint",
             "--login", "--pin", "env:MESHMINT_TEST_PIN", "--type", "privkey", *arguments],
            env=self.service.token_environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    def make_token(self) -> None:
        conf = Path(self.service.environment["SOFTHSM2_CONF"])
        softhsm.init_token(conf, "meshmint-2", uuid.uuid4().hex, self.service.pin)

    def have_an_upstream(self) -> None:
        """The page's configuration, and a program that signs with the newest root."""
        directory = self.service.directory
        key, root = self.root
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "root.key").write_bytes(key.private_bytes(*form))
        (directory / "newest-root.pem").write_bytes(root.public_bytes(Encoding.PEM))
        (directory / "root.cnf").write_text(configuration_of(CEREMONY, "ini"))
        script = directory / "sign-issuer"
        script.write_text(
            "#!/bin/sh\nset -e\n"
            f"cd {directory}\n"
            "openssl x509 -req -in /dev/stdin -CA newest-root.pem -CAkey root.key -days 700 "
            "-set_serial 0x$(openssl rand -hex 16) -extfile root.cnf -extensions issuer\n"
            "cat newest-root.pem\n"
        )
        script.chmod(0o700)
        section = yaml.safe_load(configuration_of(PAGE, "yaml"))
        section["rotation"]["upstream"]["command"] = [str(script)]
        present = yaml.safe_load(self.service.config_path.read_text())
        self.service.config_path.write_text(yaml.safe_dump({**present, **section}))

    def _administrator(self) -> AdminClient:
        token = self.service.token(*ADMIN)
        return AdminClient(self.service.address, token=token, root_certificates=self._roots())

    def _roots(self) -> bytes:
        """The service's certificate is of the first root, or already of the newest."""
        return self.service.ca_file.read_bytes() + self.root_pem()

    def root_pem(self) -> bytes:
        return self.root[1].public_bytes(Encoding.PEM)


def test_the_run_books_work_as_they_are_printed(service_factory: ServiceFactory) -> None:
    with service_factory.start(workers=2, rotation={"publish_for": "1s"}) as service:
        books = RunBooks(service)
        sections: dict[str, list[Block]] = {}
        for block in blocks_of(PAGE):
            sections.setdefault(block.section, []).append(block)

        (look,) = sections.pop("How it goes")
        assert "Make its successor from" in books.type(look)

        make, publish, activate = sections.pop("A new issuer below the same root")
        books.type(make)
        assert "errors: 0," in books.type(publish)
        assert books.states() == {"issuer-1": "active", "issuer-2028": "next"}
        assert "issuer-2028 (active)" in books.type(activate)
        wait_until(lambda: books.is_signing("issuer-2028"), "it signs")

        books.root = make_root()
        for block in sections.pop("A new root"):
            books.type(block)
        bundle = x509.load_pem_x509_certificates((service.directory / "roots.pem").read_bytes())
        assert set(bundle) == {service.root, books.root[1]}
        wait_until(lambda: books.is_signing("issuer-2029"), "it signs")

        away, back, forward = sections.pop("Roll back")
        books.prepare("issuer-2030")
        books.type(away)
        assert books.states()["issuer-2030"] == "gone"
        books.type(back)
        wait_until(lambda: books.is_signing("issuer-2028"), "it signs again")
        assert books.states()["issuer-2029"] == "retired"
        books.type(forward)
        wait_until(lambda: books.is_signing("issuer-2029"), "it signs again")

        books.lose_key("issuer-2029")
        for block in sections.pop("The issuer's key is lost"):
            books.type(block)
        wait_until(lambda: books.is_signing("issuer-2031"), "it signs")

        for block in sections.pop("The issuer's key is known to others"):
            books.type(block)
        wait_until(lambda: books.is_signing("issuer-2032"), "it signs")
        assert books.states()["issuer-2031"] == "gone"

        books.root = make_root()
        for block in sections.pop("The root's key is known to others"):
            books.type(block)
        # The first root's issuers have nothing to do with it, and are still published.
        expected = {service.root, books.root[1]}
        wait_until(lambda: books.bundle() == expected, "the stolen root has left the bundle")
        assert books.is_signing("issuer-2033")

        books.make_token()
        before = service.worker_pids()
        for block in sections.pop("A new token"):
            books.type(block)
        service.wait_until_ready(without=before)
        assert books.is_signing("issuer-2034")

        books.have_an_upstream()
        (try_out,) = sections.pop("By itself, with an upstream")
        assert "is published, and signs from" in books.type(try_out)
        assert sections == {}
