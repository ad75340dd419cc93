"""What is asked of a model, what it answers, and how it fails: records without behaviour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

import attrs

from ..errors import ProviderUnavailable

BYTES_PER_TOKEN: Final = 3.5
"""Of UTF-8. English prose has about 4.4; too many tokens is the safe side here."""
TOKENS_AROUND: Final = 16
"""Roles and delimiters that providers count beside the text."""

Role = Literal["user", "assistant"]
ErrorKind = Literal[
    "rate_limited",
    "accelerated",
    "overloaded",
    "spend_cap",
    "server_error",
    "unreachable",
    "cut",
    "stalled",
    "malformed",
    "refused",
    "filtered",
    "too_long",
    "auth",
]


@attrs.frozen
class Usage:
    """Tokens of one answer, as the provider counted them; no token is in two fields."""

    input: int
    """Neither read from nor written to the provider's prompt cache."""
    cache_write: int
    cache_read: int
    output: int


@attrs.frozen
class Block:
    """A piece of a prompt."""

    text: str
    """One character or more: providers refuse empty blocks."""
    cache: bool = False
    """A cache breakpoint follows: the prompt up to here will be asked again."""


@attrs.frozen
class Message:
    """One turn of a conversation."""

    role: Role
    blocks: tuple[Block, ...]


@attrs.frozen(kw_only=True)
class Prompt:
    """Everything that decides an answer but the model. The last message is the user's."""

    system: tuple[Block, ...]
    messages: tuple[Message, ...]
    output_tokens_max: int
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer must follow; None: free text."""
    user_id: str | None = None
    """Opaque name of the student, for the provider's abuse detection; never a real name."""

    def size(self) -> int:
        """Bytes of all text in UTF-8, for estimates; the schema is part of what is read."""
        blocks = [*self.system, *(block for message in self.messages for block in message.blocks)]
        schema = len(str(self.schema)) if self.schema is not None else 0
        return sum(size_of(block.text) for block in blocks) + schema


@attrs.frozen(kw_only=True)
class Completion:
    """A whole answer. Cut-off streams never become one; `max_tokens` is a provider's own end."""

    text: str
    usage: Usage
    stop_reason: str
    """In Anthropic's words whoever answered: `end_turn`, `max_tokens`, `stop_sequence`, …"""
    model: str
    """The model that answered, which may differ in detail from the one asked for."""


class Sink(Protocol):
    """Who gets an answer while it comes.

    Both are called from the reader task of the provider's connection, which other answers share:
    they must neither block nor raise. One that raises loses its own stream and no other.
    """

    def on_start(self, model: str, usage: Usage) -> None:
        """The answer begins.

        `usage` is what has been counted so far; where a provider counts at the end only, its input
        is an estimate, and the output 0.
        """

    def on_delta(self, text: str) -> None:
        """The next text, one character or more: everything that came in one wake-up."""


class ProviderError(ProviderUnavailable):
    """A provider did not give a whole answer; `kind` says what to do about it.

    Args:
      message: one sentence for the operator's log; it may reach the student.
      kind: `rate_limited` (a quota), `accelerated` (traffic that grows too fast for them),
        `overloaded` (their load), `server_error`, `unreachable` (no connection, or it was lost
        before the answer began): elsewhere, or later. `spend_cap` (the money is spent):
        elsewhere, until the operator acts. `cut` (ended without its end marker),
        `stalled` (silence), `malformed`: begin again. `refused` (bad request), `too_long`,
        `filtered`, `auth`: the same request will fail again.
      provider: name of the endpoint.
      retry_after_s: seconds after which the provider wants to be asked again, where it says so.
      status: the HTTP status where that is the reason.
      tokens_shown: the sink has got text.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind,
        provider: str,
        retry_after_s: float | None = None,
        status: int | None = None,
        tokens_shown: bool = False,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.kind = kind
        self.provider = provider
        self.status = status
        self.tokens_shown = tokens_shown


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8; a lone half of a pair counts as what replaces it."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def estimate_tokens(size: int) -> int:
    """Upper estimate of the tokens of a text of any model, where nothing was learnt of it.

    Args:
      size: `Prompt.size()`, or `size_of` a text; 0 or more.
    """
    return math.ceil(size / BYTES_PER_TOKEN) + TOKENS_AROUND
