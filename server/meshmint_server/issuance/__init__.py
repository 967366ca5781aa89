"""The one path every certificate takes, and what operators may do around it."""

from meshmint_server.issuance.administration import Administration, PutRole, RoleChange, put_role
from meshmint_server.issuance.mint import Deadline, Issued, Mint
from meshmint_server.issuance.readiness import Readiness, ReadinessProbe
from meshmint_server.issuance.roles import RoleBook
from meshmint_server.issuance.service_certificate import ServiceCertificate, service_spiffe_id
from meshmint_server.issuance.tidy import Tidy

__all__ = [
    "Administration",
    "Deadline",
    "Issued",
    "Mint",
    "PutRole",
    "Readiness",
    "ReadinessProbe",
    "RoleBook",
    "RoleChange",
    "ServiceCertificate",
    "Tidy",
    "put_role",
    "service_spiffe_id",
]
