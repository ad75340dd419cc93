"""The essays that simulated students write: text files beside this module.

Format of `essays/*.txt`, UTF-8: the first line is `# title | age | level | kind`; everything after
it is the essay, paragraphs separated by a blank line. `age` is the student's in years, `level` one
of `LEVELS` (how well it is written for that age), `kind` free text (argument, narrative, letter…).
The weak ones carry the spelling and the structure of real classrooms; do not correct them.
"""

from __future__ import annotations

from importlib import resources
from typing import Final, Literal, get_args

import msgspec

Level = Literal["weak", "developing", "secure", "strong"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From the worst to the best."""


class Essay(msgspec.Struct, frozen=True):
    """One student's essay."""

    name: str
    """File name without its ending; unique."""
    title: str
    age: int
    level: Level
    kind: str
    text: str


def load_essays() -> tuple[Essay, ...]:
    """Read every essay of the package, in the order of their names. Reads files; never empty.

    Raises:
      ValueError: a file's first line is not of the form above; the message names the file.
    """
    folder = resources.files(__package__) / "essays"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".txt")),
        key=lambda file: file.name,
    )
    return tuple(
        parse_essay(file.name.removesuffix(".txt"), file.read_text(encoding="utf-8"))
        for file in files
    )


def parse_essay(name: str, content: str) -> Essay:
    """Split a file's content into its headline and its text.

    Raises:
      ValueError: the first line is not `# title | age | level | kind`, or no text follows.
    """
    head, _, body = content.partition("\n")
    fields = [field.strip() for field in head.removeprefix("# ").split("|")]
    if not head.startswith("# ") or len(fields) != 4 or not body.strip():
        raise ValueError(f"essay {name}: expected '# title | age | level | kind' and a text")
    title, age, level, kind = fields
    if level not in LEVELS or not age.isdigit():
        raise ValueError(f"essay {name}: age must be a number, level one of {', '.join(LEVELS)}")
    paragraphs = "\n\n".join(line.strip() for line in body.splitlines() if line.strip())
    return Essay(name, title, int(age), level, kind, paragraphs)
