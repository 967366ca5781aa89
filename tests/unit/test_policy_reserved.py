"""No role grants the names by which callers know the service itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from meshmint_server.errors import PolicyViolated
from meshmint_server.policy import CertificateRequest, Names, ReservedNames, decide
from meshmint_server.spiffe import SpiffeId
from support.policy import BOUNDS, NOW, make_caller, make_role

SERVICE_ID = SpiffeId(BOUNDS.trust_domain, ("meshmint", "server"))
WITH_SERVICE = replace(
    BOUNDS,
    reserved=ReservedNames.of_service(
        SERVICE_ID,
        ["Meshmint.Mesh.Test", "münze.mesh.test", "localhost"],
        ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.8", "127.0.0.1"],
    ),
)
ROLE = make_role(allow_any_name=True, require_cn=False, allowed_uri_sans=["*"], key_type="ec")


@pytest.mark.parametrize(
    "names",
    [
        Names(dns_names=("meshmint.mesh.test",)),
        Names(dns_names=("MESHMINT.mesh.test",)),
        Names(dns_names=("*.mesh.test",)),
        Names(common_name="meshmint.mesh.test"),
        Names(common_name="meshmint.mesh.test", exclude_common_name_from_sans=True),
        Names(ip_addresses=("192.0.2.7",)),
        Names(ip_addresses=("::ffff:192.0.2.7",)),
        Names(ip_addresses=("2001:0db8:0::7",)),
        Names(ip_addresses=("192.0.2.8",)),
        Names(dns_names=("münze.mesh.test",)),
        Names(dns_names=("xn--mnze-0ra.mesh.test",)),
        Names(uris=(str(SERVICE_ID),)),
    ],
)
def test_the_services_own_name_is_granted_to_nobody(names: Names) -> None:
    request = CertificateRequest(names=names)
    # The role by itself would grant it.
    decide(ROLE, make_caller(), request, now=NOW, bounds=BOUNDS)
    with pytest.raises(PolicyViolated, match="this service's own name"):
        decide(ROLE, make_caller(), request, now=NOW, bounds=WITH_SERVICE)


@pytest.mark.parametrize(
    "names",
    [
        Names(dns_names=("localhost",)),
        Names(ip_addresses=("127.0.0.1",)),
        Names(dns_names=("other.mesh.test",)),
        Names(dns_names=("a.meshmint.mesh.test",)),
        Names(uris=(f"{SERVICE_ID.trust_domain.id}/meshmint/servers",)),
    ],
)
def test_names_beside_the_services_are_free(names: Names) -> None:
    request = CertificateRequest(names=names)
    assert decide(ROLE, make_caller(), request, now=NOW, bounds=WITH_SERVICE).grant.sans
