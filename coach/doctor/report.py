"""What the doctor found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import attrs
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Status = Literal["ok", "warn", "fail"]

STYLES: Final[dict[Status, str]] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@attrs.frozen
class Finding:
    """One thing that was looked at."""

    area: str
    """machine, settings, redis, `provider <name>`, or writers."""
    name: str
    status: Status
    found: str
    """What is there, in a few words."""
    fix: str = ""
    """What to do about it; "" where nothing has to be done."""


def print_report(findings: Sequence[Finding], console: Console) -> None:
    """A line for each, and what to do under those that need it."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    area = ""
    for each in findings:
        style = STYLES[each.status]
        shown = "" if each.area == area else each.area
        area = each.area
        table.add_row(shown, f"[{style}]{each.status}[/]", each.name, escape(each.found))
        if each.fix:
            table.add_row("", "", "", f"[{style}]→[/] {escape(each.fix)}")
    console.print(table)
    counts = {status: sum(each.status == status for each in findings) for status in STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), style="dim")


def as_json(findings: Sequence[Finding]) -> str:
    """A list of objects with the fields of `Finding`."""
    return msgspec.json.format(msgspec.json.encode(findings), indent=2).decode()
