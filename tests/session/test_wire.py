"""Messages: what is understood, what is refused, what stands on the wire."""

from __future__ import annotations

from contextlib import suppress
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.errors import BadMessage, CoachError, Code, Overloaded, RateLimited
from coach.session import wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
TAGS = [str(kind.__struct_config__.tag) for kind in get_args(wire.ClientMessage)]


@given(st.text() | JSON.map(lambda value: msgspec.json.encode(value).decode()))
def test_any_text_is_a_message_or_a_bad_one(text: str) -> None:
    with suppress(BadMessage):
        wire.decode(text)


@given(
    st.sampled_from(TAGS),
    st.dictionaries(
        st.sampled_from(["token", "draft", "rev", "splices", "text", "request", "focus", "seq"]),
        JSON,
    ),
)
def test_any_fields_are_a_message_or_a_bad_one(tag: str, fields: dict[str, object]) -> None:
    with suppress(BadMessage):
        wire.decode(msgspec.json.encode({"type": tag, **fields}).decode())


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_nesting_without_end_is_a_bad_message(opening: str) -> None:
    with pytest.raises(BadMessage):
        wire.decode('{"type": "ack", "seq": 1, "x": ' + opening * 100_000)


def test_unknown_fields_are_ignored() -> None:
    assert wire.decode('{"seq": 7, "colour": {"a": [1]}, "type": "ack"}') == wire.Ack(seq=7)


@pytest.mark.parametrize("name", ["", "{x}", "a b", "a\n", "é", "-a", "x" * 65])
def test_identifiers_that_would_not_fit_a_redis_key_are_refused(name: str) -> None:
    with pytest.raises(BadMessage):
        wire.decode(msgspec.json.encode({"type": "cancel", "request": name}).decode())


@pytest.mark.parametrize(
    "message",
    [
        {"type": "hello", "token": "x" * (wire.TOKEN_CHARS_MAX + 1)},
        {"type": "edit", "draft": "d", "rev": 1, "splices": [[0, 0, ""]] * (wire.SPLICES_MAX + 1)},
        {"type": "edit", "draft": "d", "rev": -1, "splices": []},
        {"type": "edit", "draft": "d", "rev": 1, "splices": [[-1, 0, ""]]},
        {"type": "edit", "draft": "d", "rev": 1, "splices": [[0, 1.5, ""]]},
        {"type": "feedback", "request": "r", "draft": "d", "focus": "x" * 501},
        {"type": "ack", "seq": 2**40},
    ],
    ids=["token", "splices", "rev", "at", "delete", "focus", "seq"],
)
def test_fields_have_limits(message: dict[str, object]) -> None:
    with pytest.raises(BadMessage):
        wire.decode(msgspec.json.encode(message).decode())


@pytest.mark.parametrize("half", ['"\\ud83d"', '"\\udc00"', '"\\udc00\\ud83d"'])
def test_half_a_surrogate_pair_is_not_text(half: str) -> None:
    with pytest.raises(BadMessage):
        wire.decode('{"type": "draft", "draft": "d", "rev": 1, "text": ' + half + "}")


@given(st.text(), st.integers(1, 2**31))
def test_a_delta_says_what_it_was_given(text: str, seq: int) -> None:
    data = wire.encode(wire.Delta(request="r", text=text, seq=seq))
    assert msgspec.json.decode(data) == {"type": "delta", "seq": seq, "request": "r", "text": text}


def test_fields_that_say_nothing_are_left_out() -> None:
    message = wire.error_message(Overloaded("full", retry_after_s=1.0001), request="r1")
    assert msgspec.json.decode(wire.encode(message)) == {
        "type": "error",
        "code": "overloaded",
        "message": "full",
        "request": "r1",
        "retry_after_ms": 1001,
    }
    assert wire.error_message(RateLimited("x", retry_after_s=None)).retry_after_ms is None


def test_every_error_has_a_code_of_the_protocol() -> None:
    for kind in every_subclass(CoachError):
        assert kind.code in get_args(Code)


def every_subclass(kind: type[CoachError]) -> set[type[CoachError]]:
    children = set(kind.__subclasses__())
    return children.union(*map(every_subclass, children)) if children else children
