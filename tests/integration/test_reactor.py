"""Every change is reacted to until that has succeeded, and not more often than it takes."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from meshmint.agent.outputs import Output, PemOutput
from meshmint.agent.reactions import (
    Change,
    CommandReaction,
    Ledger,
    ReactionFailure,
    Reactor,
)
from support.held import MeshCa

MESH = MeshCa()
WEB = Change("web", "1", None, None, (Path("/etc/web"),), "one")
API = dataclasses.replace(WEB, name="api", directories=(Path("/etc/api"),))


class Bench:
    """A command that notes each of its runs, and fails as long as it is told to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports: list[ReactionFailure] = []
        self.ledger = Ledger(directory / "ledger")
        self.reaction = CommandReaction(
            command=(
                "/bin/sh",
                "-c",
                f"cd {directory}; (echo $MESHMINT_NAME $MESHMINT_SERIAL) >> runs; "
                "test ! -e broken || { echo is broken; exit 1; }",
            ),
            attempts=1,
        )

    def reactor(self) -> Reactor:
        return Reactor(self.ledger, self.reports.append, gather_seconds=0.05, pause_seconds=0.05)

    def breaks(self, does: bool) -> None:
        path = self.directory / "broken"
        path.touch() if does else path.unlink()

    @property
    def runs(self) -> list[str]:
        path = self.directory / "runs"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(condition: Any) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.01)


async def test_certificates_that_change_together_run_a_command_once(bench: Bench) -> None:
    async with Reactor(bench.ledger, bench.reports.append, gather_seconds=1) as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        await asyncio.sleep(0.01)
        reactor.due([bench.reaction.model_copy(update={"attempts": 2})], API, changed=True)
        assert await reactor.settle() == []
    assert bench.runs == ["web api 1 1"]


async def test_nothing_is_done_if_nothing_has_changed(bench: Bench) -> None:
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        await reactor.settle()
        reactor.due([bench.reaction], WEB, changed=False)
        assert await reactor.settle() == []
        assert len(bench.runs) == 1
        reactor.due([bench.reaction], WEB, changed=True)
        await reactor.settle()
    assert len(bench.runs) == 2, "files that were put right are a change"


async def test_a_failed_reaction_is_tried_until_it_succeeds(bench: Bench) -> None:
    bench.breaks(True)
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        (failure,) = await reactor.settle()
        assert failure.names == ("web",)
        assert failure.text == "it ended with status 1; it said: is broken"
        assert reactor.failures == [failure]
        await until(lambda: len(bench.reports) >= 3)
        bench.breaks(False)
        await until(lambda: not reactor.failures)
    assert bench.reports[0] == failure


async def test_a_newer_change_takes_the_place_of_one_that_is_still_due(bench: Bench) -> None:
    bench.breaks(True)
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        reactor.due([bench.reaction], API, changed=True)
        await reactor.settle()
        newer = dataclasses.replace(WEB, serial_number="2", version="two")
        reactor.due([bench.reaction], newer, changed=True)
        bench.breaks(False)
        assert await reactor.settle() == []
        assert bench.runs[-1] in ("web api 2 1", "api web 1 2")
        assert bench.ledger.is_done(bench.reaction.key, newer)
        assert not bench.ledger.is_done(bench.reaction.key, WEB)


async def test_a_change_during_a_run_gets_a_run_of_its_own(bench: Bench) -> None:
    slow = CommandReaction(
        command=(
            "/bin/sh",
            "-c",
            f"cd {bench.directory}; echo $MESHMINT_SERIAL >> runs; "
            "while test ! -e go; do sleep 0.02; done",
        )
    )
    async with bench.reactor() as reactor:
        reactor.due([slow], WEB, changed=True)
        await until(lambda: bench.runs == ["1"])
        reactor.due(
            [slow], dataclasses.replace(WEB, serial_number="2", version="two"), changed=True
        )
        (bench.directory / "go").touch()
        assert await reactor.settle() == []
    assert bench.runs == ["1", "2"]


async def test_a_reaction_that_hangs_does_not_hold_up_others(bench: Bench) -> None:
    hangs = CommandReaction(command=("sleep", "600"))
    async with bench.reactor() as reactor:
        reactor.due([hangs, bench.reaction], WEB, changed=True)
        await until(lambda: bench.runs)


async def test_after_a_restart_what_was_not_done_is_due_and_what_was_done_is_not(
    bench: Bench, tmp_path: Path
) -> None:
    bench.breaks(True)
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        await reactor.settle()
    bench.breaks(False)
    ran = len(bench.runs)

    for _ in range(2):
        bench.ledger = Ledger(tmp_path / "ledger")
        async with bench.reactor() as reactor:
            reactor.due([bench.reaction], WEB, changed=False)
            assert await reactor.settle() == []
        assert len(bench.runs) == ran + 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 99_999])
async def test_a_ledger_that_cannot_be_read_only_means_one_run_more(
    bench: Bench, tmp_path: Path, content: bytes
) -> None:
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        await reactor.settle()
    (tmp_path / "ledger" / "done.json").write_bytes(content)

    bench.ledger = Ledger(tmp_path / "ledger")
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=False)
        assert await reactor.settle() == []
    assert len(bench.runs) == 2
    assert Ledger(tmp_path / "ledger").is_done(bench.reaction.key, WEB)


async def test_a_ledger_that_cannot_be_written_is_said_and_known_until_a_restart(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "ledger").write_text("no directory")
    async with bench.reactor() as reactor:
        reactor.due([bench.reaction], WEB, changed=True)
        await reactor.settle()
        reactor.due([bench.reaction], WEB, changed=False)
        await reactor.settle()
    assert len(bench.runs) == 1
    assert "it has succeeded, but a restart will not know that" in bench.reports[0].text


async def test_a_new_certificate_is_another_change_and_the_same_one_is_not(
    tmp_path: Path,
) -> None:
    identity = MESH.issue()
    output = Output(PemOutput(format="pem", directory=tmp_path / "tls"))
    output.write(identity, MESH.bundles)
    first = Change.of(identity, [output])
    again = Output(output.settings)
    again.write(identity, MESH.bundles)
    assert Change.of(identity, [again]) == first
    assert first.directories == (tmp_path / "tls",)
    renewed = MESH.issue()
    output.write(renewed, MESH.bundles)
    assert Change.of(renewed, [output]).version != first.version
