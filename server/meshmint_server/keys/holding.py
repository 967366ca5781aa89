"""Whether a private key is held as a CA's key should be: every objection, in words.

Only what the token itself tells is judged. A file key is not: that it can be
copied is known from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshmint_server.keys.key import KeyAttributes

__all__ = ["HoldingFault", "faults_of_holding"]


@dataclass(frozen=True, slots=True)
class HoldingFault:
    """One objection to how a private key is held.

    Attributes:
        is_grave: Whether the key must be replaced; else it is something to know.
        description: What is wrong, one sentence.
    """

    is_grave: bool
    description: str


def faults_of_holding(held: KeyAttributes) -> tuple[HoldingFault, ...]:
    """Every objection, the gravest first; empty if there is none."""
    if held.storage == "file":
        return ()
    faults: list[HoldingFault] = []
    untold: list[str] = []
    for fact, wanted, is_grave, description, question in (
        (held.is_extractable, False, True,
         "The private key can be extracted from the token (CKA_EXTRACTABLE).", "extractable"),
        (held.is_sensitive, True, True,
         "The private key can be read in plain text (CKA_SENSITIVE is false).", "sensitive"),
        (held.was_ever_extractable, False, False,
         "The private key was extractable once, so there may be a copy (CKA_NEVER_EXTRACTABLE is "
         "false).", "never extractable"),
        (held.is_local, True, False,
         "The private key was not generated in the token, so there may be a copy (CKA_LOCAL is "
         "false).", "generated in the token"),
    ):  # fmt: skip
        if fact is None:
            untold.append(question)
        elif fact is not wanted:
            faults.append(HoldingFault(is_grave, description))
    if held.other_uses:
        faults.append(
            HoldingFault(True, f"The key may do more than sign: {', '.join(held.other_uses)}.")
        )
    elif not held.is_sign_only:
        faults.append(HoldingFault(True, "The key is not one for signing (CKA_SIGN is false)."))
    if untold:
        faults.append(
            HoldingFault(False, f"The token does not tell whether the key is {', '.join(untold)}.")
        )
    return tuple(sorted(faults, key=lambda fault: not fault.is_grave))
