"""Istio's and Linkerd's protocols: whether their clients can be served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshmint_server.authn import KubernetesSettings
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.config import Config
from meshmint_server.store import RoleRow

__all__ = ["check_mesh_protocols"]

_ISTIOS_FORM = "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def check_mesh_protocols(config: Config, rows: Iterable[RoleRow]) -> Iterator[Finding]:
    """Those that are enabled, against the roles in the store."""
    roles = {row.name for row in rows}
    if config.istio.enabled:
        faults = [
            *_missing("istio", config.istio.roles, roles),
            *_other_identities(config),
        ]
        yield from faults or [ok("istio", "Its roles exist.")]
    if config.linkerd.enabled:
        faults = [
            *_missing("linkerd", (config.linkerd.role,), roles),
            *_unverifiable(config),
        ]
        yield from faults or [ok("linkerd", "Its role exists.")]


def _missing(section: str, names: Iterable[str], roles: set[str]) -> Iterator[Finding]:
    for name in names:
        if name not in roles:
            yield error(
                section,
                f"There is no role {name!r}: whoever is to be served under it is refused.",
                f"Put it with 'meshmintd apply', or correct the name in '{section}'.",
            )


def _other_identities(config: Config) -> Iterator[Finding]:
    if not config.istio.node_accounts:
        return
    for one in config.authenticators:
        if (
            isinstance(one, KubernetesSettings)
            and one.name in config.istio.authenticators
            and one.spiffe_id != _ISTIOS_FORM
        ):
            yield warning(
                "istio",
                f"The authenticator {one.name!r} gives SPIFFE IDs of another form than Istio's: "
                "its node proxies can ask for nobody.",
                f"Leave its 'spiffe_id' out, or make it {_ISTIOS_FORM}",
            )


def _unverifiable(config: Config) -> Iterator[Finding]:
    if config.linkerd.entrance is None:
        yield warning(
            "linkerd",
            "'linkerd.listen' is not set, and proxies cannot connect to gRPC's own port.",
            "Set it, unless something in front offers ALPN for them.",
        )
        return
    name = config.linkerd.server_name(config.trust_domain)
    if config.tls.mode == "own" and name not in config.tls.dns_names:
        yield warning(
            "linkerd",
            "The service's certificate does not have the name that proxies look for by default.",
            f"Add {name} to 'tls.dns_names', or set the proxies' name of the identity service.",
        )
