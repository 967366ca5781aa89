"""The figures for readers: tables on the terminal, and docs/reference/bench.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from tables import markdown

__all__ = ["page", "show"]

_TEMPLATE: Final = Path(__file__).with_name("page.template")

Rows = list[tuple[str, ...]]


def show(document: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    for title, headings, rows in _tables(document):
        table = Table(title=title, title_justify="left")
        for heading in headings:
            table.add_column(heading, justify="left" if heading in _WORDS else "right")
        for row, following in zip(rows, [*rows[1:], ("",)], strict=True):
            table.add_row(*row, end_section=row[0] != following[0])
        console.print(table)


def page(document: dict[str, Any]) -> str:
    """The text of bench.md."""
    machine = document["machine"]
    return _TEMPLATE.read_text("utf-8").format(
        command=document["command"],
        at=document["at"],
        rounds=document["rounds"],
        seconds=document["seconds"],
        cpu=machine["cpu"],
        cores=machine["cores"],
        memory=machine["memory_gib"],
        others=f"{machine['others_share_of_cpu']:.0%}",
        versions=", ".join(f"{name} {which}" for name, which in document["versions"].items()),
        verdict=_verdict(document),
        tables="\n".join(
            f"## {title}\n\n{markdown(headings, rows, left=_word_columns(headings))}\n"
            for title, headings, rows in _tables(document)
        ),
        **_floor_words(document),
    )


# --- the tables ------------------------------------------------------------------------

# The share of the CPU that other programs may have.
_QUIET: Final = 0.05
_WORDS: Final = ("work", "server", "asked")
_NAMES: Final = {
    "openbao": "OpenBao",
    "meshmint-sqlite": "Meshmint, SQLite",
    "meshmint-postgresql": "Meshmint, PostgreSQL",
    "meshmint-sqlite to unary": "Meshmint, SQLite, to unary",
}


def _word_columns(headings: Sequence[str]) -> list[int]:
    return [index for index, heading in enumerate(headings) if heading in _WORDS]


def _tables(document: dict[str, Any]) -> list[tuple[str, tuple[str, ...], Rows]]:
    return [
        (
            "Meshmint to OpenBao, and its streams to its own unary requests",
            ("work", "server", "ratio", "least", "most", "mark"),
            _ratio_rows(document),
        ),
        (
            "As fast as they answer",
            ("work", "in flight", "server", "rate/s", "least", "most", "p50 ms", "p99 ms",
             "CPU s per 1,000"),
            _top_rows(document),
        ),
        (
            "Over streams",
            ("work", "asked", "rate/s", "least", "most", "p50 ms", "p99 ms", "CPU s per 1,000"),
            _stream_rows(document),
        ),
        (
            "At half of Meshmint's best rate",
            ("work", "server", "asked for/s", "rate/s", "p50 ms", "p99 ms", "CPU s per 1,000"),
            _half_rows(document),
        ),
        (
            "The least: handlers that do what no issuer can leave out, and nothing else",
            ("work", "rate/s", "least", "most", "p50 ms", "p99 ms", "CPU s per 1,000"),
            _floor_rows(document),
        ),
        (
            "Memory",
            ("server", "before MiB", "after MiB"),
            [
                (_NAMES[name], str(memory["before"]), str(memory["after"]))
                for name, memory in document["memory_mib"].items()
            ],
        ),
    ]  # fmt: skip


def _ratio_rows(document: dict[str, Any]) -> Rows:
    return [
        (
            _spell(work), _NAMES[server], f"{ratio['median']:.2f}", f"{ratio['min']:.2f}",
            f"{ratio['max']:.2f}", f"{document['marks'][work]:.1f}",
        )
        for work in document["ratios"]
        for server, ratios in {
            **document["ratios_by_server"], "meshmint-sqlite to unary": document["ratios_to_unary"]
        }.items()
        if (ratio := ratios.get(work))
    ]  # fmt: skip


def _top_rows(document: dict[str, Any]) -> Rows:
    return [
        (
            _spell(work), in_flight, _NAMES[server], f"{found['rate']['median']:,.0f}",
            f"{found['rate']['min']:,.0f}", f"{found['rate']['max']:,.0f}", *_costs(found),
        )
        for work, pressures in document["top_rate"].items()
        for in_flight, servers in pressures.items()
        for server, found in sorted(servers.items())
    ]  # fmt: skip


def _stream_rows(document: dict[str, Any]) -> Rows:
    return [
        (
            _spell(work), how, f"{found['rate']['median']:,.0f}", f"{found['rate']['min']:,.0f}",
            f"{found['rate']['max']:,.0f}", *_costs(found),
        )
        for work, hows in document["streams"].items()
        for how, found in sorted(hows.items())
    ]  # fmt: skip


def _half_rows(document: dict[str, Any]) -> Rows:
    return [
        (
            _spell(work), _NAMES[server], f"{servers['asked_for']:,.0f}",
            f"{found['rate']['median']:,.0f}", *_costs(found),
        )
        for work, servers in document["half_rate"].items()
        for server, found in sorted(servers.items())
        if server in _NAMES
    ]  # fmt: skip


_FLOORS: Final = {
    "rpc": "an RPC alone",
    "issue": "with a key pair, a signature in SoftHSM, its verification",
    "sign": "with a CSR's check, a signature in SoftHSM, its verification",
}


def _floor_rows(document: dict[str, Any]) -> Rows:
    return [
        (
            _FLOORS[kind], f"{found['rate']['median']:,.0f}", f"{found['rate']['min']:,.0f}",
            f"{found['rate']['max']:,.0f}", *_costs(found),
        )
        for kind, found in document["floor"].items()
    ]  # fmt: skip


def _floor_words(document: dict[str, Any]) -> dict[str, str]:
    """How much faster than OpenBao's best a service could be that did nothing else."""
    rates = {kind: found["rate"]["median"] for kind, found in document["floor"].items()}
    words = {f"floor_{kind}": f"{rate:,.0f}" for kind, rate in rates.items()}
    for kind in ("issue", "sign"):
        for how in ("recorded", "no_store"):
            peer = max(
                servers["openbao"]["rate"]["median"]
                for servers in document["top_rate"][f"{kind}_{how}"].values()
            )
            words[f"floor_{kind}_{how}"] = f"{rates[kind] / peer:.2f}"
    return words


def _costs(found: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{found['p50_ms']:,.2f}",
        f"{found['p99_ms']:,.2f}",
        f"{found['cpu_seconds_per_1000']:.2f}",
    )


def _spell(work: str) -> str:
    operation, _, kind = work.partition("_")
    return f"{operation.capitalize()}, {kind}"


def _verdict(document: dict[str, Any]) -> str:
    """One line for each mark, reached or missed, and what the reader must know of the machine."""
    lines = []
    if document["machine"]["others_share_of_cpu"] > _QUIET:
        lines.append(
            "**The machine was not quiet.** Rates are too low and latencies too high, now for one"
            " server and then for another; CPU seconds compare better than ratios do.\n"
        )
    for work, ratio in document["ratios"].items():
        mark = document["marks"][work]
        reached = "reached" if ratio >= mark else "**missed**"
        to_what = "our own unary rate" if work in document["ratios_to_unary"] else "OpenBao's rate"
        lines.append(
            f"- {_spell(work)}: {ratio:.2f} times {to_what}; the mark is {mark:g}, {reached}."
        )
    for work, servers in document["half_rate"].items():
        ours, theirs = servers["meshmint-sqlite"], servers["openbao"]
        below = "below" if ours["p99_ms"] < theirs["p99_ms"] else "**not below**"
        lines.append(
            f"- {_spell(work)} at half of the best rate: p99 {ours['p99_ms']:,.1f} ms, {below}"
            f" OpenBao's {theirs['p99_ms']:,.1f} ms"
            + _shortfall(theirs["rate"]["median"], servers["asked_for"])
            + "."
        )
    return "\n".join(lines)


def _shortfall(rate: float, asked_for: float) -> str:
    """Says so if the server did not keep up: its latency is then that of a queue."""
    return "" if rate > 0.95 * asked_for else f" (which kept up with {rate:,.0f}/s only)"
