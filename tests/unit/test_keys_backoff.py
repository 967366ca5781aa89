"""How long a token that failed is left alone."""

from __future__ import annotations

import pytest
from meshmint_server.keys import KeyFault
from meshmint_server.keys.backoff import Backoff


def test_a_token_that_was_away_for_long_is_tried_again_within_seconds() -> None:
    backoff = Backoff()
    for _ in range(50):
        fault = KeyFault("the token is away")
        backoff.fail(fault)
    assert fault.retry_after is not None
    assert 1 < fault.retry_after <= 5
    with pytest.raises(KeyFault) as caught:
        backoff.check()
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 5
