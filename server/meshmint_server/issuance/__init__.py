"""The one path every certificate takes, and what operators may do around it."""

from meshmint_server.issuance.administration import (
    Administration,
    KnownCertificate,
    PutRole,
    RoleChange,
    put_role,
)
from meshmint_server.issuance.administrators import Administrators
from meshmint_server.issuance.admission import Admission
from meshmint_server.issuance.deadline import Deadline
from meshmint_server.issuance.issued import Issued
from meshmint_server.issuance.issuer_administration import IssuerAdministration
from meshmint_server.issuance.jwt_svids import IssuedJwtSvid, JwtSvids
from meshmint_server.issuance.mint import Mint
from meshmint_server.issuance.naming import Naming
from meshmint_server.issuance.presented import read_certificate
from meshmint_server.issuance.rates import Rate, Rates
from meshmint_server.issuance.readiness import Readiness, ReadinessProbe
from meshmint_server.issuance.reasons import RevocationReason
from meshmint_server.issuance.responder_certificates import ResponderCertificates
from meshmint_server.issuance.retries import Retryable, forget_expired_replies
from meshmint_server.issuance.revocation import RevocationRequest, Revoked, Revoker
from meshmint_server.issuance.roles import RoleBook
from meshmint_server.issuance.service_certificate import ServiceCertificate, service_spiffe_id
from meshmint_server.issuance.tidy import Tidy

__all__ = [
    "Administration",
    "Administrators",
    "Admission",
    "Deadline",
    "Issued",
    "IssuedJwtSvid",
    "IssuerAdministration",
    "JwtSvids",
    "KnownCertificate",
    "Mint",
    "Naming",
    "PutRole",
    "Rate",
    "Rates",
    "Readiness",
    "ReadinessProbe",
    "ResponderCertificates",
    "Retryable",
    "RevocationReason",
    "RevocationRequest",
    "Revoked",
    "Revoker",
    "RoleBook",
    "RoleChange",
    "ServiceCertificate",
    "Tidy",
    "forget_expired_replies",
    "put_role",
    "read_certificate",
    "service_spiffe_id",
]
