"""bench/engine: shares are of what sessions give, and table and plot show what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from typing import Any
from xml.etree import ElementTree

import pytest
from engine.page import page
from engine.plot import plot
from engine.results import document
from engine.sweeps import HSM, PROXIED_HSM, SWEEPS, BesideSessions
from peers.load import Measured

SVG = "{http://www.w3.org/2000/svg}"


def rounds(*rates: float) -> list[Measured]:
    return [Measured(answers=100, rate=rate, p50=0.01, p99=0.02) for rate in rates]


def beside(sessions_give: float, *rates: float) -> list[Measured]:
    return [BesideSessions(*astuple(one), sessions_give) for one in rounds(*rates)]


def whole(at_5_ms: float = 380.0) -> dict[str, Any]:
    found = {sweep.name: dict.fromkeys(sweep.values, rounds(900, 1000, 1200)) for sweep in SWEEPS}
    for sweep in (HSM, PROXIED_HSM):
        for delay in sweep.values[1:]:
            found[sweep.name][delay] = beside(2000 / delay, 900, 1000, 1200)
    found[PROXIED_HSM.name][5] = beside(400, at_5_ms)
    made = document(SWEEPS, found) | {
        "command": "make bench-engine",
        "at": "2026-11-24T12:00:00+00:00",
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8, "others_share_of_cpu": 0.1},
        "versions": {"SQLite": "3.40"},
        "rounds": 3,
        "seconds": 2.0,
    }
    # As a reader of engine.json has it.
    reread: dict[str, Any] = json.loads(json.dumps(made))
    return reread


def test_the_document_has_medians_and_shares() -> None:
    made = whole()

    assert made["workers"]["2"] == {
        "rate": 1000, "least": 900, "most": 1200, "p50_ms": 10, "p99_ms": 20,
    }  # fmt: skip
    assert made["hsm_ms_p11_kit"]["5"]["share"] == 0.95
    assert made["share_at_5_ms"] == 0.95
    assert made["hsm_ms"]["20"]["sessions_give"] == 100
    assert "share" not in made["hsm_ms"]["0"]


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(360.0, "gives 90% of what its sessions can"), (352.0, "gives 88% of what its sessions can")],
)
def test_the_page_says_whether_the_mark_is_reached(rate: float, verdict: str) -> None:
    text = " ".join(page(whole(rate)).split())

    assert f"{verdict}; the mark is 90%, {'reached' if rate >= 360 else '**missed**'}." in text
    assert "The machine was not quiet" in text
    assert f"| 5 | {rate:.0f} | {rate:.0f} | {rate:.0f} | 10.0 | 20.0 | 400 |" in text
    assert "| 1,024 | 1,000 | 900 | 1,200 | 10.0 | 20.0 |" in text


def test_the_plot_is_an_image_with_every_value_in_it() -> None:
    image = ElementTree.fromstring(plot(whole()))  # noqa: S314 - our own

    texts = {element.text for element in image.iter(f"{SVG}text")}
    assert {"rate/s by workers", "latency in ms by records", "1M", "1024"} <= texts
    circles = len(list(image.iter(f"{SVG}circle")))
    values = [len(sweep.values) for sweep in SWEEPS]
    # A rate for each value; two latencies for each but those behind the proxy.
    assert circles == sum(values) + 2 * sum(values[:-1])
    _, _, width, height = map(float, image.attrib["viewBox"].split())
    for element in image.iter(f"{SVG}circle"):
        assert 0 < float(element.attrib["cx"]) < width
        assert 0 < float(element.attrib["cy"]) < height


def test_the_plot_draws_more_higher_up() -> None:
    image = ElementTree.fromstring(plot(whole()))  # noqa: S314 - our own

    lines = [
        element.attrib["points"] for element in image.iter(f"{SVG}polyline")
        if "bound" not in element.attrib["class"]
    ]  # fmt: skip
    proxied = next(line for line in lines if len(set(re.findall(r",([\d.]+)", line))) == 2)
    heights = [float(height) for height in re.findall(r",([\d.]+)", proxied)]
    assert heights[2] > heights[0]  # 5 ms, where the rate was lower; y grows downwards
