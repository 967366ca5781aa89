"""From a key in its token to an issuer that signs; and everything that is refused on the way."""

import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs7,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from meshmint_server.authority import (
    Locations,
    RotationRules,
    Succession,
    create_csr,
    describe,
    import_chain,
)
from meshmint_server.errors import InvalidRequest, KeyUnavailable, PreconditionFailed
from meshmint_server.keys import KeyAlgorithmName, KeyRing
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState, Store
from support.pki import Authority, ca_usage, extension, make_root, pem
from support.programs import program
from support.softhsm import Token

TRUST_DOMAIN = TrustDomain("mesh.example")
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@dataclass
class Room:
    """A store and a ring of file keys, and the ceremony in short."""

    store: Store
    keyring: KeyRing

    async def request(self, name: str = "mesh-1", algorithm: str = "ec-p256", **options):
        _, text = await create_csr(
            self.store,
            self.keyring,
            name=name,
            algorithm=algorithm,
            trust_domain=TRUST_DOMAIN,
            now=NOW,
            **options,
        )
        return x509.load_pem_x509_csr(text.encode())

    async def import_(self, *material: bytes, now: datetime = NOW, **options) -> IssuerRow:
        return await import_chain(
            self.store, self.keyring, material, now=now, trust_domain=TRUST_DOMAIN, **options
        )

    async def reasons(self, *material: bytes, **options) -> list[str]:
        """Why an import is refused; and that it changed nothing."""
        before = await self.store.load_issuers()
        with pytest.raises(InvalidRequest) as refusal:
            await self.import_(*material, **options)
        assert await self.store.load_issuers() == before
        for violation in refusal.value.violations:
            assert violation.description in refusal.value.message
        return [violation.description for violation in refusal.value.violations]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def room(store: Store, tmp_path: Path) -> AsyncIterator[Room]:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase of this test\n")
    passphrase.chmod(0o600)
    directory = tmp_path / "keys"
    directory.mkdir(0o700)
    keyring = KeyRing(file_directory=directory, passphrase_source=f"file:{passphrase}")
    yield Room(store, keyring)
    await keyring.close()


def _openssl(*arguments: str | Path, stdin: bytes = b"") -> str:
    done = subprocess.run(
        [program("openssl"), *map(str, arguments)], input=stdin, capture_output=True, check=False
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


# The CSR


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-2048", "ed25519"])
async def test_openssl_agrees_with_the_csr(room: Room, algorithm: str):
    csr = await room.request(algorithm=algorithm)
    text = _openssl("req", "-verify", "-noout", "-text", stdin=csr.public_bytes(Encoding.PEM))
    assert "verify OK" in text
    assert "CA:TRUE, pathlen:0" in text
    assert "Certificate Sign, CRL Sign" in text
    assert "URI:spiffe://mesh.example\n" in text


async def test_csr_asks_for_the_roots_places_in_the_issuers_certificate(room: Room):
    csr = await room.request(
        locations=Locations(
            crl="http://pki.example.org/root.crl",
            ocsp="http://ocsp.example.org",
            ca="http://pki.example.org/root.crt",
        )
    )
    text = _openssl("req", "-verify", "-noout", "-text", stdin=csr.public_bytes(Encoding.PEM))
    assert "verify OK" in text
    for words in (
        "X509v3 CRL Distribution Points",
        "URI:http://pki.example.org/root.crl",
        "OCSP - URI:http://ocsp.example.org",
        "CA Issuers - URI:http://pki.example.org/root.crt",
    ):
        assert words in text
    assert "Distribution Points" not in _openssl(
        "req", "-noout", "-text", stdin=(await room.request()).public_bytes(Encoding.PEM)
    )


async def test_a_split_crl_keeps_its_url_with_the_issuer_and_needs_one(room: Room):
    with pytest.raises(InvalidRequest) as refused:
        await room.request(crl_shards=4)
    assert [violation.field for violation in refused.value.violations] == ["crl_url"]
    assert await room.store.get_issuer("mesh-1") is None
    await room.request(crl_shards=4, crl_url="http://pki.example.org")
    await room.request("mesh-2", crl_url="http://pki.example.org")
    split, whole = [await room.store.get_issuer(name) for name in ("mesh-1", "mesh-2")]
    assert split is not None
    assert (split.crl_shards, split.crl_url) == (4, "http://pki.example.org")
    assert whole is not None
    assert (whole.crl_shards, whole.crl_url) == (1, None)


async def test_the_key_is_made_in_the_token_and_cannot_leave_it(store: Store, token: Token):
    keyring = KeyRing(pkcs11=token.uri)
    hsm = Room(store, keyring)
    csr = await hsm.request()
    row = await store.get_issuer("mesh-1")
    assert row is not None
    assert row.key_uri.startswith("pkcs11:")
    assert "pin" not in row.key_uri
    assert "module" not in row.key_uri
    assert row.state is IssuerState.PENDING
    key = await keyring.open(row.key_uri, row.public_key)
    attributes = await key.attributes()
    assert attributes.is_extractable is False
    assert attributes.is_local is True
    root = make_root()
    imported = await hsm.import_(pem(root.sign(csr), root.certificate))
    assert imported.state is IssuerState.ACTIVE
    await keyring.close()


async def test_asking_again_gives_a_csr_for_the_same_key(room: Room):
    first, second = await room.request(), await room.request()
    assert first.public_key() == second.public_key()
    assert first.subject == second.subject
    assert len((await room.store.list_issuers()).items) == 1


async def test_every_issuer_has_a_subject_of_its_own(room: Room):
    first = await room.request("mesh-1", common_name="Mesh CA")
    second = await room.request("mesh-2", common_name="Mesh CA")
    assert first.subject != second.subject
    assert first.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "Mesh CA"


async def test_a_whole_subject_can_be_given(room: Room):
    csr = await room.request(subject=x509.Name.from_rfc4514_string("CN=Mesh CA,O=Corp,C=DE"))
    assert csr.subject.rfc4514_string().endswith("CN=Mesh CA,O=Corp,C=DE")
    assert csr.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)


async def test_a_waiting_issuer_keeps_its_kind_of_key(room: Room):
    await room.request(algorithm="ec-p256")
    with pytest.raises(InvalidRequest, match="has a key already, of the kind ec-p256"):
        await room.request(algorithm="ec-p384")


async def test_the_name_of_an_issuer_with_a_certificate_is_taken(room: Room):
    root = make_root()
    await room.import_(pem(root.sign(await room.request()), root.certificate))
    with pytest.raises(PreconditionFailed, match="Choose another name"):
        await room.request()


@pytest.mark.parametrize(
    "name", ["", "Mesh", "a/b", "../a", "a b", "-a", "a.", "a" * 49, "ä", "a\n"]
)
async def test_names_that_are_no_names_make_no_key(room: Room, name: str, tmp_path: Path):
    with pytest.raises(InvalidRequest):
        await room.request(name)
    assert not list((tmp_path / "keys").iterdir())


@pytest.mark.parametrize("algorithm", ["", "dsa", "rsa-1024", "EC-P256"])
async def test_kinds_of_key_that_are_none_make_no_key(room: Room, algorithm: str):
    with pytest.raises(InvalidRequest, match="The kind of key is one of ec-p256"):
        await room.request(algorithm=algorithm)


async def test_a_common_name_that_is_too_long_makes_no_key(room: Room, tmp_path: Path):
    with pytest.raises(InvalidRequest, match="common name"):
        await room.request(common_name="x" * 65)
    assert not list((tmp_path / "keys").iterdir())


# What is taken


async def test_the_chain_is_ordered_and_the_root_set_apart(room: Room):
    root = make_root()
    upper = root.make_intermediate("Upper")
    lower = upper.make_intermediate("Lower", path_length=1)
    own = lower.sign(await room.request())
    material = pem(upper.certificate, own, root.certificate, lower.certificate)
    row = await room.import_(material)
    assert row.certificate == own.public_bytes(Encoding.DER)
    assert row.chain == tuple(one.certificate.public_bytes(Encoding.DER) for one in (lower, upper))
    assert row.roots == (root.certificate.public_bytes(Encoding.DER),)
    assert await room.store.get_issuer("mesh-1") == row


async def test_openssl_agrees_with_what_is_imported(room: Room, tmp_path: Path):
    root = make_root()
    upper = root.make_intermediate()
    row = await room.import_(
        pem(upper.sign(await room.request()), root.certificate, upper.certificate)
    )
    assert row.certificate
    files = {"own": [row.certificate], "chain": row.chain, "root": row.roots}
    for name, ders in files.items():
        loaded = [x509.load_der_x509_certificate(der) for der in ders]
        (tmp_path / f"{name}.pem").write_bytes(pem(*loaded))
    _openssl(
        "verify", "-x509_strict", "-CAfile", tmp_path / "root.pem",
        "-untrusted", tmp_path / "chain.pem", tmp_path / "own.pem",
    )  # fmt: skip


def _der(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in certificates)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda own, root: [pem(root, own)], id="pem"),
        pytest.param(lambda own, root: [pem(own), _der(root)], id="pem-and-der"),
        pytest.param(lambda own, root: [_der(own), _der(root)], id="der"),
        pytest.param(lambda own, root: [_der(root, own)], id="der-in-one-file"),
        pytest.param(lambda own, root: [pem(own, root, own), pem(root)], id="twice"),
        pytest.param(
            lambda own, root: [b"subject=x\n" + pem(own) + b"\nbetween\n" + pem(root) + b"tail"],
            id="with-text-around",
        ),
        pytest.param(
            lambda own, root: [pem(own, root).replace(b"\n", b"\r\n")], id="windows-line-ends"
        ),
        pytest.param(
            lambda own, root: [pkcs7.serialize_certificates([own, root], Encoding.DER)],
            id="pkcs7-der",
        ),
        pytest.param(
            lambda own, root: [pkcs7.serialize_certificates([own, root], Encoding.PEM)],
            id="pkcs7-pem",
        ),
    ],
)
async def test_every_usual_form_is_taken(
    room: Room, form: Callable[[x509.Certificate, x509.Certificate], list[bytes]]
):
    root = make_root()
    own = root.sign(await room.request())
    row = await room.import_(*form(own, root.certificate))
    assert (row.certificate, row.chain) == (own.public_bytes(Encoding.DER), ())
    assert row.roots == (root.certificate.public_bytes(Encoding.DER),)


async def test_an_issuer_beside_an_active_one_is_next_unless_it_is_to_sign(room: Room):
    root = make_root()
    await room.import_(pem(root.sign(await room.request("mesh-1")), root.certificate))
    second = root.sign(await room.request("mesh-2"))
    row = await room.import_(pem(second, root.certificate))
    assert (row.state, row.published_at, row.activated_at) == (IssuerState.NEXT, NOW, None)
    row = await room.import_(pem(second, root.certificate), now=NOW + DAY, activate=True)
    assert (row.published_at, row.activated_at) == (NOW, NOW + DAY)
    first = await room.store.get_issuer("mesh-1")
    assert first
    assert (first.state, first.retired_at) == (IssuerState.RETIRED, NOW + DAY)


async def test_a_root_that_nobody_knows_yet_is_published_before_anything_is_signed_below_it(
    room: Room,
):
    old, new = make_root(), make_root()
    await room.import_(pem(old.sign(await room.request("mesh-1")), old.certificate))
    csr = await room.request("mesh-2")
    material = pem(new.sign(csr, lifetime=700 * DAY), new.certificate)
    with pytest.raises(PreconditionFailed, match="has to be published until") as refusal:
        await room.import_(material, activate=True)
    assert refusal.value.reason == "ROOT_NOT_KNOWN_YET"
    assert (await room.store.get_issuer("mesh-2")).state is IssuerState.PENDING
    await room.import_(material)
    # Imported again with yet another root, it begins anew: that root is known to nobody.
    other = make_root()
    again = pem(other.sign(csr, lifetime=700 * DAY), other.certificate)
    row = await room.import_(again, now=NOW + DAY)
    assert row.published_at == NOW + DAY
    with pytest.raises(PreconditionFailed, match="has to be published until"):
        await room.import_(again, now=NOW + DAY + timedelta(minutes=24), activate=True)
    row = await room.import_(again, now=NOW + DAY + timedelta(minutes=25), activate=True)
    assert row.state is IssuerState.ACTIVE


async def test_in_an_emergency_nobody_waits_for_a_root_to_be_known(room: Room):
    old, new = make_root(), make_root()
    await room.import_(pem(old.sign(await room.request("mesh-1")), old.certificate))
    material = pem(new.sign(await room.request("mesh-2"), lifetime=10 * DAY), new.certificate)
    row = await room.import_(material, activate=True, at_once=True)
    assert row.state is IssuerState.ACTIVE


async def test_an_active_issuer_does_not_leave_the_root_that_it_has_signed_below(room: Room):
    old, new = make_root(), make_root()
    csr = await room.request()
    await room.import_(pem(old.sign(csr), old.certificate))
    moved = pem(new.sign(csr, lifetime=700 * DAY), new.certificate)
    (reason,) = await room.reasons(moved, at_once=True)
    assert "has signed below another root" in reason
    assert "A new root needs a new issuer" in reason


async def test_an_active_issuer_does_not_end_earlier_than_its_certificates_may(room: Room):
    root = make_root()
    csr = await room.request()
    await room.import_(pem(root.sign(csr, lifetime=100 * DAY), root.certificate))
    shorter = pem(root.sign(csr, lifetime=99 * DAY), root.certificate)
    (reason,) = await room.reasons(shorter, at_once=True)
    assert "certificates of it may live longer" in reason


async def test_an_active_issuer_moves_to_its_root_as_issued_anew_at_once(room: Room):
    root = make_root()
    csr = await room.request()
    await room.import_(pem(root.sign(csr), root.certificate))
    again = make_root(key=root.key, subject=root.certificate.subject)
    row = await room.import_(pem(root.sign(csr, lifetime=700 * DAY), again.certificate))
    assert (row.state, row.published_at) == (IssuerState.ACTIVE, NOW)
    assert row.roots == (again.certificate.public_bytes(Encoding.DER),)


async def test_a_damaged_issuer_keeps_no_other_from_being_imported(room: Room):
    root = make_root()
    row = await room.import_(pem(root.sign(await room.request("mesh-1")), root.certificate))
    await room.store.put_issuer(replace(row, certificate=b"broken"))
    row = await room.import_(
        pem(root.sign(await room.request("mesh-2")), root.certificate), activate=True
    )
    assert row.state is IssuerState.ACTIVE


async def test_a_retired_issuer_is_not_imported_again(room: Room):
    root = make_root()
    first = pem(root.sign(await room.request("mesh-1")), root.certificate)
    await room.import_(first)
    second = pem(root.sign(await room.request("mesh-2")), root.certificate)
    await room.import_(second, activate=True)
    with pytest.raises(PreconditionFailed, match="is retired, and signs no more"):
        await room.import_(first)


async def test_a_retired_issuer_signs_again_when_an_operator_rolls_back(room: Room):
    root = make_root()
    await room.import_(pem(root.sign(await room.request("mesh-1")), root.certificate))
    second = pem(root.sign(await room.request("mesh-2"), lifetime=700 * DAY), root.certificate)
    await room.import_(second, now=NOW + DAY, activate=True)
    succession = Succession(
        room.store,
        room.keyring,
        trust_domain=TRUST_DOMAIN,
        rules=RotationRules(),
        algorithm=KeyAlgorithmName.EC_P256,
        clock=lambda: NOW + 2 * DAY,
    )
    with pytest.raises(PreconditionFailed, match="no later than the active one"):
        await succession.activate("mesh-1")
    row = await succession.activate("mesh-1", at_once=True)
    then = NOW + 2 * DAY
    assert (row.state, row.activated_at, row.retired_at) == (IssuerState.ACTIVE, then, None)
    new = await room.store.get_issuer("mesh-2")
    assert new
    assert (new.state, new.retired_at) == (IssuerState.RETIRED, then)
    assert (await succession.activate("mesh-2")).state is IssuerState.ACTIVE


async def test_an_active_issuer_does_not_become_the_next_one(room: Room):
    root = make_root()
    material = pem(root.sign(await room.request()), root.certificate)
    await room.import_(material)
    with pytest.raises(PreconditionFailed):
        await room.import_(material, activate=False)


async def test_a_renewed_certificate_of_the_same_key_takes_the_place_of_the_old(room: Room):
    root = make_root()
    csr = await room.request()
    await room.import_(pem(root.sign(csr), root.certificate))
    renewed = root.sign(csr, lifetime=700 * DAY)
    row = await room.import_(pem(renewed, root.certificate))
    assert row.state is IssuerState.ACTIVE
    assert row.certificate == renewed.public_bytes(Encoding.DER)


async def test_a_reissued_root_is_published_with_the_old_one(room: Room):
    root = make_root()
    again = make_root(key=root.key, subject=root.certificate.subject)
    row = await room.import_(
        pem(root.sign(await room.request()), root.certificate, again.certificate)
    )
    assert len(row.roots) == 2


async def test_a_self_signed_issuer_is_for_development_alone(room: Room, tmp_path: Path):
    csr = await room.request()
    (key_file,) = (tmp_path / "keys").iterdir()
    key = _load(key_file)
    own = make_root(key=key, subject=csr.subject).certificate
    (reason,) = await room.reasons(pem(own))
    assert "is self-signed" in reason
    row = await room.import_(pem(own), allow_self_signed=True)
    assert row.roots == (own.public_bytes(Encoding.DER),)
    assert row.chain == ()


def _load(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), b"a passphrase of this test")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


async def test_an_issuer_whose_key_is_gone_is_not_imported(room: Room, tmp_path: Path):
    root = make_root()
    own = root.sign(await room.request())
    for file in (tmp_path / "keys").iterdir():
        file.unlink()
    with pytest.raises(KeyUnavailable):
        await room.import_(pem(own, root.certificate))


async def test_an_issuer_is_described_before_and_after(room: Room):
    csr = await room.request()
    row = await room.store.get_issuer("mesh-1")
    assert row
    waiting = describe(row)
    assert (waiting.state, waiting.algorithm, waiting.subject) == ("pending", "ec-p256", None)
    root = make_root(lifetime=30 * DAY)
    own = root.sign(csr)
    ready = describe(await room.import_(pem(own, root.certificate)))
    assert ready.state == "active"
    assert ready.subject == own.subject.rfc4514_string()
    assert ready.serial_number == f"{own.serial_number:x}"
    assert ready.spiffe_id == "spiffe://mesh.example"
    assert ready.not_after == own.not_valid_after_utc
    assert ready.signs_until == root.certificate.not_valid_after_utc
    assert ready.roots == (root.certificate.subject.rfc4514_string(),)
    assert describe(replace(row, certificate=None)).signs_until is None


# What is refused: one fault each


def _uri(*uris: str) -> tuple[x509.ExtensionType, bool]:
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    return extension(x509.SubjectAlternativeName(names), False)


def _permits(**trees: list[str] | None) -> tuple[x509.ExtensionType, bool]:
    def subtrees(names: list[str] | None):
        return names and [x509.UniformResourceIdentifier(name) for name in names]

    return extension(
        x509.NameConstraints(subtrees(trees.get("permitted")), subtrees(trees.get("excluded"))),
        True,
    )


UNKNOWN = x509.ObjectIdentifier("1.2.3.4")
ANY_USAGE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

FAULTS = {
    "is not a CA": {"replace": [extension(x509.BasicConstraints(False, None), True)]},
    "is not a CA:": {"without": [x509.BasicConstraints]},
    "basic constraints that are not critical": {
        "replace": [extension(x509.BasicConstraints(True, 0), False)]
    },
    "lacks keyCertSign": {
        "replace": [extension(ca_usage(key_cert_sign=False, digital_signature=True), True)]
    },
    "may not sign CRLs": {"replace": [extension(ca_usage(crl_sign=False), True)]},
    "has no key usage": {"without": [x509.KeyUsage]},
    "without serverAuth and clientAuth": {
        "replace": [extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]
    },
    "expired at": {"not_before": NOW - 20 * DAY, "not_after": NOW - DAY},
    "is not valid before": {"not_before": NOW + DAY},
    "no subject key identifier": {"without": [x509.SubjectKeyIdentifier]},
    "no authority key identifier": {"without": [x509.AuthorityKeyIdentifier]},
    "that is not the subject key identifier of": {
        "replace": [extension(x509.AuthorityKeyIdentifier(b"x" * 20, None, None), False)]
    },
    "is not of the trust domain mesh.example": {"replace": [_uri("spiffe://other.example")]},
    "with a path: the ID of a CA has none": {"replace": [_uri("spiffe://mesh.example/ca")]},
    "which is malformed": {"replace": [_uri("spiffe://Mesh.example")]},
    "it may have one URI only": {"replace": [_uri("spiffe://mesh.example", "https://x.example")]},
    "permits URI names in other.example only": {"replace": [_permits(permitted=["other.example"])]},
    "permits URI names in .mesh.example only": {"replace": [_permits(permitted=[".mesh.example"])]},
    "excludes URI names in mesh.example": {"replace": [_permits(excluded=["mesh.example"])]},
    "excludes URI names in .example": {"replace": [_permits(excluded=[".example"])]},
    "excludes URI names in example": {"replace": [_permits(excluded=["example"])]},
    "the critical extension 1.2.3.4": {
        "replace": [
            extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True
            )
        ]
    },
    "an empty subject": {"subject": x509.Name([])},
}


@pytest.mark.parametrize("reason", FAULTS)
async def test_a_fault_of_the_certificate_is_refused_with_its_reason(room: Room, reason: str):
    root = make_root()
    own = root.sign(await room.request(), **FAULTS[reason])
    (given,) = await room.reasons(pem(own, root.certificate))
    assert reason in given


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"replace": [_permits(permitted=["mesh.example", "other.example"])]},
        {"replace": [_permits(permitted=[".example"], excluded=["other.example"])]},
        {"replace": [extension(x509.NameConstraints([x509.DNSName("x.example")], None), True)]},
        {"replace": [extension(x509.ExtendedKeyUsage([ANY_USAGE]), False)]},
        {"without": [x509.SubjectAlternativeName]},
        {"path_length": None},
        {"path_length": 3},
    ],
)  # fmt: skip
async def test_what_only_looks_like_a_fault_is_taken(room: Room, fault: dict):
    root = make_root()
    own = root.sign(await room.request(), **fault)
    assert (await room.import_(pem(own, root.certificate))).state is IssuerState.ACTIVE


async def test_every_reason_is_given_at_once(room: Room):
    root = make_root()
    own = root.sign(
        await room.request(),
        without=[x509.KeyUsage],
        replace=[_uri("spiffe://mesh.example/ca")],
        not_before=NOW - 20 * DAY,
        not_after=NOW - DAY,
    )
    assert len(await room.reasons(pem(own, root.certificate))) == 3


UPPER_FAULTS: dict[str, tuple[Callable[[], Authority], dict]] = {
    "allows 0 CA certificates below it": (make_root, {"path_length": 0}),
    "allows 1 CA certificates below it (path length), and there are 2": (
        lambda: make_root(path_length=1),
        {},
    ),
    "expired at": (make_root, {"not_before": NOW - 20 * DAY, "not_after": NOW - DAY}),
    "is not a CA": (make_root, {"replace": [extension(x509.BasicConstraints(False, None), True)]}),
    "lacks keyCertSign": (make_root, {"replace": [extension(ca_usage(key_cert_sign=False), True)]}),
    "permits URI names": (make_root, {"replace": [_permits(permitted=["other.example"])]}),
    "with a path": (make_root, {"replace": [_uri("spiffe://corp.example/ca")]}),
    "an RSA key of 1024 bits": (
        make_root,
        {"key": rsa.generate_private_key(65537, 1024)},  # noqa: S505
    ),
    "on the curve secp256k1": (make_root, {"key": ec.generate_private_key(ec.SECP256K1())}),
}


@pytest.mark.parametrize("reason", UPPER_FAULTS)
async def test_a_fault_above_is_refused_with_its_reason(room: Room, reason: str):
    root_of, fault = UPPER_FAULTS[reason]
    root = root_of()
    upper = root.make_intermediate(**fault)
    own = upper.sign(await room.request())
    (given,) = await room.reasons(pem(own, upper.certificate, root.certificate))
    assert reason in given


async def test_a_missing_root_is_named(room: Room):
    root = make_root()
    upper = root.make_intermediate()
    own = upper.sign(await room.request())
    (reason,) = await room.reasons(pem(own, upper.certificate))
    assert "is missing" in reason
    assert root.certificate.subject.rfc4514_string() in reason


async def test_a_missing_link_is_named(room: Room):
    root = make_root()
    upper = root.make_intermediate()
    own = upper.sign(await room.request())
    (reason,) = await room.reasons(pem(own, root.certificate))
    assert upper.certificate.subject.rfc4514_string() in reason


async def test_a_root_of_the_same_name_and_another_key_is_refused(room: Room):
    root = make_root()
    impostor = make_root(subject=root.certificate.subject)
    own = root.sign(await room.request())
    (reason,) = await room.reasons(pem(own, impostor.certificate))
    assert "does not verify" in reason


async def test_unrelated_certificates_are_refused(room: Room):
    root, stranger = make_root(), make_root("Stranger")
    own = root.sign(await room.request())
    (reason,) = await room.reasons(pem(own, root.certificate, stranger.certificate))
    assert "Stranger" in reason
    assert "has no part in this chain" in reason


async def test_a_certificate_of_another_key_is_refused(room: Room):
    root = make_root()
    await room.request()
    stranger = root.make_intermediate()
    (reason,) = await room.reasons(pem(stranger.certificate, root.certificate))
    assert "No certificate has the key of an issuer" in reason


async def test_a_certificate_for_another_issuer_than_the_named_is_refused(room: Room):
    root = make_root()
    await room.request("mesh-1")
    own = root.sign(await room.request("mesh-2"))
    (reason,) = await room.reasons(pem(own, root.certificate), name="mesh-1")
    assert "but that of 'mesh-2'" in reason
    (reason,) = await room.reasons(pem(own, root.certificate), name="mesh-3")
    assert "There is no issuer 'mesh-3'" in reason


async def test_certificates_for_two_issuers_at_once_are_refused(room: Room):
    root = make_root()
    certificates = [root.sign(await room.request(name)) for name in ("mesh-1", "mesh-2")]
    (reason,) = await room.reasons(pem(*certificates, root.certificate))
    assert "Give one" in reason


async def test_the_subject_of_another_issuer_is_refused(room: Room):
    root = make_root()
    first = root.sign(await room.request("mesh-1"))
    await room.import_(pem(first, root.certificate))
    second = root.sign(await room.request("mesh-2"), subject=first.subject)
    (reason,) = await room.reasons(pem(second, root.certificate))
    assert "The issuer 'mesh-1' has the subject" in reason


async def test_a_sha1_signature_is_refused(room: Room, tmp_path: Path):
    # cryptography does not sign with SHA-1, so openssl plays the careless root.
    root = make_root()
    (tmp_path / "root.pem").write_bytes(pem(root.certificate))
    key = root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "root.key").write_bytes(key)
    csr = (await room.request()).public_bytes(Encoding.PEM)
    _openssl(
        "x509", "-req", "-sha1", "-days", "10", "-copy_extensions", "copyall",
        "-CA", tmp_path / "root.pem", "-CAkey", tmp_path / "root.key", "-out", tmp_path / "own.pem",
        stdin=csr,
    )  # fmt: skip
    reasons = await room.reasons((tmp_path / "own.pem").read_bytes(), pem(root.certificate))
    assert any("is signed with SHA1" in reason for reason in reasons)


@pytest.mark.parametrize("digest", [hashes.SHA224(), hashes.SHA3_256()])
async def test_a_signature_that_many_verifiers_do_not_know_is_refused(
    room: Room, digest: hashes.HashAlgorithm
):
    root = make_root()
    own = root.sign(await room.request(), digest=digest)
    (reason,) = await room.reasons(pem(own, root.certificate))
    assert "which many verifiers do not know" in reason


async def test_a_changed_certificate_is_refused(room: Room):
    root = make_root()
    own = root.sign(await room.request())
    changed = bytearray(own.public_bytes(Encoding.DER))
    changed[-1] ^= 1
    (reason,) = await room.reasons(bytes(changed), pem(root.certificate))
    assert "does not verify" in reason


@pytest.mark.parametrize(
    ("material", "reason"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"not a certificate", "neither PEM nor DER"),
        (b"0\x82\xff\xff123", "cut short"),
        (b"0\x03\x02\x01\x01", "cannot be read"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB", "cut short"),
        (b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "not base64"),
        (b"-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n", "cannot be read"),
        (b"-----BEGIN X509 CRL-----\nMAMCAQE=\n-----END X509 CRL-----\n", "no certificate in"),
        (
            b"-----BEGIN PRIVATE KEY-----\nMAMCAQE=\n-----END PRIVATE KEY-----\n",
            "There is a private key",
        ),
        (b"x" * 2_000_000, "larger than 1 MiB"),
    ],
)
async def test_what_is_no_certificate_is_refused(room: Room, material: bytes, reason: str):
    await room.request()
    with pytest.raises(InvalidRequest, match=reason):
        await room.import_(material)


def test_the_fault_builder_signs_with_sha256_unless_asked():
    certificate = make_root().certificate
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
