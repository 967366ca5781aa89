"""How far the rotation is, in plain words, with the command to run."""

from __future__ import annotations

from datetime import datetime

from meshmint_server.authority.rotation import Rotation, RotationStep

__all__ = ["describe_rotation"]


def describe_rotation(rotation: Rotation) -> str:
    """What comes next, who does it, and how; some sentences."""
    words = [_state(rotation), _step(rotation)]
    if rotation.last_failure is not None:
        words.append(f"The last try failed: {rotation.last_failure}")
    return " ".join(word for word in words if word)


def _state(rotation: Rotation) -> str:
    if rotation.active is None or rotation.ends is None:
        return "There is no active issuer: nothing can be issued."
    if rotation.is_urgent:
        return (
            f"The active issuer '{rotation.active}' ends at {_time(rotation.ends)}, and its "
            "successor should be signing already: certificates that would outlive it are refused."
        )
    return f"The active issuer '{rotation.active}' ends at {_time(rotation.ends)}."


def _step(rotation: Rotation) -> str:
    due = "" if rotation.due is None else _time(rotation.due)
    match rotation.step:
        case RotationStep.NONE:
            who = "The service makes" if rotation.is_automatic else "Make"
            return f"{who} its successor from {due} on."
        case RotationStep.PREPARE if rotation.is_automatic:
            return "The service makes a new issuer by itself."
        case RotationStep.PREPARE:
            return "A new issuer is to be made: 'meshmintd ca rotate' makes its key and a CSR."
        case RotationStep.IMPORT if rotation.is_automatic:
            return (
                f"The service has the CSR of '{rotation.next}' signed by the upstream from {due} "
                "on."
            )
        case RotationStep.IMPORT:
            return (
                f"The issuer '{rotation.next}' waits for its certificate: have the root sign the "
                "CSR that 'meshmintd ca rotate' prints, then: 'meshmintd ca rotate CERTIFICATE… "
                "ROOT'."
            )
        case RotationStep.WAIT if rotation.obstacle is not None:
            return (
                f"{rotation.obstacle} Have the root sign another one: 'meshmintd ca remove "
                f"{rotation.next}', then 'meshmintd ca rotate'. Or, if that is meant: 'meshmintd "
                f"ca rotate --activate {rotation.next} --at-once'."
            )
        case RotationStep.WAIT:
            return f"Its successor '{rotation.next}' is published, and signs from {due} on."
        case RotationStep.ACTIVATE:
            return (
                f"The issuer '{rotation.next}' is to sign now. A running service activates it by "
                "itself; without one: 'meshmintd ca rotate --activate'."
            )


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
