"""The section `federation`: what cannot be federated with is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from meshmint_server.config import Config
from pydantic import ValidationError

WEB: dict[str, Any] = {
    "trust_domain": "other.example",
    "url": "https://bundles.other.example/bundle.json",
    "profile": "https_web",
}
SPIFFE: dict[str, Any] = {
    **WEB,
    "profile": "https_spiffe",
    "endpoint_spiffe_id": "spiffe://other.example/bundle",
    "bundle": "/etc/meshmint/other.json",
}


def load(*federation: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "trust_domain": "mesh.example",
            "store": "sqlite:////tmp/x.db",
            "keys": {"pkcs11": "pkcs11:token=x?module-path=/x.so&pin-source=file:/x"},
            "federation": federation,
        }
    )


def test_both_profiles_and_a_server_of_a_third_trust_domain_are_taken() -> None:
    third = {**SPIFFE, "trust_domain": "third.example"}

    assert len(load({**WEB, "trust_domain": "web.example"}, SPIFFE, third).federation) == 3


@pytest.mark.parametrize(
    "federation",
    [
        [{**WEB, "trust_domain": "mesh.example"}],
        [WEB, SPIFFE],
        [{**WEB, "trust_domain": "Other.Example"}],
        [{**WEB, "profile": "http"}],
        *(
            [{**WEB, "url": url}]
            for url in (
                "http://other.example/",
                "https://",
                "https://me@other.example/",
                "https://me:pw@other.example/",
                "https://other.example/#x",
                "https://other.example:0/",
                "https://other.example:65536/",
                "https://[/",
                "https://other.example/\n",
                "https://öther.example/",
            )
        ),
        [{**WEB, "bundle": "/x"}],
        [{**WEB, "endpoint_spiffe_id": "spiffe://other.example/x"}],
        [{**SPIFFE, "ca": "/x"}],
        [{**SPIFFE, "endpoint_spiffe_id": None}],
        [{**SPIFFE, "endpoint_spiffe_id": "spiffe://other.example/x\n"}],
        [{**SPIFFE, "bundle": None}],
        [{**SPIFFE, "insecure": True}],
    ],
    ids=range(21),
)
def test_what_cannot_be_meant_is_refused(federation: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        load(*federation)
