"""How a signing key is held, in words; only what the token itself tells."""

from __future__ import annotations

from meshmint_server.keys import KeyAttributes, SigningKey, key_algorithm_of

__all__ = ["key_words"]


def key_words(key: SigningKey, held: KeyAttributes) -> tuple[str, ...]:
    """Where it is, and what may be done with it.

    What the token does not tell is left out; what is not as it should be is in capitals.
    """
    kind = key_algorithm_of(key.public_key).value
    if held.storage == "file":
        return (f"{kind} in an encrypted file, {held.token}",)
    facts = (
        ("generated there", held.is_local),
        ("sensitive", held.is_sensitive),
        ("not extractable", _opposite(held.is_extractable)),
        ("never extractable before", _opposite(held.was_ever_extractable)),
        ("signs and nothing else", held.is_sign_only),
    )
    told = (name if fact else f"NOT {name}" for name, fact in facts if fact is not None)
    return (f"{kind} inside the token {held.token}", ", ".join(told))


def _opposite(fact: bool | None) -> bool | None:
    return None if fact is None else not fact
