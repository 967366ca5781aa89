"""The gRPC edge: servicers that translate, and hold no policy."""

from meshmint_server.grpc_api.admin_service import AdminService
from meshmint_server.grpc_api.certificate_service import CertificateService
from meshmint_server.grpc_api.credentials import OwnCredentials, file_credentials
from meshmint_server.grpc_api.edge import Edge
from meshmint_server.grpc_api.istio_service import IstioRules, IstioService
from meshmint_server.grpc_api.linkerd_service import LinkerdRules, LinkerdService
from meshmint_server.grpc_api.relay import Relay
from meshmint_server.grpc_api.server import GrpcListener

__all__ = [
    "AdminService",
    "CertificateService",
    "Edge",
    "GrpcListener",
    "IstioRules",
    "IstioService",
    "LinkerdRules",
    "LinkerdService",
    "OwnCredentials",
    "Relay",
    "file_credentials",
]
