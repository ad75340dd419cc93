"""Anthropic's Messages API: what is sent, and what the answers mean; no I/O.

Source: Anthropic API reference, "Messages", "Streaming messages", "Errors", "Prompt caching",
"Structured outputs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, final

import msgspec

from .answer import NO_USAGE, Answer, OnHeaders, StreamedAnswer, WholeAnswer, seconds_of
from .exchange import Header
from .records import Block, Completion, ErrorKind, Prompt, Sink, Usage

_VERSION: Final = b"2023-06-01"

_KIND_OF_TYPE: Final[dict[str, ErrorKind]] = {
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "api_error": "server_error",
    "timeout_error": "server_error",
    "invalid_request_error": "refused",
    "not_found_error": "refused",
    "request_too_large": "too_long",
    "authentication_error": "auth",
    "permission_error": "auth",
    "billing_error": "spend_cap",
}
_KIND_OF_STATUS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    402: "spend_cap",
    403: "auth",
    408: "server_error",
    413: "too_long",
    429: "rate_limited",
    529: "overloaded",
}
_SPENT_CODE: Final = "enforced_spend_limit_reached"
"""`error.details.error_code` of the 429 that no quota is behind: the tier's monthly cap. It has no
retry-after (docs, "Errors")."""
_SPENT: Final = (
    "specified api usage limits",  # a 400, for a limit that the operator has set
    "specified workspace api usage limits",
    "credit balance is too low",
    "spend limit",
)
_ACCELERATED: Final = ("usage increase rate", "acceleration limit")
"""How a 429 says that traffic grows too fast, whatever the quota (docs, "Rate limits")."""
_TOO_LONG: Final = ("prompt is too long", "exceed context limit", "context window")
"""How a 400 says that the prompt does not fit; it has no error type of its own."""


class _Content(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Counts(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: Any = None
    """An object with `error_code`, of some errors."""

    @property
    def words(self) -> str:
        """As it stands in logs."""
        return f"{self.type}: {self.message}" if self.type else ""


class _Message(msgspec.Struct):
    model: str
    usage: _Counts
    content: list[_Content] = []
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    """Any event of a stream; what it does not have is None."""

    type: str
    delta: _Delta | None = None
    message: _Message | None = None
    usage: _Counts | None = None
    error: _Error | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


_event: Final = msgspec.json.Decoder(_Event)
_message: Final = msgspec.json.Decoder(_Message)
_error_body: Final = msgspec.json.Decoder(_ErrorBody)


@final
class Anthropic:
    """The Messages API; see `Api`.

    Args:
      cache_life: of what stands before the messages, which a class shares. A student's own history
        is kept for five minutes: an hour's write costs more than most pauses would.
    """

    def __init__(self, *, cache_life: Literal["5m", "1h"] = "5m") -> None:
        self._cache_life = cache_life

    def path(self, base: str) -> str:
        """See `Api`."""
        return f"{base}/v1/messages"

    def headers(self, api_key: str, *, stream: bool) -> list[Header]:
        """See `Api`."""
        return [
            (b"x-api-key", api_key.encode()),
            (b"anthropic-version", _VERSION),
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if stream else b"application/json"),
            (b"user-agent", b"coach"),
        ]

    def body(self, prompt: Prompt, model: str, *, stream: bool) -> bytes:
        """See `Api`."""
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": prompt.output_tokens_max,
            "stream": stream,
            "messages": [
                {"role": message.role, "content": _blocks(message.blocks)}
                for message in prompt.messages
            ],
        }
        if prompt.system:
            body["system"] = _blocks(prompt.system, self._cache_life)
        if prompt.schema is not None:
            schema = dict(prompt.schema)
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        if prompt.user_id is not None:
            body["metadata"] = {"user_id": prompt.user_id}
        return msgspec.json.encode(body)

    def whole(self, provider: str, prompt: Prompt, on_headers: OnHeaders | None) -> AnthropicWhole:
        """See `Api`."""
        del prompt  # the answer counts its own tokens
        return AnthropicWhole(provider, on_headers)

    def streamed(
        self,
        provider: str,
        prompt: Prompt,
        on_headers: OnHeaders | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> AnthropicStream:
        """See `Api`."""
        del prompt  # its tokens are counted in the first event
        return AnthropicStream(provider, on_headers, sink, on_stop)


def _blocks(blocks: Sequence[Block], life: str = "5m") -> list[dict[str, Any]]:
    control = {"type": "ephemeral"} if life == "5m" else {"type": "ephemeral", "ttl": life}
    return [
        {"type": "text", "text": block.text, "cache_control": control}
        if block.cache
        else {"type": "text", "text": block.text}
        for block in blocks
    ]


class _Answer(Answer):
    """What both kinds of answer make of headers and errors."""

    def _meaning(self, status: int, body: bytes) -> tuple[ErrorKind, str]:
        try:
            error = _error_body.decode(body).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = _Error()  # as from a proxy in between
        details = error.details if isinstance(error.details, dict) else {}
        kind = kind_of_response(
            status, error.type, error.message, code=str(details.get("error_code", ""))
        )
        return kind, error.words

    def _retry_after_s(self, kind: ErrorKind) -> float | None:
        del kind
        return retry_after_s(self._headers)


@final
class AnthropicWhole(_Answer, WholeAnswer):
    """A message in one piece."""

    def _read(self, body: bytes) -> Completion:
        message = _message.decode(body)
        if message.stop_reason is None:
            raise self._failed("cut", "the answer has no end")
        if message.stop_reason == "refusal":
            raise self._failed("filtered", "the model refused to answer")
        return Completion(
            text="".join(block.text for block in message.content if block.type == "text"),
            usage=_updated(NO_USAGE, message.usage),
            stop_reason=message.stop_reason,
            model=message.model,
        )


@final
class AnthropicStream(_Answer, StreamedAnswer):
    """A message as events."""

    def __init__(
        self,
        provider: str,
        on_headers: OnHeaders | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(provider, on_headers, sink, on_stop)
        self._usage = NO_USAGE
        self._model = ""
        self._stop_reason: str | None = None

    def _take(self, events: list[bytes], texts: list[str]) -> None:
        decode = _event.decode
        for raw in events:
            event = decode(raw)
            if event.type == "content_block_delta":
                if event.delta is not None and event.delta.text:
                    texts.append(event.delta.text)
            else:
                self._on_event(event)

    def _completed(self, text: str) -> Completion:
        if self._stop_reason is None:
            raise self._failed("cut", "the answer broke off", tokens_shown=self.tokens_shown)
        if self._stop_reason == "refusal":
            raise self._failed(
                "filtered", "the model refused to go on", tokens_shown=self.tokens_shown
            )
        return Completion(
            text=text, usage=self._usage, stop_reason=self._stop_reason, model=self._model
        )

    def _on_event(self, event: _Event) -> None:
        if event.type == "message_start":
            if event.message is None:
                raise self._failed("malformed", "message_start without a message")
            self._model = event.message.model
            self._usage = _updated(self._usage, event.message.usage)
            self._sink.on_start(self._model, self._usage)
        elif event.type == "message_delta":
            if event.delta is not None and event.delta.stop_reason is not None:
                self._stop_reason = event.delta.stop_reason
            if event.usage is not None:
                self._usage = _updated(self._usage, event.usage)
        elif event.type == "message_stop":
            self._stop()
        elif event.type == "error":
            error = event.error or _Error()
            kind = _KIND_OF_TYPE.get(error.type, "server_error")
            raise self._failed(kind, f"the answer broke off with {error.words}")
        # `ping`, `content_block_start` and `_stop`, and kinds that are still to be invented


def kind_of_response(status: int, error_type: str, message: str, *, code: str = "") -> ErrorKind:
    """What an error response means."""
    words = message.lower()
    if status in (400, 429):
        if code == _SPENT_CODE or any(part in words for part in _SPENT):
            return "spend_cap"
        if status == 429 and any(part in words for part in _ACCELERATED):
            return "accelerated"
    if status in _KIND_OF_STATUS:
        return _KIND_OF_STATUS[status]
    if error_type == "overloaded_error":
        return "overloaded"
    if status >= 500:
        return "server_error"
    if any(part in words for part in _TOO_LONG):
        return "too_long"
    return _KIND_OF_TYPE.get(error_type, "refused")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after`; Anthropic sends no dates there."""
    return seconds_of(headers.get("retry-after", ""))


def _updated(usage: Usage, counts: _Counts) -> Usage:
    """Counts are cumulative, and absent where nothing has changed."""

    def newest(old: int, new: int | None) -> int:
        return old if new is None else new

    return Usage(
        input=newest(usage.input, counts.input_tokens),
        cache_write=newest(usage.cache_write, counts.cache_creation_input_tokens),
        cache_read=newest(usage.cache_read, counts.cache_read_input_tokens),
        output=newest(usage.output, counts.output_tokens),
    )
