"""What is done after files have changed: a command, a signal, an HTTP call.

Nothing in here holds up a renewal, raises for what has failed, or forgets it.
"""

from meshmint.agent.reactions.attempts import react
from meshmint.agent.reactions.change import Change
from meshmint.agent.reactions.failure import ReactionFailure
from meshmint.agent.reactions.ledger import Ledger
from meshmint.agent.reactions.reactor import Reactor
from meshmint.agent.reactions.settings import (
    CommandReaction,
    HttpReaction,
    Reaction,
    ReactionSettings,
    SignalReaction,
)

__all__ = [
    "Change",
    "CommandReaction",
    "HttpReaction",
    "Ledger",
    "Reaction",
    "ReactionFailure",
    "ReactionSettings",
    "Reactor",
    "SignalReaction",
    "react",
]
