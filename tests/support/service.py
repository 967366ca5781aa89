"""A real `meshmintd serve` for tests: SoftHSM token, own root, real workers, TLS on loopback.

Nothing here reaches into the server: it is set up with its own commands and
spoken to over its ports, as an operator and a caller would.
"""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import json_format
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint.v1 import role_pb2
from meshmint.v1.admin_service_pb2_grpc import AdminServiceStub
from meshmint.v1.certificate_service_pb2_grpc import CertificateServiceStub
from meshmint_server.keys import softhsm
from meshmint_server.policy import Role
from support.hsm_shim import Shim
from support.identity_provider import TokenIssuer
from support.softhsm import require_module

__all__ = ["Service", "ServiceFactory", "is_running", "service", "service_factory"]

TRUST_DOMAIN = "mesh.example"
ADMIN = ("meshmint-system", "admin")
START_SECONDS = 40
LOG_SHOWN = 20_000  # characters at the end of a log


def free_port() -> int:
    """A TCP port of the loopback address that nobody uses now.

    Below those that the system gives to outgoing connections, which would take it before
    a server that is about to start does.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def make_root(name: str = "Test Root") -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A self-signed root in software: the offline root of these tests."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {uuid.uuid4().hex[:8]}")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return key, certificate


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def sign_intermediate(
    csr: x509.CertificateSigningRequest,
    root_key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    lifetime: timedelta,
) -> x509.Certificate:
    """What the offline root's operator does with the CSR."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(root.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_ca_usage(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
            critical=False,
        )
    )
    with contextlib.suppress(x509.ExtensionNotFound):
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        builder = builder.add_extension(san.value, critical=san.critical)
    return builder.sign(root_key, hashes.SHA384())


class Service:
    """One running server and what it takes to talk to it."""

    trust_domain = TRUST_DOMAIN
    # A command that the server is started by, such as one that takes room away from it.
    starter: Sequence[str] = ()

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.workers: int = options.pop("workers", 2)
        issuer_lifetime = timedelta(seconds=options.pop("issuer_lifetime_seconds", 400 * 86400))
        key_algorithm: str = options.pop("issuer_algorithm", "ec-p256")
        self.shim: Shim | None = options.pop("shim", None)
        self.module = str(require_module() if self.shim is None else self.shim.module)
        self.pin = uuid.uuid4().hex
        self._set_up_token()
        self.tokens = TokenIssuer(
            directory / "tokens-issuer", algorithm=options.pop("token_algorithm", "RS256")
        )
        self.address = f"127.0.0.1:{free_port()}"
        self.http_address = f"127.0.0.1:{free_port()}"
        self.http_url = f"http://{self.http_address}"
        self.config_path = directory / "config.yaml"
        self.log_path = directory / "server.log"
        self.ca_file = directory / "root.pem"
        self.tls_certificate_file = directory / "tls.pem"
        self.tls_key_file = directory / "tls.key"
        self.config: dict[str, Any] = {
            "trust_domain": TRUST_DOMAIN,
            "listen": self.address,
            "http": {"listen": self.http_address},
            "publication": {"url": self.http_url},
            "crl": {"delay": "2s"},
            "tls": {"mode": "own", "dns_names": ["localhost"], "ip_addresses": ["127.0.0.1"]},
            "store": f"sqlite:///{directory}/meshmint.db",
            "keys": {
                "pkcs11": f"pkcs11:token=meshmint?module-path={self.module}"
                f"&pin-source=file:{self._pin_file}",
                **options.pop("keys", {}),
            },
            "authenticators": [
                {
                    "kind": "kubernetes",
                    "name": "cluster",
                    "issuer": self.tokens.issuer,
                    "audiences": [self.tokens.audience],
                    "jwks_file": str(self.tokens.jwks_file),
                }
            ],
            "admins": [{"namespace": ADMIN[0], "service_account": ADMIN[1]}],
            "default_ttl": "1h",
            "workers": self.workers,
            **options,
        }
        self._write_config()
        self._set_up_issuer(key_algorithm, issuer_lifetime)
        self._log_offset = 0
        self._names = itertools.count()

    # --- setting up --------------------------------------------------------------------

    @property
    def _pin_file(self) -> Path:
        return self.directory / "pin"

    @property
    def environment(self) -> dict[str, str]:
        shim = {} if self.shim is None else self.shim.environment
        return {**os.environ, **shim, "SOFTHSM2_CONF": str(self._softhsm_conf)}

    @property
    def token_environment(self) -> dict[str, str]:
        """For programs that look into the token themselves."""
        return {**self.environment, "MESHMINT_TEST_PIN": self.pin}

    def _set_up_token(self) -> None:
        token_directory = self.directory / "softhsm"
        self._softhsm_conf = softhsm.write_config(token_directory)
        self._pin_file.touch(0o600)
        self._pin_file.write_text(self.pin)
        softhsm.init_token(self._softhsm_conf, "meshmint", uuid.uuid4().hex, self.pin)

    def _write_config(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.config))

    def meshmintd(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs the operators' command."""
        return subprocess.run(
            [sys.executable, "-m", "meshmint_server.cli", *map(str, arguments)],
            env=self.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def _set_up_issuer(self, algorithm: str, lifetime: timedelta) -> None:
        self.root_key, self.root = self._make_issuer("issuer-1", algorithm, lifetime)
        self.ca_file.write_bytes(self.root.public_bytes(serialization.Encoding.PEM))

    def _make_issuer(
        self, name: str, algorithm: str, lifetime: timedelta
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """With the operators' commands, under a root of its own, which it returns with its key."""
        csr_file, signed, above = (
            self.directory / f"{name}{end}" for end in (".csr", ".pem", "-root.pem")
        )
        done = self.meshmintd(
            "ca", "csr", "-c", self.config_path, "--name", name,
            "--algorithm", algorithm, "--out", csr_file,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        key, root = make_root()
        csr = x509.load_pem_x509_csr(csr_file.read_bytes())
        intermediate = sign_intermediate(csr, key, root, lifetime)
        pem = serialization.Encoding.PEM
        signed.write_bytes(intermediate.public_bytes(pem))
        above.write_bytes(root.public_bytes(pem))
        done = self.meshmintd("ca", "import", "-c", self.config_path, "--name", name, signed, above)
        assert done.returncode == 0, done.stdout + done.stderr
        return key, root

    def add_issuer(self, name: str) -> x509.Certificate:
        """One more issuer, under a root of its own, which it returns."""
        _, root = self._make_issuer(name, "ec-p256", timedelta(days=300))
        return root

    # --- running -----------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        serve = [sys.executable, "-m", "meshmint_server.cli", "serve", "-c", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.starter, *serve],
                env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            self.wait_until_ready()
        except BaseException:
            # It would go on beside all the tests to come.
            self.stop()
            raise
        self.channel = self.new_channel()
        self.stub = CertificateServiceStub(self.channel)
        self.admin = AdminServiceStub(self.channel)

    def stop(self) -> None:
        """Drains the server; what hangs is killed."""
        if hasattr(self, "channel"):
            self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def kill(self) -> None:
        """kill -9 of the supervisor, and of nothing else."""
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def descendants(self) -> set[int]:
        """The processes below the supervisor: workers, their signing processes, and what starts."""
        below: dict[int, set[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    below.setdefault(int(stat[1]), set()).add(int(entry.name))
        found: set[int] = set()
        parents = [self.process.pid]
        while parents:
            children = below.get(parents.pop(), set())
            found |= children
            parents += children
        return found

    @contextlib.contextmanager
    def replica(self, name: str = "replica") -> Iterator[Service]:
        """One more server with the same token and the same store, on ports of its own."""
        other = copy.copy(self)
        other.address, other.http_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
        other.http_url = f"http://{other.http_address}"
        other.log_path = self.directory / f"{name}.log"
        other.config_path = self.directory / f"{name}.yaml"
        other.config = {**self.config, "listen": other.address}
        other.config["http"] = {"listen": other.http_address}
        other._write_config()
        del other.process
        other.start()
        try:
            yield other
        finally:
            other.stop()

    def renew_tls_files(self) -> None:
        """Writes a certificate and key for the listener, as somebody else's renewal would."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.DNSName("localhost"),
                        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    ]
                ),
                critical=True,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()),
                critical=False,
            )
            .sign(self.root_key, hashes.SHA384())
        )
        self.tls_key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.tls_certificate_file.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))

    def run_second(self) -> subprocess.CompletedProcess[str]:
        """Tries to run the same server once more."""
        return self.meshmintd("serve", "-c", self.config_path)

    def wait_until_ready(self, without: Sequence[int] | set[int] = ()) -> None:
        """Waits until all workers serve, none of them one of ``without``."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if hasattr(self, "process") and self.process.poll() is not None:
                pytest.fail(f"the server ended:\n{self.whole_log()[-4000:]}")
            pids = self.worker_pids()
            if len(pids) == self.workers and not pids & set(without) and self._is_ready():
                return
            if time.monotonic() > deadline:
                pytest.fail(f"the server does not get ready:\n{self.whole_log()[-4000:]}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.http_url + "/readyz", timeout=5) as response:  # noqa: S310
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def worker_pids(self) -> set[int]:
        """Workers that are serving now."""
        started = {line["pid"] for line in self.log_lines() if line.get("event") == "serving"}
        return {pid for pid in started if is_running(pid)}

    def kill_worker(self, pid: int) -> None:
        """kill -9 of one of our workers."""
        assert pid in self.worker_pids()
        os.kill(pid, signal.SIGKILL)

    def restart_workers(self) -> None:
        """Has every worker replaced."""
        for pid in self.worker_pids():
            self.kill_worker(pid)

    def listens(self) -> bool:
        """Whether anybody takes connections on the gRPC port."""
        host, port = self.address.split(":")
        try:
            socket.create_connection((host, int(port)), 10).close()
        except ConnectionRefusedError:
            return False
        return True

    def hide_token(self) -> None:
        """Takes the token's files away, as if it were pulled."""
        (self.directory / "softhsm").rename(self.directory / "softhsm.away")

    def show_token(self) -> None:
        """Puts the token back."""
        (self.directory / "softhsm.away").rename(self.directory / "softhsm")

    def change_config(self, **changes: Any) -> None:
        """Rewrites the configuration file; the server is not told."""
        self.config |= changes
        self._write_config()

    def served_serial(self) -> int:
        """Serial number of the certificate that the listener shows."""
        import ssl

        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.set_alpn_protocols(["h2"])
        host, port = self.address.split(":")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            der = secured.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number

    # --- talking -----------------------------------------------------------------------

    def new_channel(self) -> grpc.Channel:
        """A connection of its own."""
        return grpc.secure_channel(
            self.address,
            grpc.ssl_channel_credentials(self.ca_file.read_bytes()),
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_metadata_size", 4 * 1024 * 1024),
                ("grpc.absolute_max_metadata_size", 4 * 1024 * 1024),
            ],
        )

    @staticmethod
    def stub_of(channel: grpc.Channel) -> CertificateServiceStub:
        """A stub on another channel."""
        return CertificateServiceStub(channel)

    def token(self, namespace: str = "shop", service_account: str = "cart", **options: Any) -> str:
        """A service-account token of this world's cluster."""
        return self.tokens.kubernetes_token(namespace, service_account, **options)

    @staticmethod
    def metadata(token: str) -> list[tuple[str, str]]:
        """The credential as gRPC metadata."""
        return [("authorization", f"Bearer {token}")]

    @property
    def admin_metadata(self) -> list[tuple[str, str]]:
        """An operator's credential."""
        return self.metadata(self.token(*ADMIN))

    def issue(
        self, request: pb.IssueRequest, *, token: str | None = None, timeout: float = 30
    ) -> pb.IssueResponse:
        """Calls Issue as shop/cart, or with the token given."""
        credential = self.token() if token is None else token
        return self.stub.Issue(request, timeout=timeout, metadata=self.metadata(credential))

    def sign(
        self, request: pb.SignRequest, *, token: str | None = None, timeout: float = 30
    ) -> pb.SignResponse:
        """Calls Sign as shop/cart, or with the token given."""
        credential = self.token() if token is None else token
        return self.stub.Sign(request, timeout=timeout, metadata=self.metadata(credential))

    def revoke(self, serial_number: str) -> None:
        """Revokes a certificate, as an operator."""
        self.stub.Revoke(
            pb.RevokeRequest(serial_number=serial_number), timeout=10, metadata=self.admin_metadata
        )

    def crl(self) -> bytes:
        """The CRL of the first issuer, whole, in DER."""
        url = f"{self.http_url}/crl/issuer-1/0.crl"
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
            return bytes(response.read())

    def unique_name(self) -> str:
        """A role name that no test has used."""
        return f"role-{next(self._names)}-{uuid.uuid4().hex[:6]}"

    def put_role(self, document: dict[str, object]) -> str:
        """Puts a role under a name that no test has used; see `put_named_role`."""
        name = self.unique_name()
        self.put_named_role(name, document)
        return name

    def put_named_role(self, name: str, document: dict[str, object]) -> None:
        """Puts a role for the callers of the namespace shop, unless it says otherwise.

        The worker behind `channel` knows it at once, the others within a second.
        """
        whole = {"name": name, "callers": [{"namespace": "shop"}], **document}
        message = role_pb2.Role()
        json_format.ParseDict(_as_proto_json(whole), message)
        self.admin.PutRole(
            admin_pb.PutRoleRequest(role=message), timeout=10, metadata=self.admin_metadata
        )

    def wait_until_everywhere(self, role: str) -> None:
        """Waits until every worker knows the role: many connections in a row may use it."""
        deadline = time.monotonic() + START_SECONDS
        in_a_row = 0
        while in_a_row < 6 * self.workers:
            with self.new_channel() as channel:
                try:
                    self.stub_of(channel).Issue(
                        pb.IssueRequest(role=role),
                        timeout=10,
                        metadata=self.metadata(self.token()),
                    )
                except grpc.RpcError as error:
                    if "no such role" in (error.details() or ""):
                        in_a_row = -1
                        assert time.monotonic() < deadline, f"a worker does not learn of {role}"
                in_a_row += 1

    def get_record(self, serial_number: str) -> admin_pb.Record:
        """The record of one certificate."""
        return self.admin.GetRecord(
            admin_pb.GetRecordRequest(serial_number=serial_number),
            timeout=10, metadata=self.admin_metadata,
        )  # fmt: skip

    def list_records(self, **fields: str) -> list[admin_pb.Record]:
        """All records that match (up to 1,000)."""
        response = self.admin.ListRecords(
            admin_pb.ListRecordsRequest(filter=admin_pb.RecordFilter(**fields), page_size=1000),
            timeout=10, metadata=self.admin_metadata,
        )  # fmt: skip
        return list(response.records)

    def all_records(self, **fields: str) -> list[admin_pb.Record]:
        """All records that match, however many."""
        request = admin_pb.ListRecordsRequest(
            filter=admin_pb.RecordFilter(**fields), page_size=1000
        )
        records: list[admin_pb.Record] = []
        while True:
            page = self.admin.ListRecords(request, timeout=30, metadata=self.admin_metadata)
            records += page.records
            if not page.next_page_token:
                return records
            request.page_token = page.next_page_token

    def newest_serial(self) -> str:
        """Serial number of what was recorded last."""
        page = self.admin.ListRecords(
            admin_pb.ListRecordsRequest(page_size=1), timeout=10, metadata=self.admin_metadata
        )
        return page.records[0].serial_number if page.records else ""

    # --- the log -----------------------------------------------------------------------

    def whole_log(self) -> str:
        """Everything the server wrote."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def logs(self) -> list[Path]:
        """The file of the log, if there is one yet."""
        return [self.log_path] if self.log_path.exists() else []

    def log_lines(self) -> list[dict[str, Any]]:
        """The log's JSON lines."""
        return list(_json_lines(self.whole_log()))

    def new_log_lines(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        text = self.whole_log()
        fresh = text[self._log_offset :]
        self._log_offset = len(text)
        return list(_json_lines(fresh))


def _as_proto_json(document: dict[str, object]) -> dict[str, object]:
    spelled = dict(document)
    for field in ("ttl", "max_ttl", "not_before_duration"):
        if isinstance(value := spelled.get(field), str):
            seconds = Role.from_document({"name": "x", "max_ttl": value}).max_ttl
            assert seconds is not None
            spelled[field] = f"{int(seconds.total_seconds())}s"
    if "key_usage" in spelled:
        spelled["key_usage"] = {"usages": spelled["key_usage"]}
    return spelled


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            document = json.loads(line)
            if isinstance(document, dict):
                yield document


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


class ServiceFactory:
    """Starts servers of their own for tests that break them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextlib.contextmanager
    def start(self, **options: Any) -> Iterator[Service]:
        """A running server; options go into its configuration."""
        started = Service(self._directory / uuid.uuid4().hex[:8], **{"workers": 1, **options})
        started.start()
        try:
            yield started
        finally:
            started.stop()

    @contextlib.contextmanager
    def start_with_tls_files(self) -> Iterator[Service]:
        """A running server whose TLS certificate comes from files."""
        made = Service(self._directory / uuid.uuid4().hex[:8], workers=1)
        made.renew_tls_files()
        made.change_config(
            tls={
                "mode": "files",
                "certificate": str(made.tls_certificate_file),
                "key": str(made.tls_key_file),
            }
        )
        made.start()
        try:
            yield made
        finally:
            made.stop()

    def logs(self) -> list[Path]:
        """The log of every server that was started, and of its replicas."""
        return sorted(self._directory.glob("*/*.log"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the servers that the test used wrote last."""
    report = yield
    if report.failed:
        for used in getattr(item, "funcargs", {}).values():
            logs = used.logs() if isinstance(used, Service | ServiceFactory) else []
            for log in logs:
                text = log.read_text(errors="replace")
                report.sections.append((f"the end of {log}", text[-LOG_SHOWN:]))
    return report


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The server that most tests share: two workers, P-256 in SoftHSM, SQLite."""
    started = Service(tmp_path_factory.mktemp("service"))
    started.start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def service_factory(tmp_path: Path) -> ServiceFactory:
    """For tests that need a server of their own."""
    return ServiceFactory(tmp_path)
