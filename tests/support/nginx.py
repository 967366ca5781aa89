"""A real nginx on loopback, unprivileged, with all that it writes in a directory of the test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.programs import program
from support.service import free_port

__all__ = ["Nginx", "running_nginx"]

_CONFIG = """\
daemon off;
worker_processes 2;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificates}/fullchain.pem;
    ssl_certificate_key {certificates}/key.pem;
    location / {{ return 200 "here\\n"; }}
  }}
}}
"""


class Nginx:
    """One server.

    Attributes:
        port: Where it serves TLS.
        pid_file: Where its number is.
        log: What it says.
    """

    def __init__(self, directory: Path, certificates: Path) -> None:
        directory.mkdir()
        self.port = free_port()
        self.pid_file = directory / "nginx.pid"
        self.log = directory / "error.log"
        self.config = directory / "nginx.conf"
        self.program = program("nginx")
        self.config.write_text(
            _CONFIG.format(directory=directory, port=self.port, certificates=certificates)
        )


@contextlib.contextmanager
def running_nginx(nginx: Nginx) -> Iterator[Nginx]:
    """Starts it, and ends it gracefully."""
    process = subprocess.Popen(
        [nginx.program, "-p", str(nginx.config.parent), "-c", str(nginx.config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield nginx
    finally:
        process.terminate()
        process.wait(20)
