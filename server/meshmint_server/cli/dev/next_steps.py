"""Command lines to go on with. Each works as it stands in another terminal."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from meshmint_server.cli.dev.configuration import TRUST_DOMAIN
from meshmint_server.cli.dev.state import StateDirectory

__all__ = ["Step", "next_steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """A command and what it does."""

    title: str
    command: str


def next_steps(
    state: StateDirectory, target: str, *, workload_token: Path, admin_token: Path
) -> tuple[Step, ...]:
    """Commands for a service that runs at ``target``."""
    grpcurl = _program("grpcurl")
    roots = quote(str(state.root_certificate))
    workload, admin = (
        f'-H "authorization: Bearer $(cat {quote(str(path))})"'
        for path in (workload_token, admin_token)
    )
    svid = quote(str(state.svid))
    return (
        Step("What the service offers (reflection)", f"{grpcurl} -cacert {roots} {target} list"),
        Step(
            "An X509-SVID with a key that the service makes",
            f"{grpcurl} -cacert {roots} {workload} -d '{{}}' \\\n"
            f"  {target} meshmint.v1.CertificateService/Issue",
        ),
        Step(
            "A JWT-SVID, for where mutual TLS does not reach",
            f"{grpcurl} -cacert {roots} {workload} \\\n"
            f'  -d \'{{"audiences": ["https://api.{TRUST_DOMAIN}"]}}\' \\\n'
            f"  {target} meshmint.v1.CertificateService/IssueJwtSvid",
        ),
        Step(
            "The chain and the trust bundle; no credential needed",
            f"{grpcurl} -cacert {roots} {target} meshmint.v1.CertificateService/GetChain",
        ),
        Step(
            "What was issued, as an administrator",
            f"{grpcurl} -cacert {roots} {admin} -d '{{\"page_size\": 3}}' \\\n"
            f"  {target} meshmint.v1.AdminService/ListRecords",
        ),
        Step(
            "The same X509-SVID from Python; the private key never travels",
            f"{quote(sys.executable)} - <<'EOF'\n"
            "from pathlib import Path\n"
            "import meshmint\n"
            "\n"
            "with meshmint.Client(\n"
            f'    "{target}",\n'
            f"    root_certificates=Path({str(state.root_certificate)!r}),\n"
            f"    token=meshmint.TokenFile(Path({str(workload_token)!r})),\n"
            ") as client:\n"
            "    svid = client.request_svid()\n"
            "print(svid.spiffe_id, svid.not_after)\n"
            "EOF",
        ),
        Step(
            "The certificate of the proof, seen by openssl",
            f"openssl verify -x509_strict -CAfile {roots} -untrusted {svid}/chain.pem "
            f"{svid}/cert.pem\n"
            f"openssl x509 -in {svid}/cert.pem -noout -text",
        ),
        Step(
            "Whether it is revoked, from the OCSP responder and the CRL that it names",
            f"openssl ocsp -CAfile {roots} -issuer {svid}/chain.pem -cert {svid}/cert.pem \\\n"
            f'  -url "$(openssl x509 -in {svid}/cert.pem -noout -ocsp_uri)"\n'
            f"openssl verify -crl_check -crl_download -CAfile {roots} "
            f"-untrusted {svid}/chain.pem {svid}/cert.pem",
        ),
    )


def _program(name: str) -> str:
    """The program by its bare name if the PATH has it, else the one beside this Python."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).with_name(name)
    return quote(str(beside)) if beside.exists() else name
