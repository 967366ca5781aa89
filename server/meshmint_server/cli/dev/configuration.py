"""The configuration file of a development service: a real one, with its reasons beside it."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import yaml

from meshmint_server.cli.dev.state import StateDirectory, write_file
from meshmint_server.cli.dev.token_issuer import ADMIN, AUDIENCE, ISSUER
from meshmint_server.config import Config
from meshmint_server.keys import KeySettings

__all__ = ["TRUST_DOMAIN", "write_configuration"]

TRUST_DOMAIN: Final = "example.org"

_TEXT: Final = """\
# Written by `meshmintd dev` at every start. To change it, copy it and run
#   {environment}meshmintd serve -c COPY

# Every SPIFFE ID that this service issues begins with spiffe://{trust_domain}/
trust_domain: {trust_domain}

# gRPC, with TLS. The certificate is issued by this service itself, renewed by itself.
listen: 127.0.0.1:{port}
tls:
  mode: own
  dns_names: [localhost]
  ip_addresses: [127.0.0.1]

# Health (/healthz, /readyz), metrics (/metrics), CRLs, OCSP and CA certificates.
http:
  listen: 127.0.0.1:{http_port}

# Certificates say that CRLs, OCSP and their issuer's certificate are to be had there.
publication:
  url: http://127.0.0.1:{http_port}

# JWT-SVIDs, for where mutual TLS does not reach. Verifiers find the keys below the issuer's URL.
jwt_svid:
  enabled: true
  issuer: http://127.0.0.1:{http_port}

# Records, roles and issuers.
store: {store}

# Where signing keys are. Secrets are never in here, only where they are.
keys:
{keys}
# Who vouches for callers. Tokens are checked offline against the cluster's JWK set.
authenticators:
  - name: kubernetes
    kind: kubernetes
    issuer: {issuer}
    audiences: [{audience}]
    mode: jwks
    jwks_file: {jwks}
    spiffe_id: spiffe://{{trust_domain}}/ns/{{namespace}}/sa/{{service_account}}

# Who may use AdminService.
admins:
  - authenticator: kubernetes
    namespace: {admin.namespace}
    service_account: {admin.name}

default_ttl: 1h
max_ttl: 72h
workers: {workers}
drain: 2s

log:
  format: json
  level: info
"""


def write_configuration(
    state: StateDirectory, keys: KeySettings, *, port: int, http_port: int, workers: int
) -> Config:
    """Writes the file, and reads it as `meshmintd serve` will."""
    given = keys.model_dump(mode="json", exclude_defaults=True)
    text = _TEXT.format(
        environment=f"SOFTHSM2_CONF={state.softhsm}/softhsm2.conf " if keys.pkcs11 else "",
        trust_domain=TRUST_DOMAIN,
        port=port,
        http_port=http_port,
        store=_quoted(f"sqlite:///{quote(str(state.database))}"),
        keys="".join(f"  {name}: {_quoted(value)}\n" for name, value in given.items()),
        issuer=ISSUER,
        audience=AUDIENCE,
        jwks=_quoted(str(state.jwks)),
        admin=ADMIN,
        workers=workers,
    )
    write_file(state.config, text, mode=0o600)
    return Config.load(state.config)


def _quoted(value: object) -> str:
    text: str = yaml.safe_dump(value, width=10_000)
    return text.removesuffix("...\n").strip()
