"""Faults by name: what goes wrong with a request, and for which requests; data, no behaviour.

A rule says how often: with a probability, or for the next n requests. The first rule that applies
to a request decides.
"""

from __future__ import annotations

import random
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

FaultName = Literal[
    "rate_limited",
    "spend_limit",
    "server_error",
    "overloaded",
    "unavailable",
    "too_long",
    "bad_parameter",
    "reset",
    "refused_stream",
    "goaway",
    "silent",
    "late_first_token",
    "cut",
    "disconnect",
    "stall",
    "malformed",
    "error_event",
    "no_end",
    "filtered",
    "invented_evidence",
    "broken_json",
]
FAULTS: Final[dict[FaultName, str]] = {
    "rate_limited": "429 with retry-after",
    "spend_limit": "429 without retry-after: the account's spending cap",
    "server_error": "500",
    "overloaded": "529; of OpenAI, 503",
    "unavailable": "503 with a body that is not JSON, as from a proxy in between",
    "too_long": "400: the prompt is too long",
    "bad_parameter": "400: a parameter is refused",
    "reset": "the TCP connection is reset, with every stream on it",
    "refused_stream": "RST_STREAM(REFUSED_STREAM): surely not processed",
    "goaway": "GOAWAY that covers this request; no new streams on the connection",
    "silent": "nothing ever comes, not even headers",
    "late_first_token": "headers and pings in time, the first token after 20 s",
    "cut": "RST_STREAM(INTERNAL_ERROR) in the middle of the answer",
    "disconnect": "the TCP connection is reset in the middle of the answer",
    "stall": "nothing more after the middle of the answer",
    "malformed": "an event in the middle of the answer that is not JSON",
    "error_event": "an `error` event in the middle of a 200",
    "no_end": "the answer ends without what says that it is whole",
    "filtered": "the answer stops in the middle: `refusal`, `content_filter`",
    "invented_evidence": "a grade whose quotations are not in the essay",
    "broken_json": "a grade that is not JSON",
}
assert set(FAULTS) == set(get_args(FaultName))

LATE_S: Final = 20.0
RETRY_AFTER_S: Final = 5


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a fault happens."""

    probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    next: Annotated[int, Meta(ge=0)] = 0
    """Requests still to be hit, whatever the probability."""
    only: Literal["any", "feedback", "judge"] = "any"
    """`judge`: requests with a JSON schema; `feedback`: the others."""


class Faults:
    """The rules in force. The same seed and the same order of requests give the same faults."""

    def __init__(self, rules: dict[FaultName, Rule] | None = None) -> None:
        self._rules: dict[FaultName, Rule] = dict(rules or {})
        self.injected: dict[FaultName, int] = {}
        """How many requests each fault has hit."""

    def replace(self, rules: dict[FaultName, Rule]) -> None:
        """Replace all rules."""
        self._rules = dict(rules)

    def draw(self, kind: Literal["feedback", "judge"], rng: random.Random) -> FaultName | None:
        """The fault of the next request, if any."""
        for name, rule in self._rules.items():
            if rule.only not in ("any", kind):
                continue
            if rule.next > 0:
                self._rules[name] = msgspec.structs.replace(rule, next=rule.next - 1)
            elif not (rule.probability and rng.random() < rule.probability):
                continue
            self.injected[name] = self.injected.get(name, 0) + 1
            return name
        return None


def rules_from_json(value: object) -> dict[FaultName, Rule]:
    """Rules from `{name: probability | {"next": n} | {"probability": p, "only": …}}`.

    Raises:
      msgspec.ValidationError: an unknown name, or a value of the wrong type or range.
    """
    given = msgspec.convert(value, dict[FaultName, float | Rule])
    return {
        name: rule if isinstance(rule, Rule) else msgspec.convert({"probability": rule}, Rule)
        for name, rule in given.items()
    }


def rule_from_text(text: str) -> tuple[FaultName, Rule]:
    """A rule from `name=0.1` (probability) or `name:3` (the next three requests).

    Raises:
      msgspec.ValidationError: it is neither, or the name is unknown.
    """
    name, sign, amount = text.partition("=")
    field = "probability"
    if not sign:
        name, sign, amount = text.partition(":")
        field = "next"
    if not sign:
        raise msgspec.ValidationError(f"{text!r} is neither name=probability nor name:count")
    try:
        known = msgspec.convert(name, FaultName)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"there is no fault {name!r}") from error
    return known, msgspec.convert({field: amount}, Rule, strict=False)
