"""docs/protocol.md and the wire module say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from coach import config
from coach.errors import Code
from coach.session import wire
from coach.session.essays import SUBMISSIONS_MAX
from coach.session.session import TURNS_MAX
from coach.session.writer import PIECES_MAX

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> dict[str, str]:
    """Rows of the table below the heading: first cell without its quotes -> the row."""
    text = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return {
        match[1]: match[0] for match in re.finditer(r"^\| `?([\w]+)`? \|.*$", text, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("title", "union", "also"),
    [
        ("Client to server", wire.ClientMessage, ()),
        ("Server to client", wire.ServerMessage, (wire.Welcome,)),
    ],
)
def test_every_message_and_field_is_described(
    title: str, union: object, also: tuple[type[msgspec.Struct], ...]
) -> None:
    rows = section(title)
    rows.pop("type", None)
    types = {*get_args(union), *also}
    assert set(rows) == {str(kind.__struct_config__.tag) for kind in types}
    for kind in types:
        row = rows[str(kind.__struct_config__.tag)]
        for field in kind.__struct_fields__:
            if field != "seq" or kind is wire.Ack or kind is wire.Welcome:
                assert f"`{field}`" in row, (kind, field)


def test_every_error_code_is_described() -> None:
    assert set(section("Error codes")) - {"code"} == set(get_args(Code))


def test_the_limits_are_the_servers() -> None:
    page = PAGE.split("## Limits\n", 1)[1].split("\n## ", 1)[0]
    server = config.Server()
    for name in re.findall(r"`server\.(\w+)` \((\d+)\)", page):
        assert getattr(server, name[0]) == int(name[1])
    rows = dict(re.findall(r"^\| (.*?) \| (\d+)\b.*\|$", page, re.MULTILINE))
    assert rows == {
        "splices of an `edit`": str(wire.SPLICES_MAX),
        "turns of a session under way": str(TURNS_MAX),
        "submissions of a session under way": str(SUBMISSIONS_MAX),
        "`token`": str(wire.TOKEN_CHARS_MAX),
        "pieces of a message": str(PIECES_MAX),
    }


def test_every_close_code_is_described() -> None:
    room = Path(wire.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in room.glob("*.py"))
    used = set(re.findall(r"\b10(?:0[1-9]|1[0-5])\b", source))
    assert set(section("Close codes")) - {"code"} == used


def test_the_examples_are_messages() -> None:
    block = PAGE.split("```json\n", 1)[1].split("```", 1)[0]
    for line in block.strip().splitlines():
        wire.decode(line)
