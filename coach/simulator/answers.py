"""What a request is answered with, event by event, and where a fault bends it; pure.

The pieces are encoded once, before the first is sent: sending one costs no encoding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import attrs

from .dialect import Request, Shape, StopReason, tokens_of
from .faults import FaultName
from .feedback import feedback
from .grades import grade
from .numbering import numbered

MIDDLE: Final = 0.5
"""The share of an answer after which faults of the middle happen."""

Break = Literal["cut", "disconnect", "stall", "error_event"]
_PIECE = re.compile(r"\s*\S{1,12}")


@attrs.frozen
class Text:
    """The model's answer, in pieces of about one word."""

    pieces: tuple[str, ...]
    tokens: tuple[int, ...]
    """Output tokens of each piece."""


NOTHING: Final = Text((), ())


@attrs.frozen
class Plan:
    """A streamed answer."""

    shape: Shape
    deltas: Sequence[bytes]
    tokens: Sequence[int]
    epilogue: bytes
    """What follows the last delta; empty: nothing does."""
    epilogue_events: int
    ending: Break | None
    """What happens after the last delta in place of an orderly end."""


def compose(request: Request, fault: FaultName | None, *, gullible: bool = False) -> Text:
    """Write the answer to a request; the same prompt gets the same answer."""
    if request.schema is None:
        return _pieces(feedback(request.conversation, request.system))
    text = grade(
        request.last_user,
        request.schema,
        invent=fault == "invented_evidence",
        gullible=gullible,
    )
    return _pieces(text[: len(text) * 2 // 3] if fault == "broken_json" else text)


def lengthened(text: Text, events_min: int) -> Text:
    """The answer, again and again, until it has that many pieces."""
    times = max(1, -(-events_min // max(1, len(text.pieces))))
    return Text(text.pieces * times, text.tokens * times)


def limited(text: Text, output_tokens_max: int) -> tuple[Text, StopReason]:
    """The answer cut to a number of tokens, and its stop reason."""
    total = 0
    for index, tokens in enumerate(text.tokens):
        total += tokens
        if total > output_tokens_max:
            return Text(text.pieces[:index], text.tokens[:index]), "max_tokens"
    return text, "end_turn"


def plan_stream(
    request: Request,
    text: Text,
    shape: Shape,
    fault: FaultName | None,
    *,
    number_as: str | None = None,
) -> Plan:
    """Lay out a streamed answer, its deltas numbered as those of the answer `number_as`."""
    text, stop_reason = limited(text, request.output_tokens_max)
    pieces = text.pieces if number_as is None else numbered(text.pieces, number_as)
    deltas, tokens = list(shape.deltas(pieces)), list(text.tokens)
    middle = int(len(deltas) * MIDDLE)
    ending: Break | None = None
    if fault in ("cut", "disconnect", "stall", "error_event"):
        ending = fault
    if ending is not None or fault == "filtered":
        del deltas[middle:], tokens[middle:]
    if fault == "filtered":
        stop_reason = "refusal"
    if fault == "malformed":
        deltas.insert(middle, shape.malformed_event)
        tokens.insert(middle, 1)
    epilogue, events = b"", 0
    if ending == "error_event":
        epilogue, events = shape.error_event, 1
    elif ending is None and fault != "no_end":
        epilogue, events = shape.epilogue(stop_reason, max(1, sum(tokens)))
    return Plan(
        shape=shape,
        deltas=deltas,
        tokens=tokens,
        epilogue=epilogue,
        epilogue_events=events,
        ending=ending,
    )


@lru_cache(maxsize=64)
def _pieces(text: str) -> Text:
    """Cut a text as a tokenizer would, roughly: a word with the space before it, at most 12.

    Memory: the last 64 answers are kept, some 20 KB each.
    """
    pieces, at = [], 0
    for found in _PIECE.finditer(text):
        pieces.append(found.group())
        at = found.end()
    if at < len(text):
        pieces.append(text[at:])
    return Text(
        tuple(pieces),
        tuple(tokens_of(piece) for piece in pieces),
    )
