"""The shapes of OpenAI's Chat Completions: what a request must look like, what is answered; pure.

Source: OpenAI API reference, "Chat Completions", "Streaming"; guides "Error codes", "Rate limits"
(max(max_tokens, an estimate from characters), also for requests that fail), "Prompt caching" (from
1,024 tokens in steps of 128, without being asked; the key decides which machine is asked).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, final

import msgspec
from msgspec import Meta

from .batches import CompletionBatches
from .cache import CacheBlock
from .dialect import (
    CHARACTERS_PER_TOKEN,
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

CACHE_STEP_TOKENS: Final = 128
STEP_CHARACTERS: Final = int(CACHE_STEP_TOKENS * CHARACTERS_PER_TOKEN)
OUTPUT_TOKENS_MAX: Final = 16_384
"""Where a request sets no limit."""
NAME_CHARACTERS_MAX: Final = 64
SCHEMA_DEPTH_MAX: Final = 10

_FINISH_REASON: Final[dict[StopReason, str]] = {
    "end_turn": "stop",
    "max_tokens": "length",
    "refusal": "content_filter",
}
_SHORT: Final = {"requests": "RPM", "tokens": "TPM"}
_REFUSALS: Final[dict[FaultName, tuple[int, str, str, str | None, str | None]]] = {
    # status, type, message, code, param
    "rate_limited": (
        429,
        "tokens",
        f"Rate limit reached on tokens per min (TPM). Please try again in {RETRY_AFTER_S}s.",
        "rate_limit_exceeded",
        None,
    ),
    "spend_limit": (
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        None,
    ),
    "server_error": (
        500,
        "server_error",
        "The server had an error while processing your request. Sorry about that!",
        None,
        None,
    ),
    "overloaded": (
        503,
        "service_unavailable_error",
        "The engine is currently overloaded, please try again later.",
        "server_is_overloaded",
        None,
    ),
    "bad_parameter": (
        400,
        "invalid_request_error",
        "Unsupported parameter: 'store' is not supported with this model.",
        "unsupported_parameter",
        "store",
    ),
}


class TextPart(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Text, the only kind of part that is understood here."""

    text: str


class InputMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of the conversation."""

    role: Literal["developer", "system", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A schema with its name."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class TextFormat(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """The answer is text."""


class ObjectFormat(msgspec.Struct, frozen=True, tag="json_object", tag_field="type"):
    """The answer is some JSON."""


class SchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """The answer is JSON by this schema."""

    json_schema: JsonSchema


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream has beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = True


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`; a field the real API does not know is refused, as there."""

    model: Annotated[str, Meta(min_length=1, max_length=MODEL_CHARACTERS_MAX)]
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | None = None
    user: str | None = None
    store: bool | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Any = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


_body = msgspec.json.Decoder(Body)


def invalid(
    message: str, status: int = 400, *, code: str | None = None, param: str | None = None
) -> ApiError:
    """The client's mistake."""
    return ApiError(status, "invalid_request_error", message, code=code, param=param)


@final
class Completions:
    """OpenAI's API; see `Dialect`."""

    path = "/v1/chat/completions"
    pages: Mapping[str, Callable[[bytes], object]] = {}
    id_prefix = "chatcmpl"
    request_id_header = b"x-request-id"
    counts_refused = True
    lookback_blocks = 1  # every step is a breakpoint

    def check_key(self, headers: Mapping[bytes, bytes], key: str | None) -> None:
        """See `Dialect`."""
        kind, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not given:
            raise invalid("You didn't provide an API key.", 401)
        if key not in (None, given):
            raise invalid("Incorrect API key provided.", 401, code="invalid_api_key")

    def parse(self, body: bytes) -> Request:
        """See `Dialect`."""
        parsed = decode(_body, body, invalid)
        if parsed.max_tokens is not None and parsed.max_completion_tokens is not None:
            raise invalid(
                "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not "
                "supported.",
                code="invalid_parameter_combination",
            )
        if parsed.stream_options is not None and not parsed.stream:
            raise invalid(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        form = parsed.response_format
        schema = form.json_schema.schema if isinstance(form, SchemaFormat) else None
        if isinstance(form, SchemaFormat) and form.json_schema.strict:
            _check_schema(schema, f"Invalid schema for response_format '{form.json_schema.name}'")
        texts = [(message.role, _text(message.content)) for message in parsed.messages]
        limit = parsed.max_completion_tokens or parsed.max_tokens or OUTPUT_TOKENS_MAX
        return Request(
            model=parsed.model,
            blocks=_steps("".join(f"<|{role}|>{text}" for role, text in texts)),
            system="\n".join(text for role, text in texts if role in ("system", "developer")),
            conversation=tuple(each for each in texts if each[0] in ("user", "assistant")),
            output_tokens_max=limit,
            stream=parsed.stream,
            schema=schema,
            cache_key=parsed.prompt_cache_key or "",
            usage_wanted=parsed.stream_options is not None and parsed.stream_options.include_usage,
        )

    def counted_tokens(self, request: Request) -> int:
        """See `Dialect`."""
        return max(request.output_tokens_max, request.input_tokens)

    def refusal(self, fault: FaultName) -> ApiError | None:
        """See `Dialect`."""
        if fault not in _REFUSALS:
            return None
        status, kind, message, code, param = _REFUSALS[fault]
        retry_after_s = RETRY_AFTER_S if fault == "rate_limited" else None
        return ApiError(status, kind, message, code=code, param=param, retry_after_s=retry_after_s)

    def too_long(self, tokens: int, tokens_max: int) -> ApiError:
        """See `Dialect`."""
        return invalid(
            f"This model's maximum context length is {tokens_max} tokens. However, your messages "
            f"resulted in {tokens} tokens. Please reduce the length of the messages.",
            code="context_length_exceeded",
            param="messages",
        )

    def over_quota(self, shortage: Shortage, model: str) -> ApiError:
        """See `Dialect`."""
        kind = shortage.dimension
        where = (
            f"{model} in organization org-simulated on {kind} per min "
            f"({_SHORT.get(kind, kind)}): Limit {shortage.limit}, Requested {shortage.asked}."
        )
        if math.isinf(shortage.wait_s):
            message, wait_s = f"Request too large for {where}", None
        else:
            wait_s = shortage.wait_s
            message = f"Rate limit reached for {where} Please try again in {duration(wait_s)}."
        return ApiError(429, kind, message, code="rate_limit_exceeded", retry_after_s=wait_s)

    def invalid(self, message: str, status: int = 400) -> ApiError:
        """See `Dialect`."""
        return invalid(message, status)

    def not_found(self, method: str, path: str) -> ApiError:
        """See `Dialect`."""
        return invalid(f"Invalid URL ({method} {path})", 404)

    def too_large(self) -> ApiError:
        """See `Dialect`."""
        return invalid("Maximum content size limit exceeded.", 413)

    def error_json(self, error: ApiError, request_id: str) -> object:
        """See `Dialect`."""
        del request_id
        return {"error": _error(error)}

    def error_headers(self, error: ApiError) -> Headers:
        """See `Dialect`."""
        if error.retry_after_s is None:
            return []
        return [
            (b"retry-after-ms", b"%d" % math.ceil(error.retry_after_s * 1_000)),
            (b"retry-after", b"%d" % math.ceil(error.retry_after_s)),
        ]

    def limit_headers(self, states: Sequence[QuotaState], wall_s: float) -> Headers:
        """See `Dialect`."""
        del wall_s
        headers = []
        for state in states:
            name = state.dimension.encode()
            headers += [
                (b"x-ratelimit-limit-" + name, b"%d" % state.limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % state.remaining),
                (b"x-ratelimit-reset-" + name, duration(state.full_s).encode()),
            ]
        return headers

    def batch_pages(self, account: Account) -> CompletionBatches:
        """See `Dialect`."""
        return CompletionBatches(account)

    def shape(
        self, request: Request, usage: Usage, message_id: str, wall_s: float
    ) -> CompletionShape:
        """See `Dialect`."""
        return CompletionShape(request, usage, message_id, wall_s)


@final
class CompletionShape:
    """A completion, in one piece or as chunks; see `Shape`."""

    prologue_events = 1
    ping = b": keep-alive\n\n"

    def __init__(self, request: Request, usage: Usage, message_id: str, wall_s: float) -> None:
        self._usage = usage
        self._usage_wanted = request.usage_wanted
        self._known = {
            "id": message_id,
            "created": int(wall_s),
            "model": request.model,
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }
        self.prologue = self._chunk({"role": "assistant", "content": "", "refusal": None})
        self._head, _, self._tail = self._chunk({"content": "@"}).rpartition(b"@")
        overloaded = invalid("The server had an error processing your request.")
        overloaded.kind = "server_error"
        self.error_event = _event({"error": _error(overloaded)})
        self.malformed_event = self._head + b"and th\n\n"

    def deltas(self, pieces: tuple[str, ...]) -> Sequence[bytes]:
        """See `Shape`."""
        head, tail, encode = self._head, self._tail, msgspec.json.encode
        return [head + encode(piece)[1:-1] + tail for piece in pieces]

    def stamped(self, delta: bytes, now: float) -> bytes:
        """See `Shape`."""
        at = len(self._head)
        return b"%b@%.6f %b" % (delta[:at], now, delta[at:])

    def epilogue(self, stop_reason: StopReason, output: int) -> tuple[bytes, int]:
        """See `Shape`."""
        events = [self._chunk({}, _FINISH_REASON[stop_reason])]
        if self._usage_wanted:
            usage = self._usage_json(output)
            events.append(_event({**self._begun(), "choices": [], "usage": usage}))
        return b"".join([*events, b"data: [DONE]\n\n"]), len(events) + 1

    def whole(self, text: str, stop_reason: StopReason, output: int) -> object:
        """See `Shape`."""
        message: object = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH_REASON[stop_reason],
        }
        return {
            **self._known,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage_json(output),
        }

    def _begun(self) -> dict[str, object]:
        return {**self._known, "object": "chat.completion.chunk"}

    def _chunk(self, delta: Mapping[str, object], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._begun(), "choices": [choice]}
        if self._usage_wanted:
            chunk["usage"] = None
        return _event(chunk)

    def _usage_json(self, output: int) -> dict[str, object]:
        usage = self._usage
        prompt = usage.input + usage.cache_write + usage.cache_read
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


def duration(seconds: float) -> str:
    """Write seconds as OpenAI does in headers: `20ms`, `8.64s`, `6m0s`, `1h0m0s`."""
    ms = math.ceil(seconds * 1_000)
    if ms < 1_000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{ms / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def _event(data: object) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)


def _error(error: ApiError) -> dict[str, object]:
    return {
        "message": str(error),
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }


def _steps(prompt: str) -> tuple[CacheBlock, ...]:
    """The prompt in steps of the cache; what does not fill the last one is never cached."""
    parts = [prompt[at : at + STEP_CHARACTERS] for at in range(0, len(prompt), STEP_CHARACTERS)]
    return tuple(
        CacheBlock(part, tokens_of(part), breakpoint=len(part) == STEP_CHARACTERS) for part in parts
    )


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _check_schema(schema: object, what: str, depth: int = 0) -> None:
    """Refuse what the real strict mode refuses.

    Raises:
      ApiError: 400, as the real API words it.
    """
    if not isinstance(schema, dict) or depth > SCHEMA_DEPTH_MAX:
        raise invalid(f"{what}: schema must be an object.", param="response_format")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise invalid(f"{what}: 'properties' must be an object.", param="response_format")
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            raise invalid(
                f"{what}: 'additionalProperties' is required to be supplied and to be false.",
                param="response_format",
            )
        required = schema.get("required")
        names = required if isinstance(required, list) else []
        if sorted(map(str, names)) != sorted(properties):
            raise invalid(
                f"{what}: 'required' is required to be supplied and to be an array including "
                "every key in properties.",
                param="response_format",
            )
    for part in properties.values():
        _check_schema(part, what, depth + 1)
    if "items" in schema:
        _check_schema(schema["items"], what, depth + 1)
