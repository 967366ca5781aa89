"""The configuration as a whole, and how its file is read."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from meshmint_server.audit import LogFormat, LogLevel
from meshmint_server.authn import AuthenticatorSettings, KubernetesSettings, refuse_conflicts
from meshmint_server.config.admission import AdmissionSettings
from meshmint_server.config.crl import CrlSettings
from meshmint_server.config.federation import FederationSettings, refuse_repeated
from meshmint_server.config.fields import (
    HostPort,
    PositiveDuration,
    Section,
    UnixSocket,
    parse_address,
    parse_trust_domain,
)
from meshmint_server.config.jwt_svid import JwtSvidSettings
from meshmint_server.config.listeners import BundleEndpointSettings, HttpSettings, TlsSettings
from meshmint_server.config.mesh import IstioSettings, LinkerdSettings
from meshmint_server.config.ocsp import OcspSettings
from meshmint_server.config.publication import PublicationSettings
from meshmint_server.config.rotation import RotationSettings
from meshmint_server.config.tidy import TidySettings
from meshmint_server.keys import KeySettings
from meshmint_server.policy import CallerMatcher
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import parse_store_url

__all__ = ["REFRESHES", "Config", "ConfigError", "LogSettings"]

REFRESHES = 5
"""For how many refresh hints what is new is published before it is used.

SPIFFE Federation section 3.3: three to five.
"""


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to do."""


def _store_url(value: str) -> str:
    parse_store_url(value)
    return value


def _conflict_free(
    value: tuple[AuthenticatorSettings, ...],
) -> tuple[AuthenticatorSettings, ...]:
    refuse_conflicts(value)
    return value


class LogSettings(Section):
    """The log, on standard output."""

    format: LogFormat = "json"
    level: LogLevel = "info"


class Config(Section):
    """Everything `meshmintd serve` needs to know.

    Attributes:
        trust_domain: The SPIFFE trust domain that this service issues for.
        listen: Address of the gRPC listener.
        tls: Its certificate.
        http: The HTTP port.
        bundle_endpoint: The SPIFFE bundle endpoint.
        federation: Other trust domains whose bundles are fetched and handed out.
        publication: Where certificates say that CRLs, OCSP and CA certificates are.
        crl: How long CRLs live and how soon they are replaced.
        ocsp: OCSP answers.
        store: Where records, roles and issuers are kept: ``sqlite:////absolute/path.db``
            or ``postgresql://user@host/database?password_file=/path``.
        tidy: How long expired records are kept there.
        keys: Where signing keys are.
        rotation: How issuers succeed each other.
        jwt_svid: JWT-SVIDs, and the keys that sign them.
        authenticators: Who vouches for callers; at least one is needed to issue.
        istio: Istio's protocol, on the port of `listen`.
        linkerd: Linkerd's protocol.
        admins: Callers that may use AdminService, and revoke any certificate; a matcher that
            matches everybody is refused.
        default_ttl: Lifetime where neither role nor request says one.
        max_ttl: The longest lifetime that any role can give.
        workers: Number of worker processes.
        admission: How many requests are worked on and wait, and how often callers may ask.
        max_watchers: The most WatchTrustBundle streams that one worker keeps open.
        request_time_limit: The longest that one request may take.
        drain: How long requests in flight may take at the end.
        log: The log.
    """

    trust_domain: Annotated[TrustDomain, BeforeValidator(parse_trust_domain), PlainSerializer(str)]
    listen: Annotated[
        HostPort | UnixSocket, BeforeValidator(parse_address), PlainSerializer(str)
    ] = HostPort("127.0.0.1", 8443)
    tls: TlsSettings = TlsSettings()
    http: HttpSettings = HttpSettings()
    bundle_endpoint: BundleEndpointSettings = BundleEndpointSettings()
    federation: Annotated[tuple[FederationSettings, ...], AfterValidator(refuse_repeated)] = ()
    publication: PublicationSettings = PublicationSettings()
    crl: CrlSettings = CrlSettings()
    ocsp: OcspSettings = OcspSettings()
    # It may hold a password, however little we ask for one.
    store: Annotated[str, AfterValidator(_store_url), Field(repr=False)]
    tidy: TidySettings = TidySettings()
    keys: KeySettings
    rotation: RotationSettings = RotationSettings()
    jwt_svid: JwtSvidSettings = JwtSvidSettings()
    authenticators: Annotated[
        tuple[AuthenticatorSettings, ...], AfterValidator(_conflict_free)
    ] = ()
    istio: IstioSettings = IstioSettings()
    linkerd: LinkerdSettings = LinkerdSettings()
    admins: tuple[CallerMatcher, ...] = ()
    default_ttl: PositiveDuration = timedelta(hours=768)
    max_ttl: PositiveDuration = timedelta(hours=768)
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    admission: AdmissionSettings = AdmissionSettings()
    max_watchers: Annotated[int, Field(ge=0)] = 10_000
    request_time_limit: PositiveDuration = timedelta(seconds=10)
    drain: PositiveDuration = timedelta(seconds=20)
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_whole(self) -> Config:
        if self.tls.mode == "none" and not self.listen.is_loopback:
            raise ValueError(
                "without TLS the server listens only on loopback or a unix socket: "
                "set tls.mode to 'own' or 'files', or listen on 127.0.0.1"
            )
        if any(one.trust_domain == self.trust_domain for one in self.federation):
            raise ValueError(f"federation: {self.trust_domain} is the service's own trust domain")
        if any(matcher.is_open for matcher in self.admins):
            raise ValueError(
                "admins: an empty matcher makes every caller an administrator: "
                "name the authenticator and the caller"
            )
        self._check_listeners()
        self._check_meshes()
        if self.default_ttl > self.max_ttl:
            raise ValueError("default_ttl is longer than max_ttl")
        if self.jwt_svid.enabled and self.jwt_svid.period < 2 * self.jwt_key_published_for:
            raise ValueError(
                "jwt_svid.period must be at least twice the time for which a key is published "
                "before it signs: lengthen it, or shorten 'bundle_endpoint.refresh_hint' or "
                "'jwt_svid.publish_for'"
            )
        return self

    @property
    def listeners(self) -> dict[str, HostPort | UnixSocket]:
        """Where the workers listen, by the name in the configuration."""
        addresses = {
            "listen": self.listen,
            "http.listen": self.http.listen,
            "bundle_endpoint.listen": self.bundle_endpoint.listen,
            "linkerd.listen": self.linkerd.entrance,
        }
        return {name: address for name, address in addresses.items() if address is not None}

    def _check_listeners(self) -> None:
        # Workers share their ports (SO_REUSEPORT), so two listeners would share one as well,
        # and each client would reach one or the other.
        names: dict[HostPort | UnixSocket, str] = {}
        for name, address in self.listeners.items():
            other = names.setdefault(address, name)
            if other != name:
                raise ValueError(
                    f"'{other}' and '{name}' are the same address, {address}: choose another port"
                )

    def _check_meshes(self) -> None:
        if self.linkerd.entrance is not None and self.tls.mode == "none":
            raise ValueError("linkerd.listen: proxies want TLS: set tls.mode to 'own' or 'files'")
        everybody = [one.name for one in self.authenticators]
        clusters = [one.name for one in self.authenticators if isinstance(one, KubernetesSettings)]
        for section, settings, known in (
            ("istio", self.istio, everybody),
            ("linkerd", self.linkerd, clusters),
        ):
            if unknown := settings.unknown(known):
                kind = "" if known is everybody else " of kind 'kubernetes'"
                raise ValueError(
                    f"{section}.authenticators: there is no authenticator{kind} named "
                    f"{unknown[0]!r}: correct the name, or configure it"
                )
        if self.istio.node_accounts and not set(self.istio.authenticators) & set(clusters):
            raise ValueError(
                "istio.node_accounts: service accounts need an authenticator of kind 'kubernetes' "
                "in istio.authenticators"
            )

    @property
    def jwt_key_published_for(self) -> timedelta:
        """How long a key for JWT-SVIDs is published before it signs."""
        return self.jwt_svid.publish_for or REFRESHES * self.bundle_endpoint.refresh_hint

    @classmethod
    def load(cls, path: Path) -> Config:
        """Reads a configuration file.

        Raises:
            ConfigError: It cannot be read, or something in it is wrong; the
                message names every place.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        try:
            # As a stream: errors in a text quote its lines, and one of them may hold a password.
            document = yaml.load(StringIO(text), _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: is not YAML: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: must be a mapping with 'trust_domain', 'store', 'keys', …")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problems = "\n".join(
                f"  {'.'.join(map(str, problem['loc'])) or '(whole file)'}: "
                f"{problem['msg'].removeprefix('Value error, ')}"
                for problem in error.errors(include_url=False, include_input=False)
            )
            raise ConfigError(f"{path}: cannot be used:\n{problems}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
