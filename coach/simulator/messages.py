"""The shapes of Anthropic's Messages API: what a request must look like, what is answered; pure.

Source: Anthropic API reference, "Messages", "Streaming messages", "Errors", "Structured outputs".
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import attrs
import msgspec
from msgspec import Meta

from .cache import CacheBlock

BREAKPOINTS_MAX: Final = 4
CHARACTERS_PER_TOKEN: Final = 4.0
MODEL_CHARACTERS_MAX: Final = 256

Lifetime = Literal["5m", "1h"]
T = TypeVar("T")


class CacheControl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A breakpoint."""

    type: Literal["ephemeral"]
    ttl: Lifetime = "5m"


class TextBlock(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Text, the only kind of block that is understood here."""

    text: Annotated[str, Meta(min_length=1)]
    cache_control: CacheControl | None = None


class InputMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of the conversation."""

    role: Literal["user", "assistant"]
    content: str | list[TextBlock]


class JsonFormat(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """The answer is to be JSON by this schema."""

    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to answer."""

    format: JsonFormat | None = None
    effort: str | None = None


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/messages`; a field the real API does not know is refused, as there."""

    model: Annotated[str, Meta(min_length=1, max_length=MODEL_CHARACTERS_MAX)]
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    system: str | list[TextBlock] = ""
    stream: bool = False
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    metadata: dict[str, Any] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    service_tier: str | None = None
    thinking: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    cache_control: CacheControl | None = None


class CountBody(msgspec.Struct, frozen=True):
    """`POST /v1/messages/count_tokens`; the other fields of a request may be there too."""

    model: Annotated[str, Meta(min_length=1, max_length=MODEL_CHARACTERS_MAX)]
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: str | list[TextBlock] = ""


@attrs.frozen
class Request:
    """A request that is well formed."""

    model: str
    blocks: tuple[CacheBlock, ...]
    """The prompt in order: system, then messages."""
    system: str
    """Text of the system prompt."""
    last_user: str
    """Text of the last user message."""
    output_tokens_max: int
    stream: bool
    schema: dict[str, Any] | None

    @property
    def input_tokens(self) -> int:
        """The whole prompt, cached or not."""
        return sum(block.tokens for block in self.blocks)


@attrs.frozen
class Usage:
    """Tokens of one answer; `input` neither read from nor written to the cache."""

    input: int
    cache_write: int
    cache_write_hour: int
    cache_read: int

    def as_json(self, output: int) -> dict[str, object]:
        """The `usage` of a message."""
        return {
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.cache_write,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_write - self.cache_write_hour,
                "ephemeral_1h_input_tokens": self.cache_write_hour,
            },
            "output_tokens": output,
            "service_tier": "standard",
        }


class ApiError(Exception):
    """A request is refused; leaves as a JSON body."""

    def __init__(
        self, status: int, kind: str, message: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_s = retry_after_s

    def body(self, request_id: str) -> bytes:
        """What the client gets."""
        return msgspec.json.encode(
            {
                "type": "error",
                "error": {"type": self.kind, "message": str(self)},
                "request_id": request_id,
            }
        )


def invalid(message: str, status: int = 400) -> ApiError:
    """The client's mistake."""
    return ApiError(status, "invalid_request_error", message)


_UNSUPPORTED: Final = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
}
_body = msgspec.json.Decoder(Body)
_count = msgspec.json.Decoder(CountBody)


def tokens_of(text: str) -> int:
    """How many tokens a text has: about one for four characters, at least one."""
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def parse_request(body: bytes) -> Request:
    """Read the body of `POST /v1/messages`.

    Raises:
      ApiError: 400, saying what is wrong and where.
    """
    parsed = _decode(_body, body)
    if parsed.messages[-1].role != "user":
        raise invalid(
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    blocks = _blocks(parsed.system, parsed.messages)
    if parsed.cache_control is not None and blocks:
        hour = parsed.cache_control.ttl == "1h"
        blocks[-1] = attrs.evolve(blocks[-1], breakpoint=True, hour=hour)
    breakpoints = sum(block.breakpoint for block in blocks)
    if breakpoints > BREAKPOINTS_MAX:
        raise invalid(
            f"A maximum of {BREAKPOINTS_MAX} blocks with cache_control may be provided. "
            f"Found {breakpoints}."
        )
    form = parsed.output_config.format if parsed.output_config else None
    form = form or parsed.output_format
    if form is not None:
        check_schema(form.schema)
    return Request(
        model=parsed.model,
        blocks=tuple(blocks),
        system=_text(parsed.system),
        last_user=_text(parsed.messages[-1].content),
        output_tokens_max=parsed.max_tokens,
        stream=parsed.stream,
        schema=form.schema if form is not None else None,
    )


def count_tokens(body: bytes) -> int:
    """Answer `POST /v1/messages/count_tokens`.

    Raises:
      ApiError: 400.
    """
    parsed = _decode(_count, body)
    return sum(block.tokens for block in _blocks(parsed.system, parsed.messages))


def check_schema(schema: object, depth: int = 0) -> None:
    """Refuse what the real structured outputs refuse.

    Raises:
      ApiError: 400, as the real API words it.
    """
    if not isinstance(schema, dict) or depth > 16:
        raise invalid("output_config.format.schema: not a JSON schema")
    kind = schema.get("type")
    if kind == "object" and schema.get("additionalProperties") is not False:
        raise invalid(
            "output_config.format.schema: For 'object' type, 'additionalProperties' must be "
            "explicitly set to false"
        )
    refused = [name for name in _UNSUPPORTED.get(str(kind), ()) if name in schema]
    if refused:
        raise invalid(
            f"output_config.format.schema: For '{kind}' type, "
            + (
                f"property '{refused[0]}' is not supported"
                if len(refused) == 1
                else f"properties {', '.join(refused)} are not supported"
            )
        )
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise invalid("output_config.format.schema.properties: Input should be an object")
    for part in properties.values():
        check_schema(part, depth + 1)
    if "items" in schema:
        check_schema(schema["items"], depth + 1)


def event(name: str, data: object) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


_DELTA_HEAD: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":'
)
_DELTA_TAIL: Final = b"}}\n\n"
PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'
MESSAGE_STOP: Final = event("message_stop", {"type": "message_stop"})
CONTENT_BLOCK_STOP: Final = event("content_block_stop", {"type": "content_block_stop", "index": 0})
CONTENT_BLOCK_START: Final = event(
    "content_block_start",
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
)
OVERLOADED_EVENT: Final = event(
    "error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
)
MALFORMED_EVENT: Final = _DELTA_HEAD + b'"and th\n\n'


def delta_event(text: str) -> bytes:
    """A `content_block_delta` with this text."""
    return _DELTA_HEAD + msgspec.json.encode(text) + _DELTA_TAIL


def stamped(delta: bytes, now: float) -> bytes:
    """A delta event whose text begins with `@` and a time in seconds, then a space.

    CLOCK_MONOTONIC is the same for all processes of a host: whoever receives the text there can
    tell how long it was under way.
    """
    at = len(_DELTA_HEAD) + 1
    return b"%b@%.6f %b" % (delta[:at], now, delta[at:])


def message_start_event(message_id: str, model: str, usage: Usage) -> bytes:
    """The first event of a stream."""
    message = message_json(message_id, model, "", None, usage, output=1)
    message["content"] = []
    return event("message_start", {"type": "message_start", "message": message})


def message_delta_event(stop_reason: str, usage: Usage, output: int) -> bytes:
    """The event that says why the answer ends and what it used, cumulatively."""
    return event(
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": None},
            "usage": {
                "input_tokens": usage.input,
                "cache_creation_input_tokens": usage.cache_write,
                "cache_read_input_tokens": usage.cache_read,
                "output_tokens": output,
            },
        },
    )


def message_json(
    message_id: str, model: str, text: str, stop_reason: str | None, usage: Usage, *, output: int
) -> dict[str, object]:
    """A whole message, as a request without `stream` is answered."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage.as_json(output),
    }


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error


def _blocks(system: str | list[TextBlock], messages: list[InputMessage]) -> list[CacheBlock]:
    blocks = _blocks_of("system", system)
    for message in messages:
        blocks += _blocks_of(message.role, message.content)
    return blocks


def _blocks_of(role: str, content: str | list[TextBlock]) -> list[CacheBlock]:
    if isinstance(content, str):
        return [CacheBlock(f"{role}\n{content}", tokens_of(content))] if content else []
    return [
        CacheBlock(
            f"{role}\n{block.text}",
            tokens_of(block.text),
            breakpoint=block.cache_control is not None,
            hour=block.cache_control is not None and block.cache_control.ttl == "1h",
        )
        for block in content
    ]


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
