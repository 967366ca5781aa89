"""The shipped client and command against a real server: TLS, tokens, SoftHSM, SQLite."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from meshmint import (
    AdminClient,
    AsyncClient,
    Client,
    InvalidArgument,
    KeyAlgorithm,
    NotFound,
    PermissionDenied,
    TokenFile,
    Unauthenticated,
    UnsafeTransport,
    generate_key,
    make_csr,
)
from meshmint.keys import KEY_ALGORITHMS
from support.service import ADMIN, Service


@pytest.fixture
def token_file(service: Service, tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(service.token("shop", "cart"))
    return path


@pytest.fixture
def client(service: Service, token_file: Path) -> Iterator[Client]:
    with Client(
        service.address, token=TokenFile(token_file), root_certificates=service.ca_file
    ) as made:
        yield made


@pytest.fixture
def admin(service: Service) -> Iterator[AdminClient]:
    with AdminClient(
        service.address,
        token=lambda: service.token(*ADMIN),
        root_certificates=service.ca_file,
    ) as made:
        yield made


@pytest.fixture
async def async_client(service: Service, token_file: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        service.address, token=token_file, root_certificates=service.ca_file
    ) as made:
        yield made


def own_id(service: Service) -> str:
    """The SPIFFE ID of the caller shop/cart."""
    return f"spiffe://{service.trust_domain}/ns/shop/sa/cart"


@pytest.fixture(scope="session")
def svid_role(service: Service) -> str:
    """A role for X509-SVIDs with any kind of key."""
    name = service.put_role({"spiffe": "own", "key_type": "any", "max_ttl": "2h"})
    service.wait_until_everywhere(name)  # clients have connections of their own
    return name


@pytest.fixture(scope="session")
def web_role(service: Service) -> str:
    """A role for names below shop.example."""
    name = service.put_role(
        {
            "allowed_domains": ["shop.example"],
            "allow_subdomains": True,
            "require_cn": False,
            "key_type": "any",
        }
    )
    service.wait_until_everywhere(name)
    return name


def test_request_svid_gives_the_callers_own_identity_and_openssl_agrees(
    service: Service, client: Client, svid_role: str, tmp_path: Path
) -> None:
    svid = client.request_svid(svid_role)
    assert svid.spiffe_id == own_id(service)
    assert svid.role == svid_role
    assert svid.private_key.public_key() == svid.certificate.public_key()
    svid.write_files(tmp_path / "svid")
    checked = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-CAfile", service.ca_file),
            *("-untrusted", "chain.pem", "cert.pem"),
        ],
        cwd=tmp_path / "svid",
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == "cert.pem: OK\n", checked.stderr


@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS)
def test_every_key_algorithm_works_made_here_and_made_there(
    client: Client, svid_role: str, algorithm: KeyAlgorithm
) -> None:
    here = client.request_svid(svid_role, key_algorithm=algorithm)
    there = client.issue(svid_role, key_algorithm=algorithm)
    assert type(here.private_key) is type(there.private_key)
    assert here.spiffe_id == there.spiffe_id


def test_names_and_lifetime_come_out_as_asked(client: Client, web_role: str) -> None:
    issued = client.request_certificate(
        web_role, dns_names=["a.shop.example", "b.shop.example"], ttl=timedelta(minutes=10)
    )
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert set(names.value.get_values_for_type(x509.DNSName)) == {
        "a.shop.example",
        "b.shop.example",
    }
    assert timedelta(minutes=9) < issued.expires_in() <= timedelta(minutes=10)
    assert issued.spiffe_id is None


def test_a_lifetime_that_was_shortened_comes_with_a_warning(client: Client, svid_role: str) -> None:
    svid = client.request_svid(svid_role, ttl=timedelta(hours=50))
    assert svid.expires_in() <= timedelta(hours=2)
    assert svid.warnings


def test_names_outside_the_role_come_back_as_violations(client: Client, web_role: str) -> None:
    with pytest.raises(PermissionDenied) as caught:
        client.request_certificate(web_role, dns_names=["evil.example", "also.evil.example"])
    assert caught.value.reason == "POLICY_VIOLATED"
    assert len(caught.value.violations) >= 2
    assert "evil.example" in str(caught.value)


def test_a_csr_that_is_none_is_an_invalid_argument(client: Client, svid_role: str) -> None:
    with pytest.raises(InvalidArgument):
        client.sign("no csr at all", svid_role)


def test_sign_uses_the_key_of_the_csr(client: Client, svid_role: str) -> None:
    key = generate_key("ec-p384")
    signed = client.sign(make_csr(key), svid_role)
    assert signed.certificate.public_key() == key.public_key()


def test_a_token_that_does_not_hold_is_unauthenticated_and_not_shown(service: Service) -> None:
    with (
        Client(service.address, token="e30.e30.c2ln", root_certificates=service.ca_file) as client,
        pytest.raises(Unauthenticated) as caught,
    ):
        client.request_svid()
    assert "c2ln" not in str(caught.value)


def test_a_replaced_token_file_is_used_at_the_next_call(
    service: Service, client: Client, token_file: Path, svid_role: str
) -> None:
    assert client.request_svid(svid_role).spiffe_id == own_id(service)
    token_file.write_text(service.token("shop", "web") + "\n")
    assert client.request_svid(svid_role).spiffe_id.endswith("/ns/shop/sa/web")


def test_get_chain_needs_no_token(service: Service) -> None:
    with Client(service.address, root_certificates=service.ca_file) as client:
        chain = client.get_chain()
    assert chain.trust_domain == service.trust_domain
    assert chain.not_after == chain.chain[0].not_valid_after_utc
    assert chain.trust_bundle == tuple(
        x509.load_pem_x509_certificates(service.ca_file.read_bytes())
    )


def test_insecure_is_no_way_around_tls(service: Service) -> None:
    port = service.address.rpartition(":")[2]
    with pytest.raises(UnsafeTransport):
        Client(f"meshmint.example.org:{port}", token="t", insecure=True)


async def test_many_asynchronous_calls_share_one_client(
    service: Service, async_client: AsyncClient, svid_role: str
) -> None:
    svids = await asyncio.gather(*(async_client.request_svid(svid_role) for _ in range(50)))
    assert {svid.spiffe_id for svid in svids} == {own_id(service)}
    assert len({svid.serial_number for svid in svids}) == 50
    assert len({svid.private_key_pem for svid in svids}) == 50


def test_an_operator_manages_roles_and_finds_records(
    service: Service, admin: AdminClient, client: Client, svid_role: str
) -> None:
    name = service.unique_name()
    document = {"name": name, "callers": [{"namespace": "shop"}], "max_ttl": "720h"}
    assert admin.put_role(document, validate_only=True).change == "created"
    assert admin.put_role(document).change == "created"
    assert admin.put_role(document).change == "unchanged"
    stored = admin.get_role(name)
    assert stored["max_ttl"] == "2592000s"
    assert admin.put_role(stored).change == "unchanged"
    assert name in {role["name"] for role in admin.list_roles(page_size=1000).items}
    admin.delete_role(name)
    with pytest.raises(NotFound):
        admin.get_role(name)

    svid = client.request_svid(svid_role)
    record = admin.get_record(svid.serial_number)
    assert record.spiffe_id == svid.spiffe_id
    assert record.not_after == svid.not_after
    assert x509.load_pem_x509_certificate(record.certificate_pem.encode()) == svid.certificate
    page = admin.list_records(
        role=svid_role, created_from=datetime.now(UTC) - timedelta(minutes=5), page_size=1
    )
    assert [found.role for found in page.items] == [svid_role]
    (issuer,) = admin.list_issuers().items
    assert issuer.state == "active"
    assert admin.get_issuer(issuer.name) == issuer


def test_a_role_that_can_never_work_is_refused_with_its_violations(
    service: Service, admin: AdminClient
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        admin.put_role({"name": service.unique_name(), "key_type": "dsa", "ext_key_usage": ["x"]})
    assert len(caught.value.violations) >= 2


def test_the_command_issues_inspects_and_explains(
    service: Service, svid_role: str, token_file: Path, tmp_path: Path
) -> None:
    def meshmint(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = ["--server", service.address, "--ca-file", str(service.ca_file)]
        if arguments[0] == "issue":
            options += ["--token-file", str(token_file)]
        return subprocess.run(
            [
                *(sys.executable, "-m", "meshmint", *arguments),
                *([] if arguments[0] == "inspect" else options),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    out = str(tmp_path / "svid")
    done = meshmint("issue", "--role", svid_role, "--out", out)
    assert done.returncode == 0, done.stderr
    assert own_id(service) in done.stdout
    shown = meshmint("inspect", f"{out}/fullchain.pem", "--bundle", str(service.ca_file), "--json")
    assert json.loads(shown.stdout)["is_verified"] is True
    refused = meshmint("issue", "--role", "no-such-role")
    assert refused.returncode == 3
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert json.loads(meshmint("chain", "--json").stdout)["trust_domain"] == service.trust_domain
