"""The shapes of Anthropic's Messages API: what a request must look like, what is answered; pure.

Source: Anthropic API reference, "Messages", "Streaming messages", "Errors", "Structured outputs".
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, final

import attrs
import msgspec
from msgspec import Meta

from .batches import MessageBatches
from .cache import LOOKBACK_BLOCKS, CacheBlock
from .dialect import (
    MODEL_CHARACTERS_MAX,
    ApiError,
    Request,
    StopReason,
    Usage,
    decode,
    tokens_of,
)
from .exchange import Headers
from .faults import RETRY_AFTER_S, FaultName
from .quota import QuotaState, Shortage

if TYPE_CHECKING:
    from .account import Account

BREAKPOINTS_MAX: Final = 4

Lifetime = Literal["5m", "1h"]


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


_REFUSALS: Final[dict[FaultName, tuple[int, str, str]]] = {
    "rate_limited": (
        429,
        "rate_limit_error",
        "This request would exceed your account's rate limit. Please try again later.",
    ),
    "spend_limit": (
        429,
        "rate_limit_error",
        "You have reached your specified API usage limits.",
    ),
    "server_error": (500, "api_error", "Internal server error"),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "bad_parameter": (400, "invalid_request_error", "metadata: Extra inputs are not permitted"),
}


@final
class Messages:
    """Anthropic's API; see `Dialect`."""

    path = "/v1/messages"
    pages: Mapping[str, Callable[[bytes], object]]
    id_prefix = "msg"
    request_id_header = b"request-id"
    counts_refused = False
    lookback_blocks = LOOKBACK_BLOCKS

    def __init__(self) -> None:
        self.pages = {
            "/v1/messages/count_tokens": lambda body: {"input_tokens": count_tokens(body)}
        }

    def check_key(self, headers: Mapping[bytes, bytes], key: str | None) -> None:
        """See `Dialect`. Newer versions of the SDK send the key as a bearer's."""
        bearer = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        given = headers.get(b"x-api-key", bearer).decode("latin-1")
        if not given:
            raise ApiError(401, "authentication_error", "x-api-key header is required")
        if key not in (None, given):
            raise ApiError(401, "authentication_error", "invalid x-api-key")
        if b"anthropic-version" not in headers:
            raise invalid("anthropic-version: header is required")

    def parse(self, body: bytes) -> Request:
        """See `Dialect`."""
        return parse_request(body)

    def counted_tokens(self, request: Request) -> int:
        """See `Dialect`: what is read and written is counted apart."""
        return request.input_tokens

    def refusal(self, fault: FaultName) -> ApiError | None:
        """See `Dialect`."""
        if fault not in _REFUSALS:
            return None
        retry_after_s = RETRY_AFTER_S if fault == "rate_limited" else None
        return ApiError(*_REFUSALS[fault], retry_after_s=retry_after_s)

    def too_long(self, tokens: int, tokens_max: int) -> ApiError:
        """See `Dialect`."""
        return invalid(f"prompt is too long: {tokens} tokens > {tokens_max} maximum")

    def over_quota(self, shortage: Shortage, model: str) -> ApiError:
        """See `Dialect`."""
        del model
        what = shortage.dimension.replace("-", " ")
        return ApiError(
            429,
            "rate_limit_error",
            "This request would exceed your organization's rate limit of "
            f"{shortage.limit:,} {what} per minute. Please reduce the prompt length or the "
            "maximum tokens requested, or try again later.",
            retry_after_s=shortage.retry_after_s,
        )

    def invalid(self, message: str, status: int = 400) -> ApiError:
        """See `Dialect`."""
        return invalid(message, status)

    def not_found(self, method: str, path: str) -> ApiError:
        """See `Dialect`."""
        del method
        return ApiError(404, "not_found_error", f"Not found: {path}")

    def too_large(self) -> ApiError:
        """See `Dialect`."""
        return ApiError(413, "request_too_large", "Request exceeds the maximum size")

    def error_json(self, error: ApiError, request_id: str) -> object:
        """See `Dialect`."""
        body = {"type": error.kind, "message": str(error)}
        return {"type": "error", "error": body, "request_id": request_id}

    def error_headers(self, error: ApiError) -> Headers:
        """See `Dialect`."""
        retry = b"true" if error.status == 429 or error.status >= 500 else b"false"
        headers = [(b"x-should-retry", retry)]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        return headers

    def limit_headers(self, states: Sequence[QuotaState], wall_s: float) -> Headers:
        """See `Dialect`; tokens are rounded to the nearest thousand."""
        headers = []
        for state in states:
            name = f"anthropic-ratelimit-{state.dimension}-".encode()
            remaining = state.remaining
            if state.dimension != "requests":
                remaining = min(state.limit, round(remaining / 1_000) * 1_000)
            headers += [
                (name + b"limit", b"%d" % state.limit),
                (name + b"remaining", b"%d" % remaining),
                (name + b"reset", _rfc3339(wall_s + state.full_s)),
            ]
        return headers

    def batch_pages(self, account: Account) -> MessageBatches:
        """See `Dialect`."""
        return MessageBatches(account)

    def shape(self, request: Request, usage: Usage, message_id: str, wall_s: float) -> MessageShape:
        """See `Dialect`."""
        del wall_s
        return MessageShape(request.model, usage, message_id)


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


def parse_request(body: bytes) -> Request:
    """Read the body of `POST /v1/messages`.

    Raises:
      ApiError: 400, saying what is wrong and where.
    """
    parsed = decode(_body, body, invalid)
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
        conversation=tuple((each.role, _text(each.content)) for each in parsed.messages),
        output_tokens_max=parsed.max_tokens,
        stream=parsed.stream,
        schema=form.schema if form is not None else None,
    )


def count_tokens(body: bytes) -> int:
    """Answer `POST /v1/messages/count_tokens`.

    Raises:
      ApiError: 400.
    """
    parsed = decode(_count, body, invalid)
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


@final
class MessageShape:
    """A message, in one piece or as events; see `Shape`."""

    prologue_events = 3
    ping = PING
    error_event = OVERLOADED_EVENT
    malformed_event = MALFORMED_EVENT

    def __init__(self, model: str, usage: Usage, message_id: str) -> None:
        self._model = model
        self._usage = usage
        self._id = message_id
        message = {**self._message("", None, 1), "content": []}
        start = event("message_start", {"type": "message_start", "message": message})
        self.prologue = start + CONTENT_BLOCK_START + PING

    def deltas(self, pieces: tuple[str, ...]) -> Sequence[bytes]:
        """See `Shape`."""
        return _deltas(pieces)

    def stamped(self, delta: bytes, now: float) -> bytes:
        """See `Shape`."""
        at = len(_DELTA_HEAD) + 1
        return b"%b@%.6f %b" % (delta[:at], now, delta[at:])

    def epilogue(self, stop_reason: StopReason, output: int) -> tuple[bytes, int]:
        """See `Shape`: the reason, and what was used, cumulatively."""
        usage = {
            "input_tokens": self._usage.input,
            "cache_creation_input_tokens": self._usage.cache_write,
            "cache_read_input_tokens": self._usage.cache_read,
            "output_tokens": output,
        }
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        data = {"type": "message_delta", "delta": delta, "usage": usage}
        return CONTENT_BLOCK_STOP + event("message_delta", data) + MESSAGE_STOP, 3

    def whole(self, text: str, stop_reason: StopReason, output: int) -> object:
        """See `Shape`."""
        return self._message(text, stop_reason, output)

    def _message(self, text: str, stop_reason: StopReason | None, output: int) -> dict[str, object]:
        usage = self._usage
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [{"type": "text", "text": text}],
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": {
                "input_tokens": usage.input,
                "cache_creation_input_tokens": usage.cache_write,
                "cache_read_input_tokens": usage.cache_read,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": usage.cache_write - usage.cache_write_hour,
                    "ephemeral_1h_input_tokens": usage.cache_write_hour,
                },
                "output_tokens": output,
                "service_tier": "standard",
            },
        }


@lru_cache(maxsize=64)
def _deltas(pieces: tuple[str, ...]) -> tuple[bytes, ...]:
    """Encoded once for the same answer. Memory: the last 64 are kept, some 50 KB each."""
    return tuple(_DELTA_HEAD + msgspec.json.encode(piece) + _DELTA_TAIL for piece in pieces)


def _rfc3339(seconds: float) -> bytes:
    at = dt.datetime.fromtimestamp(math.ceil(seconds), tz=dt.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()


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
