"""The CA set-up guide works as it is printed: its openssl lines make what the import takes."""

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from meshmint_server.authority import create_csr, import_chain
from meshmint_server.keys import KeyRing
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerState, Store
from support.programs import program

GUIDE = Path(__file__).parents[2] / "docs/guide/ca-setup.md"
TRUST_DOMAIN = TrustDomain("mesh.example")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


async def test_the_root_of_the_guide_signs_an_issuer_that_is_taken(tmp_path: Path):
    program("openssl")
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase of this test\n")
    passphrase.chmod(0o600)
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    await store.migrate()
    keyring = KeyRing(file_directory=tmp_path, passphrase_source=f"file:{passphrase}")
    now = datetime.now(UTC)
    _, csr = await create_csr(
        store,
        keyring,
        name="issuer-2027",
        algorithm="ec-p256",
        trust_domain=TRUST_DOMAIN,
        now=now,
    )
    (tmp_path / "issuer-2027.csr").write_text(csr)
    (configuration,) = _blocks("ini")
    (tmp_path / "root.cnf").write_text(configuration)
    lines = [block for block in _blocks("bash") if block.startswith("# On the root's machine")]
    assert len(lines) == 2
    # openssl asks for a passphrase on the terminal, which a test does not have.
    script = "".join(lines).replace(" -aes-256-cbc", "")
    done = subprocess.run(  # noqa: ASYNC221
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "issuer-2027.pem: OK" in done.stdout
    material = [(tmp_path / name).read_bytes() for name in ("root.pem", "issuer-2027.pem")]
    row = await import_chain(
        store, keyring, material, now=datetime.now(UTC), trust_domain=TRUST_DOMAIN
    )
    assert row.state is IssuerState.ACTIVE
    await keyring.close()
    await store.close()
