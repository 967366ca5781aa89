"""The issuers as a worker sees them: following the store, whatever the keys do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from meshmint_server.authority import IssuerBook, create_csr, import_chain
from meshmint_server.errors import IssuerNotReady, KeyUnavailable, StoreUnavailable
from meshmint_server.keys import KeyRing, default_algorithm
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerState, Store
from support.pki import make_root, pem

TRUST_DOMAIN = TrustDomain("mesh.example")
NOW = datetime.now(UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    await store.migrate()
    yield store
    await store.close()


def _keyring(tmp_path: Path) -> KeyRing:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase of this test\n")
    passphrase.chmod(0o600)
    (tmp_path / "keys").mkdir(0o700, exist_ok=True)
    return KeyRing(file_directory=tmp_path / "keys", passphrase_source=f"file:{passphrase}")


@pytest.fixture
async def keyring(tmp_path: Path) -> AsyncIterator[KeyRing]:
    keyring = _keyring(tmp_path)
    yield keyring
    await keyring.close()


@pytest.fixture
def book(store: Store, keyring: KeyRing) -> IssuerBook:
    return IssuerBook(store, keyring, TRUST_DOMAIN)


async def _add(store: Store, keyring: KeyRing, name: str, activate: bool = True, **options):
    """An issuer below a root of its own."""
    _, csr = await create_csr(
        store, keyring, name=name, algorithm="ec-p256", trust_domain=TRUST_DOMAIN, now=NOW
    )
    root = make_root(**options)
    own = root.sign(x509.load_pem_x509_csr(csr.encode()))
    material = pem(own, root.certificate)
    await import_chain(
        store,
        keyring,
        material,
        now=NOW,
        trust_domain=TRUST_DOMAIN,
        activate=activate,
        at_once=activate,
    )
    return own, root.certificate


async def test_without_an_issuer_an_operator_is_told_what_to_do(book: IssuerBook):
    await book.refresh()
    with pytest.raises(IssuerNotReady, match="meshmintd ca csr"):
        book.active()
    assert book.published() == ()


async def test_a_pending_issuer_is_not_published(book: IssuerBook, store: Store, keyring: KeyRing):
    await create_csr(
        store, keyring, name="mesh-1", algorithm="ec-p256", trust_domain=TRUST_DOMAIN, now=NOW
    )
    await book.refresh()
    assert book.published() == ()
    with pytest.raises(IssuerNotReady):
        book.get("mesh-1")


async def test_an_imported_issuer_signs_after_the_next_refresh(
    book: IssuerBook, store: Store, keyring: KeyRing
):
    await book.refresh()
    own, root = await _add(store, keyring, "mesh-1", lifetime=timedelta(days=30))
    await book.refresh()
    issuer = book.active()
    assert issuer == book.get("mesh-1") == book.signing(None) == book.signing("mesh-1")
    assert issuer.certificate == own
    assert issuer.roots_pem == (pem(root).decode(),)
    assert issuer.not_after == root.not_valid_after_utc < own.not_valid_after_utc
    algorithm = default_algorithm(issuer.key.public_key)
    assert algorithm.is_valid(
        issuer.key.public_key, await issuer.key.sign(b"data", algorithm), b"data"
    )


async def test_whoever_misses_an_issuer_finds_it_and_many_share_one_look(
    book: IssuerBook, store: Store, keyring: KeyRing, monkeypatch: pytest.MonkeyPatch
):
    await book.refresh()
    await _add(store, keyring, "mesh-1")
    looks = 0
    ask = store.issuers_revision

    async def counted() -> int:
        nonlocal looks
        looks += 1
        return await ask()

    monkeypatch.setattr(store, "issuers_revision", counted)

    async def miss() -> str:
        await book.look_again()
        return book.get("mesh-1").name

    first = asyncio.create_task(miss())
    others = [asyncio.create_task(miss()) for _ in range(50)]
    await asyncio.sleep(0)
    first.cancel()  # the one that asked first hangs up
    assert await asyncio.gather(*others) == ["mesh-1"] * 50
    assert looks == 1
    await book.look_again()
    assert looks == 2


async def test_only_the_active_issuer_signs_and_all_are_published(
    book: IssuerBook, store: Store, keyring: KeyRing
):
    roots = [
        (await _add(store, keyring, "mesh-1"))[1],
        (await _add(store, keyring, "mesh-2"))[1],
        (await _add(store, keyring, "mesh-3", activate=False))[1],
    ]
    await book.refresh()
    states = {issuer.name: issuer.state for issuer in book.published()}
    assert states == {
        "mesh-1": IssuerState.RETIRED,
        "mesh-2": IssuerState.ACTIVE,
        "mesh-3": IssuerState.NEXT,
    }
    assert book.active().name == "mesh-2"
    bundle = book.active().trust_bundle_pem
    assert bundle[0] == pem(roots[1]).decode()
    assert sorted(bundle) == sorted(pem(root).decode() for root in roots)
    for name in ("mesh-1", "mesh-3", "mesh-4"):
        with pytest.raises(IssuerNotReady):
            book.signing(name)


async def test_an_unchanged_store_keeps_the_same_issuers_and_a_change_keeps_open_keys(
    book: IssuerBook, store: Store, keyring: KeyRing
):
    await _add(store, keyring, "mesh-1")
    await book.refresh()
    first = book.active()
    await book.refresh()
    assert book.active() is first
    await _add(store, keyring, "mesh-2", activate=False)
    await book.refresh()
    assert book.active() is not first
    assert book.active().key is first.key


async def test_an_issuer_whose_key_is_away_is_published_and_unavailable_until_it_is_back(
    store: Store, keyring: KeyRing, tmp_path: Path
):
    own, _ = await _add(store, keyring, "mesh-1")
    (key_file,) = (tmp_path / "keys").iterdir()
    hidden = key_file.rename(tmp_path / "hidden.pem")
    book = IssuerBook(store, keyring, TRUST_DOMAIN)
    await book.refresh()
    issuer = book.active()
    assert issuer.certificate == own
    algorithm = default_algorithm(issuer.key.public_key)
    with pytest.raises(KeyUnavailable) as fault:
        await issuer.key.sign(b"data", algorithm)
    assert fault.value.retry_after
    hidden.rename(key_file)
    await book.refresh()
    assert await book.active().key.sign(b"data", algorithm)


async def test_an_unreadable_issuer_does_not_take_the_others_along(
    book: IssuerBook, store: Store, keyring: KeyRing
):
    await _add(store, keyring, "mesh-1")
    await _add(store, keyring, "mesh-2")
    row = await store.get_issuer("mesh-1")
    assert row
    await store.put_issuer(replace(row, certificate=b"broken", key_uri="pkcs11:?module-path=/x.so"))
    await book.refresh()
    assert [issuer.name for issuer in book.published()] == ["mesh-2"]
    assert book.active().name == "mesh-2"


async def test_a_worker_that_cannot_ask_who_signs_stops_to_sign_after_minutes(
    store: Store, keyring: KeyRing, monkeypatch: pytest.MonkeyPatch
):
    seconds = [0.0]
    book = IssuerBook(store, keyring, TRUST_DOMAIN, monotonic=lambda: seconds[0])
    await _add(store, keyring, "mesh-1")
    await book.refresh()

    async def away() -> int:
        raise StoreUnavailable("The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "issuers_revision", away)
        seconds[0] = 300.0
        assert book.signing(None).name
        seconds[0] = 301.0
        with pytest.raises(StoreUnavailable):
            await book.refresh()
        with pytest.raises(StoreUnavailable) as refusal:
            book.signing(None)
        assert refusal.value.reason == "ISSUERS_NOT_CONFIRMED"
        assert book.active().name  # what is known is still shown
    await book.refresh()
    assert book.signing(None).name


async def test_a_store_that_is_away_leaves_the_issuers_as_they_were(
    book: IssuerBook, store: Store, keyring: KeyRing, tmp_path: Path
):
    await _add(store, keyring, "mesh-1")
    await book.refresh()
    await store.close()
    for file in tmp_path.glob("store.db*"):
        file.unlink()
    with pytest.raises(StoreUnavailable):
        await book.refresh()
    assert book.active().name == "mesh-1"
    await store.database.close()
