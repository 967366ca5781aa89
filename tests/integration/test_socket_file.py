"""The file of the agent's socket: who can reach it, and who is kept from taking its place."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pytest
from meshmint.agent.identities import Identities
from meshmint.agent.sockets import SocketError
from meshmint.third_party.spiffe import workload_pb2 as pb
from meshmint.third_party.spiffe import workload_pb2_grpc
from support.agent_identities import Domain, picture, served

DOMAIN = Domain()
NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


@pytest.fixture
def identities() -> Identities:
    found = Identities()
    found.publish(picture(DOMAIN.identity(), bundles=[DOMAIN.bundle()]))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


async def answers(address: str) -> bool:
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stub: Any = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)
        call = stub.FetchX509SVID(pb.X509SVIDRequest(), metadata=[("workload.spiffe.io", "true")])
        return bool((await call.read()).svids)


async def refusal(run: Path, identities: Identities, **settings: Any) -> str:
    with pytest.raises(SocketError) as refused:
        async with served(run, identities, **settings):
            pytest.fail("it was served")
    return str(refused.value)


@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_file_has_its_mode_and_the_directory_lets_workloads_through_whatever_the_umask(
    run: Path, identities: Identities, umask: int
) -> None:
    before = os.umask(umask)
    try:
        async with served(run, identities, mode="0666") as address:
            assert await answers(address)
            found = (run / "agent.sock").lstat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o666
            assert stat.S_IMODE(run.stat().st_mode) == 0o755
            # Nothing else lies there that anybody else could open.
            others = [one for one in run.iterdir() if one.name != "agent.sock"]
            assert [stat.S_IMODE(one.lstat().st_mode) for one in others] == [0o600]
    finally:
        os.umask(before)

    assert not (run / "agent.sock").exists()


async def test_default_mode_keeps_others_out(run: Path, identities: Identities) -> None:
    async with served(run, identities):
        assert stat.S_IMODE((run / "agent.sock").lstat().st_mode) == 0o660


@AS_ROOT
async def test_file_gets_its_owner_and_group(run: Path, identities: Identities) -> None:
    async with served(run, identities, owner="nobody", group=12345):
        found = (run / "agent.sock").lstat()

    assert (found.st_uid, found.st_gid) == (NOBODY, 12345)


@AS_ROOT
async def test_agent_that_is_not_root_serves_and_cannot_give_its_socket_away(
    identities: Identities,
) -> None:
    # Not below the directory of pytest, which only root can enter.
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        os.chown(directory, NOBODY, NOBODY)

        async def output_of(*settings: str) -> str:
            agent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", UNPRIVILEGED, str(NOBODY), directory / "s", *settings),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await agent.communicate()
            return output.decode()

        assert await output_of() == f"serving as {NOBODY}\n"
        refused = await output_of("root")
        assert "only root (CAP_CHOWN) gives a socket to another user" in refused
        assert list(directory.glob("s*")) == []


UNPRIVILEGED = """
import asyncio, os, sys
from meshmint.agent.identities import Identities
from meshmint.agent.sockets import SocketError, SocketSettings, serve_socket

# Only now, when all is imported: it may not be readable to others.
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))

async def main():
    settings = SocketSettings(path=sys.argv[2], owner=(sys.argv[3:] or [None])[0])
    async with serve_socket(settings, Identities(), None):
        print("serving as", os.stat(settings.path).st_uid)

try:
    asyncio.run(main())
except SocketError as error:
    print(error)
"""


async def test_unknown_owner_or_group_is_refused_by_name(run: Path, identities: Identities) -> None:
    assert "no user 'nobody-at-all'" in await refusal(run, identities, owner="nobody-at-all")
    assert "no group 'nobody-at-all'" in await refusal(run, identities, group="nobody-at-all")


async def test_path_with_characters_that_mean_something_in_an_address_works(
    tmp_path: Path, identities: Identities
) -> None:
    run = tmp_path / "a %41#?b"
    async with served(run, identities):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(run / "agent.sock"))


async def test_stale_socket_of_a_killed_agent_is_replaced(
    run: Path, identities: Identities
) -> None:
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, run, stdout=asyncio.subprocess.PIPE
    )
    assert killed.stdout
    assert await killed.stdout.readline() == b"serving\n"
    assert "another agent serves this socket" in await refusal(run, identities)
    killed.kill()
    await killed.wait()
    assert (run / "agent.sock").exists()

    async with served(run, identities) as address:
        assert await answers(address)


AGENT = """
import asyncio, sys
from meshmint.agent.identities import Identities
from meshmint.agent.sockets import SocketSettings, serve_socket

async def main():
    settings = SocketSettings(path=sys.argv[1] + "/agent.sock")
    async with serve_socket(settings, Identities(), None):
        print("serving", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_an_agent_left_behind_that_was_killed_while_it_began_is_cleared_away(
    run: Path, identities: Identities
) -> None:
    async with served(run, identities):
        pass
    (lock,) = run.iterdir()
    # The folder's name follows from the socket's.
    passing = run / PASSING
    passing.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(passing / "s"))

    async with served(run, identities) as address:
        assert await answers(address)
        assert sorted(run.iterdir()) == sorted([lock, run / "agent.sock"])


PASSING = ".bf73a8ed"


async def test_living_socket_of_another_program_is_refused_and_left_alone(
    run: Path, identities: Identities
) -> None:
    run.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(run / "agent.sock"))
        other.listen()

        assert "another program serves this socket" in await refusal(run, identities)

        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(run / "agent.sock"))


async def test_two_sockets_of_one_agent_stand_side_by_side(
    tmp_path: Path, identities: Identities
) -> None:
    run = tmp_path / "run"
    async with (
        served(run, identities) as first,
        served(run, identities, path=str(run / "second.sock")),
    ):
        assert await answers(first)
        assert await answers(f"unix:{run}/second.sock")
        assert "another agent serves" in await refusal(run, identities)


async def test_file_that_is_no_socket_is_refused_and_left_alone(
    run: Path, identities: Identities
) -> None:
    run.mkdir()
    (run / "agent.sock").write_text("precious")

    assert "not a socket" in await refusal(run, identities)

    assert (run / "agent.sock").read_text() == "precious"


async def test_symbolic_link_in_its_place_is_refused_and_not_followed(
    run: Path, identities: Identities, tmp_path: Path
) -> None:
    run.mkdir()
    (run / "agent.sock").symlink_to(tmp_path / "elsewhere")

    assert "not a socket" in await refusal(run, identities)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
async def test_directory_that_others_can_write_to_is_refused_unless_they_are_trusted(
    run: Path, identities: Identities, mode: int
) -> None:
    run.mkdir()
    run.chmod(mode)

    message = await refusal(run, identities)

    assert f"chmod go-w {run}" in message
    assert "shared_directory: true" in message
    async with served(run, identities, shared_directory=True) as address:
        assert await answers(address)


async def test_directory_above_that_others_can_write_to_is_refused(
    tmp_path: Path, identities: Identities
) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)

    assert f"can write to {above}" in await refusal(above / "run", identities)

    # In a sticky one nobody can move what is not theirs.
    above.chmod(0o1777)
    async with served(above / "run", identities) as address:
        assert await answers(address)


@AS_ROOT
async def test_directory_of_another_user_is_refused(run: Path, identities: Identities) -> None:
    run.mkdir()
    os.chown(run, NOBODY, NOBODY)

    assert f"can write to {run}" in await refusal(run, identities)


async def test_directory_behind_a_symbolic_link_is_refused_and_the_real_one_named(
    tmp_path: Path, identities: Identities
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    message = await refusal(tmp_path / "link", identities)

    assert f"write {tmp_path}/real/agent.sock instead" in message


async def test_missing_parent_of_the_directory_is_named(
    tmp_path: Path, identities: Identities
) -> None:
    message = await refusal(tmp_path / "a" / "b", identities)

    assert f"{tmp_path / 'a'} is missing" in message


async def test_socket_that_somebody_put_in_its_place_is_not_taken_away(
    run: Path, identities: Identities
) -> None:
    async with served(run, identities):
        (run / "agent.sock").unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(run / "agent.sock"))

    assert (run / "agent.sock").exists()


async def test_failure_while_serving_leaves_no_socket(run: Path, identities: Identities) -> None:
    with pytest.raises(ZeroDivisionError):
        async with served(run, identities):
            raise ZeroDivisionError

    assert not (run / "agent.sock").exists()
    async with served(run, identities) as address:
        assert await answers(address)
