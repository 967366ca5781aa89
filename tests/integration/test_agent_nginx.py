"""The agent keeps a real nginx in certificates of ten seconds, under TLS load, for a minute."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from support.agent import AgentProcess
from support.nginx import Nginx, running_nginx
from support.service import Service

NAME = "www.shop.example"
SECONDS = 60


class Load:
    """Clients that connect anew for each request, and trust the service's root alone."""

    def __init__(self, port: int, root: Path) -> None:
        self.port = port
        self.context = ssl.create_default_context(cafile=str(root))
        self.serials: list[int] = []
        self.failures: list[str] = []
        self.requests = 0
        self._enough = threading.Event()
        self._lock = threading.Lock()

    def _request(self) -> None:
        with (
            socket.create_connection(("127.0.0.1", self.port), 20) as plain,
            self.context.wrap_socket(plain, server_hostname=NAME) as secured,
        ):
            der = secured.getpeercert(binary_form=True)
            secured.sendall(f"GET / HTTP/1.0\r\nHost: {NAME}\r\n\r\n".encode())
            answer = b""
            while part := secured.recv(4096):
                answer += part
        assert der is not None
        serial = x509.load_der_x509_certificate(der).serial_number
        with self._lock:
            self.requests += 1
            if serial not in self.serials:
                self.serials.append(serial)
            if not answer.endswith(b"here\n"):
                self.failures.append(f"answer {answer!r}")

    def run(self) -> None:
        """Requests until it is enough."""
        while not self._enough.wait(0.03):
            try:
                self._request()
            except OSError as error:
                with self._lock:
                    self.failures.append(repr(error))

    def over(self, seconds: float, clients: int = 3) -> None:
        """Has some clients request for so long."""
        threads = [threading.Thread(target=self.run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._enough.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.timeout(240)
def test_nginx_serves_new_certificates_for_a_minute_and_no_connection_fails(
    service: Service, tmp_path: Path
) -> None:
    role = service.put_role(
        {
            "allowed_domains": ["shop.example"],
            "allow_subdomains": True,
            "require_cn": False,
            "key_type": "any",
        }
    )
    service.wait_until_everywhere(role)
    out = tmp_path / "tls"
    nginx = Nginx(tmp_path / "nginx", out)
    agent = AgentProcess(
        tmp_path / "agent",
        service.address,
        service.ca_file,
        certificates=[
            {
                "name": "www",
                "role": role,
                "names": {"dns_names": [NAME]},
                "ttl": "10s",
                # Early, as this machine may be slow.
                "renewal": {"fraction": 0.4, "jitter": 0.05},
                "outputs": [{"format": "pem", "directory": str(out)}],
            }
        ],
    )
    agent.token_file.write_text(service.token())
    agent.write_config()
    assert agent.command("--once").returncode == 0
    with running_nginx(nginx):
        agent.wait_until(nginx.pid_file.exists, "nginx")
        agent.config["certificates"][0]["after_change"] = [
            {"signal": "HUP", "pid_file": str(nginx.pid_file), "executable": "nginx"}
        ]
        with agent.running():
            load = Load(nginx.port, service.ca_file)
            load.over(SECONDS)
            key = out / "key.pem"
            mode = stat.S_IMODE(key.stat().st_mode)
            issued = {int(line["serial"], 16) for line in agent.events("certificate obtained")}

    assert not load.failures, load.failures[:5]
    assert mode == 0o600
    # At least every ten seconds another one, and each of them from the agent.
    assert len(load.serials) >= SECONDS / 10
    assert set(load.serials[1:]) <= issued
    assert load.requests > SECONDS
