"""What the tasks of one agent share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from meshmint.agent.clock import Clock
from meshmint.agent.condition import Conditions
from meshmint.agent.connection import Connection
from meshmint.agent.holdings import Holdings
from meshmint.agent.state import StateDirectory

__all__ = ["Parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one agent.

    Attributes:
        connection: Gives the client.
        state: The agent's own directory.
        clock: Tells the time.
        holdings: Where certificates and bundles go.
        conditions: Where it is told how things are.
        draw: Draws a number between two.
    """

    connection: Connection
    state: StateDirectory
    clock: Clock
    holdings: Holdings = field(default_factory=Holdings)
    conditions: Conditions = field(default_factory=Conditions)
    draw: Callable[[float, float], float] = random.uniform
