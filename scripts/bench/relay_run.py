"""The relay benchmark's command line: which relays at which loads, in turns, and the tables."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import trio
from arguments import count
from relay_handshakes import handshakes, handshakes_markdown, handshakes_table
from relay_peers import PEERS, PeerMissing, Variant, prepare
from relay_stage import Plan, measure
from relay_tables import comparison, markdown, medians, single
from rich.console import Console, RenderableType

from coach.errors import ConfigurationError, first_error

MATRIX = ((100, 10.0), (300, 10.0), (600, 10.0), (200, 30.0))
TRIES = 3
HANDSHAKES = 1_000
WIDTH_OF_FILES = 160


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    variants, left_out = _prepared(options)
    for line in left_out:
        console.print(f"left out: {line}", style="yellow")
    if not variants:
        print("relay: no relay is left to measure", file=sys.stderr)
        return 2
    if options.handshakes:
        rows, failures = _handshakes(options, variants, console)
        table: RenderableType = handshakes_table(rows)
        text = handshakes_markdown(rows)
    else:
        rows, failures = _matrix(options, variants, console)
        alone = len(rows) == 1 and "failed" not in rows[0]
        table = single(rows[0]) if alone else comparison(rows)
        text = markdown(rows)
    console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(text)
    for line in failures:
        print(f"relay: {line}", file=sys.stderr)
    if not any(row.get("cpu_us_per_event") or row.get("handshakes") for row in rows):
        return 2
    return 1 if failures or any(row.get("errors") for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relay", description="CPU and latency of relaying provider events."
    )
    add = parser.add_argument
    add(
        "--peers",
        type=_peers,
        default=("coach",),
        metavar="LIST",
        help=f"relays to measure, of {','.join(PEERS)} (coach)",
    )
    add("--clients", type=count, default=300, metavar="N", help="open turns (300)")
    add("--rate", type=_positive, default=10.0, metavar="N", help="events a second of each (10)")
    add("--seconds", type=_positive, default=15.0, metavar="S", help="length of the window (15)")
    add("--ramp", type=_positive, default=5.0, metavar="S", help="clients come over S seconds (5)")
    add("--ttft-ms", type=_positive, default=200.0, metavar="MS", help="the simulator's (200)")
    add("--load-processes", type=count, metavar="N", help="one for every 300 clients")
    add(
        "--delta-window",
        type=_windows,
        default=(None,),
        metavar="S[,S]",
        help="coach's server.delta_window_s; several: one line of the table each (its default)",
    )
    loads = ", ".join(f"{clients} × {rate:g}/s" for clients, rate in MATRIX)
    add("--matrix", action="store_true", help=f"{loads} instead of --clients and --rate")
    add("--repeat", type=count, metavar="N", help="runs of each; medians count (1; matrix: 3)")
    add(
        "--handshakes",
        action="store_true",
        help="measure opening and idling WebSockets instead, also of trio-websocket alone",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    add("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    return parser


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEERS)}")
    return names


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def _windows(text: str) -> tuple[float, ...]:
    windows = tuple(float(part) for part in text.split(","))
    if not all(0 <= window <= 1 for window in windows):
        raise argparse.ArgumentTypeError("between 0 and 1 second")
    return windows


def _prepared(options: argparse.Namespace) -> tuple[list[Variant], list[str]]:
    """The lines of the table, and what cannot be measured here."""
    variants, left_out = [], []
    for peer in options.peers:
        try:
            prepare(peer)
        except PeerMissing as missing:
            left_out.append(f"{peer}: {missing}")
        else:
            variants += _variants(peer, options)
    return variants, left_out


def _variants(peer: str, options: argparse.Namespace) -> list[Variant]:
    if peer != "coach" or options.handshakes:
        return [Variant(name=peer, peer=peer)]
    return [
        Variant(
            name="coach" if window is None else f"coach, window {window * 1000:g} ms",
            peer=peer,
            delta_window_s=window,
        )
        for window in options.delta_window
    ]


def _matrix(
    options: argparse.Namespace, variants: list[Variant], console: Console
) -> tuple[list[dict[str, Any]], list[str]]:
    """All loads; at each, the relays in turns (A B C A B C), since the machine is not alone."""
    loads = MATRIX if options.matrix else ((options.clients, options.rate),)
    repeat = options.repeat or (TRIES if options.matrix else 1)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for clients, rate in loads:
        plan = Plan(
            clients=clients,
            events_per_s=rate,
            seconds=options.seconds,
            ramp_s=options.ramp,
            ttft_ms=options.ttft_ms,
            load_processes=options.load_processes,
        )
        runs: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
        complaints: dict[str, str] = {}
        for number in range(repeat):
            for variant in variants:
                said = f"{variant.name}: {clients} clients × {rate:g}/s"
                said += f", run {number + 1} of {repeat} …" if repeat > 1 else " …"
                console.print(said, style="dim")
                figures, complaint = _tried(measure, plan, variant)
                if figures is not None:
                    runs[variant.name].append(figures)
                else:
                    complaints[variant.name] = complaint
                    failures.append(f"{variant.name}: {clients} × {rate:g}/s: {complaint}")
        rows += [
            _row(plan, variant, runs[variant.name], complaints.get(variant.name))
            for variant in variants
        ]
    return rows, failures


def _row(
    plan: Plan, variant: Variant, runs: list[dict[str, Any]], complaint: str | None
) -> dict[str, Any]:
    row: dict[str, Any] = (
        medians(runs)
        if runs
        else {
            "relay": variant.name,
            "clients": plan.clients,
            "rate": plan.events_per_s,
            "cpu_us_per_event": {},
        }
    )
    if complaint is not None:
        row["failed"] = "a run failed" if runs else "failed"
    return row


def _handshakes(
    options: argparse.Namespace, variants: list[Variant], console: Console
) -> tuple[list[dict[str, Any]], list[str]]:
    variants = [*variants, Variant(name="trio-websocket alone", peer="trio-websocket")]
    repeat = options.repeat or TRIES
    runs: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    failures = []
    for number in range(repeat):
        for variant in variants:
            console.print(
                f"{variant.name}: handshakes, run {number + 1} of {repeat} …", style="dim"
            )
            figures, complaint = _tried(handshakes, variant, HANDSHAKES)
            if figures is not None:
                runs[variant.name].append(figures)
            else:
                failures.append(f"{variant.name}: {complaint}")
    return [medians(found) for found in runs.values() if found], failures


def _tried(
    measured: Callable[..., Coroutine[Any, Any, dict[str, Any]]], *arguments: object
) -> tuple[dict[str, Any] | None, str]:
    """The figures, or why there are none, in one line."""
    try:
        return trio.run(measured, *arguments), ""
    except* trio.TooSlowError:
        complaint = "the clients did not come up in time"
    except* ConfigurationError as group:
        complaint = str(first_error(group))
    return None, complaint
