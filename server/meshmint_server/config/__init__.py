"""The server's configuration: one YAML file, parsed into types that cannot be wrong.

It sits above the rooms because it is made of the settings that they define;
only `app` builds objects from it. It never holds a secret, only where one is.
"""

from meshmint_server.config.crl import CrlSettings
from meshmint_server.config.federation import FederationSettings
from meshmint_server.config.fields import HostPort, UnixSocket
from meshmint_server.config.jwt_svid import JwtSvidSettings
from meshmint_server.config.listeners import BundleEndpointSettings, HttpSettings, TlsSettings
from meshmint_server.config.mesh import IstioSettings, LinkerdSettings
from meshmint_server.config.ocsp import OcspSettings
from meshmint_server.config.publication import PublicationSettings, RootPublicationSettings
from meshmint_server.config.rotation import RotationSettings, UpstreamSettings
from meshmint_server.config.tidy import TidySettings
from meshmint_server.config.whole import REFRESHES, Config, ConfigError, LogSettings

__all__ = [
    "REFRESHES",
    "BundleEndpointSettings",
    "Config",
    "ConfigError",
    "CrlSettings",
    "FederationSettings",
    "HostPort",
    "HttpSettings",
    "IstioSettings",
    "JwtSvidSettings",
    "LinkerdSettings",
    "LogSettings",
    "OcspSettings",
    "PublicationSettings",
    "RootPublicationSettings",
    "RotationSettings",
    "TidySettings",
    "TlsSettings",
    "UnixSocket",
    "UpstreamSettings",
]
