"""An agent that is not root, and has CAP_CHOWN alone, gives files and sockets to others.

It may neither read them afterwards nor set their modes, as the systemd unit advises it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = 65534

# Serves, and is gone before it could tidy up, as one that is killed.
AGENT = f"""
import asyncio, json, os, sys
from pathlib import Path
from meshmint.agent.identities import Identities
from meshmint.agent.outputs import Output, OutputError, OutputSettings
from meshmint.agent.sockets import SocketError, SocketSettings, serve_socket
from pydantic import TypeAdapter
from support.agent_identities import Domain, picture

place = Path(sys.argv[1])
settings = TypeAdapter(OutputSettings)
owner = {{"owner": {NOBODY}}}
outputs = [Output(settings.validate_python(owner | one)) for one in (
    {{"format": "pem", "directory": str(place / "pem")}},
    {{"format": "java", "directory": str(place / "java"),
      "password": {{"file": str(place / "password")}}}},
    {{"format": "template", "destination": str(place / "template/conf"),
      "template": "{{{{ key }}}}"}},
)]
domain = Domain()
identity, bundles = domain.identity(), {{"example.org": domain.bundle()}}
told = {{}}

def write(output):
    try:
        return output.write(identity, bundles)
    except OutputError as error:
        return str(error)

def touch(path):
    path.unlink()
    path.write_text("somebody else's")
    os.chmod(path, 0o600)
    os.chown(path, {NOBODY}, -1)

for output, path in zip(outputs, ("pem/..data/key.pem", "java/..data/keystore.p12",
                                  "template/conf")):
    with output.lock():
        told[output.settings.format] = found = [write(output) for _ in range(3)]
        touch(place / path)
        found.append(write(output))

async def serve():
    identities = Identities()
    identities.publish(picture(identity, bundles=[domain.bundle()]))
    socket = SocketSettings(path=str(place / "run/s"), mode="0600", **owner)
    try:
        async with serve_socket(socket, identities, None):
            told["socket"] = True
            print(json.dumps(told), flush=True)
            os._exit(0)
    except SocketError as error:
        told["socket"] = str(error)
        print(json.dumps(told), flush=True)

asyncio.run(serve())
"""


def agent(place: Path) -> dict[str, Any]:
    setpriv = shutil.which("setpriv")
    assert setpriv, "install util-linux, which has setpriv"
    done = subprocess.run(
        [
            setpriv, "--bounding-set=-all,+chown", "--inh-caps=-all", "--",
            sys.executable, "-c", AGENT, str(place),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_what_is_given_away_is_written_once_unless_touched_and_served_again_after_a_kill(
    tmp_path: Path,
) -> None:
    (tmp_path / "password").write_text("changeit")
    # The second one finds what the first has left, and knows none of it.
    for _ in range(2):
        told = agent(tmp_path)
        assert told == {
            "pem": [True, False, False, True],
            "java": [True, False, False, True],
            "template": [True, False, False, True],
            "socket": True,
        }
    given = {"pem/key.pem": 0o600, "java/keystore.p12": 0o600, "template/conf": 0o600}
    for path, mode in (given | {"run/s": 0o600}).items():
        found = (tmp_path / path).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (NOBODY, mode), path
