"""Essays of the corpus, spoilt in ways that a reader would notice, and hostile texts."""

from __future__ import annotations

import random
import re

from coach.simulator.corpus import Essay, load_essays
from coach.simulator.essay import CHARACTERS_MAX

ESSAYS = load_essays()
BY_NAME = {essay.name: essay for essay in ESSAYS}


def of_level(*levels: str) -> list[Essay]:
    return [essay for essay in ESSAYS if essay.level in levels]


def cut(text: str, share: float) -> str:
    return text[: int(len(text) * share)]


def shuffled(text: str, seed: int = 1) -> str:
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


def misspelt(text: str) -> str:
    """What hurried students do to common words."""
    for right, wrong in (
        *(("because", "becuase"), ("their", "thier"), ("they", "thay"), ("with", "wiht")),
        *(("really", "realy"), ("people", "peple"), ("which", "wich"), ("when", "wen")),
        *(("would", "woud"), ("could", "coud"), ("every", "evry"), ("different", "diffrent")),
        *(("who", "hwwo"), ("the first", "teh first"), ("was", "wuz"), ("I ", "i ")),
    ):
        text = re.sub(rf"\b{right}", wrong, text)
    return text


def in_one_paragraph(text: str) -> str:
    return " ".join(text.split())


def hostile_texts() -> dict[str, str]:
    """Each as long as is ever measured, each aimed at something that could be slow."""
    rnd = random.Random(1)
    units = (
        *(" ", "a", "a ", "a. ", "a.", "a\n", "\n", ".", "1", "1 ", '"', '"a', "“a ", "a'", "a-"),
        *(
            "first ",
            "the the ",
            "should. ",
            "should. because 1. ",
            "untill. i thier. ",
            "q",
            "bcdf ",
        ),
        *("aaa ", "hour ", "in the ", "as a ", "[x] «y» ", "<essay>", "</essay>", "\u0301a", "🙂 "),
        *("\u2028a. ", "\ud800", "a\r\n", "should cat. dog. "),
    )
    texts = {repr(unit): unit * (CHARACTERS_MAX // len(unit)) for unit in units}
    texts["random"] = "".join(
        chr(rnd.choice([rnd.randrange(32, 127), rnd.randrange(0x2000, 0x2100), 10]))
        for _ in range(CHARACTERS_MAX)
    )
    return texts
