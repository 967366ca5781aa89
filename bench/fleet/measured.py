"""What a replica does, as docs/reference has it measured, and what the service's settings allow it.

Nothing of it is written down here: a new measurement, or another default, is another simulation.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meshmint_server.config import Config
from meshmint_server.errors import Overloaded

__all__ = ["REFERENCE", "Replica"]

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
# As many in flight as the highest rate was measured with.
_IN_FLIGHT = "64"


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica.

    Attributes:
        cores: Of the machine that it was measured on, load and database included.
        workers: Its processes there.
        certificates: `Sign`, recorded, in PostgreSQL: certificates a second.
        handshake: Seconds for a new connection: what the handshakes of a stampede took beyond
            the certificates that were made meanwhile.
        aside: Seconds for a request that is refused or comes to nothing, and for the beginning
            of a stream: what one takes that is refused when nothing else is asked.
        room: Requests that are worked on or wait, at most.
        retry_after: What a refusal says, seconds.
        time_limit: How long a request may take, seconds.
        watchers: Streams that watch the trust bundle, at most.
        connection_bytes: Memory, for each connection of that stampede.
    """

    cores: int
    workers: int
    certificates: float
    handshake: float
    aside: float
    room: int
    retry_after: float
    time_limit: float
    watchers: int
    connection_bytes: float

    @classmethod
    def measured(cls, reference: Path = REFERENCE) -> Replica:
        """As the files say."""
        bench, stampede = (_read(reference / f"{name}.json") for name in ("bench", "stampede"))
        rates = bench["top_rate"]["sign_recorded"][_IN_FLIGHT]
        shaking = stampede["handshake_seconds"]
        afterwards = stampede["goodput"]["after_handshakes"] * (stampede["seconds"] - shaking)
        meanwhile = stampede["answered"]["OK"] - afterwards
        top = statistics.mean(stampede["top_rate"])
        memory = stampede["memory_mib"]
        workers: int = stampede["workers"]
        settings = {name: field.default for name, field in Config.model_fields.items()}
        admission = settings["admission"]
        return cls(
            cores=bench["machine"]["cores"],
            workers=workers,
            certificates=rates["meshmint-postgresql"]["rate"]["median"],
            handshake=(shaking - meanwhile / top) / stampede["connections"],
            aside=1 / stampede["refusals"],
            room=workers * (admission.working + admission.waiting),
            retry_after=Overloaded.default_retry_after or 0.0,
            time_limit=settings["request_time_limit"].total_seconds(),
            watchers=workers * settings["max_watchers"],
            connection_bytes=(memory["highest"] - memory["before"])
            * 2**20
            / stampede["connections"],
        )

    def behind_a_slow_hsm(self, milliseconds: int, reference: Path = REFERENCE) -> Replica:
        """The same with an HSM that takes so long for a signature."""
        rates = _read(reference / "engine.json")["hsm_ms"]
        return replace(self, certificates=rates[str(milliseconds)]["rate"])


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document
