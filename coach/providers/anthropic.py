"""Anthropic's Messages API: what is sent, and what the answers mean; no I/O.

Source: Anthropic API reference, "Messages", "Streaming messages", "Errors", "Prompt caching",
"Structured outputs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import msgspec

from .exchange import Header
from .records import Block, Completion, ErrorKind, Prompt, ProviderError, Sink, Usage
from .sse import EventParser, EventTooLong

PATH: Final = "/v1/messages"
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of a response, streamed or not; with `max_tokens` as it is set, answers are far shorter."""
RETRY_AFTER_S_MAX: Final = 3_600.0
_MESSAGE_CHARACTERS_MAX: Final = 300
_VERSION: Final = b"2023-06-01"
_OK: Final = 200

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
    "billing_error": "auth",
}
_KIND_OF_STATUS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    402: "auth",
    403: "auth",
    408: "server_error",
    413: "too_long",
    429: "rate_limited",
    529: "overloaded",
}
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


def request_headers(api_key: str, *, stream: bool) -> list[Header]:
    """The headers of every request to this endpoint."""
    return [
        (b"x-api-key", api_key.encode()),
        (b"anthropic-version", _VERSION),
        (b"content-type", b"application/json"),
        (b"accept", b"text/event-stream" if stream else b"application/json"),
        (b"user-agent", b"coach"),
    ]


def request_body(prompt: Prompt, model: str, *, stream: bool) -> bytes:
    """The prompt as JSON; the same prompt gives the same bytes, so that prefixes stay cached."""
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
        body["system"] = _blocks(prompt.system)
    if prompt.schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": dict(prompt.schema)}}
    if prompt.user_id is not None:
        body["metadata"] = {"user_id": prompt.user_id}
    return msgspec.json.encode(body)


def _blocks(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": block.text, "cache_control": {"type": "ephemeral"}}
        if block.cache
        else {"type": "text", "text": block.text}
        for block in blocks
    ]


class Answer:
    """A receiver of one response, streamed or not: the part that both have."""

    def __init__(
        self, provider: str, on_headers: Callable[[Mapping[str, str]], None] | None
    ) -> None:
        self.provider = provider
        self._on_headers = on_headers
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._body = bytearray()  # of an error, or of an answer that is not streamed
        self._received = 0

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""
        self._status = status
        self._headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers
        }
        if self._on_headers is not None:
            self._on_headers(self._headers)

    def on_data(self, data: bytes) -> None:
        """A piece of the body."""
        self._count(data)
        self._body += data

    def check_status(self) -> None:
        """The response is whole: an error leaves as ProviderError."""
        if self._status == _OK:
            return
        try:
            error = _error_body.decode(self._body).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = _Error()  # as from a proxy in between
        raise ProviderError(
            f"{self.provider} answered {self._status} {_short(error)}".rstrip(),
            kind=kind_of_response(self._status, error.type, error.message),
            provider=self.provider,
            retry_after_s=retry_after_s(self._headers),
            status=self._status,
        )

    def _count(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > BODY_BYTES_MAX:
            raise self._failed("malformed", f"the answer is longer than {BODY_BYTES_MAX} bytes")

    def _failed(self, kind: ErrorKind, reason: str, *, tokens_shown: bool = False) -> ProviderError:
        return ProviderError(
            f"{self.provider}: {reason}",
            kind=kind,
            provider=self.provider,
            retry_after_s=retry_after_s(self._headers),
            tokens_shown=tokens_shown,
        )


@final
class WholeAnswer(Answer):
    """An answer that comes in one piece."""

    def completion(self) -> Completion:
        """What was answered, when the response is whole.

        Raises:
          ProviderError: it is an error, or makes no sense.
        """
        self.check_status()
        try:
            message = _message.decode(self._body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._failed("malformed", f"the answer is not a message: {error}") from error
        if message.stop_reason is None:
            raise self._failed("cut", "the answer has no end")
        if message.stop_reason == "refusal":
            raise self._failed("filtered", "the model refused to answer")
        return Completion(
            text="".join(block.text for block in message.content if block.type == "text"),
            usage=_updated(Usage(0, 0, 0, 0), message.usage),
            stop_reason=message.stop_reason,
            model=message.model,
        )


@final
class StreamedAnswer(Answer):
    """An answer that comes event by event; its text goes to a sink."""

    def __init__(
        self,
        provider: str,
        on_headers: Callable[[Mapping[str, str]], None] | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(provider, on_headers)
        self.stopped = False
        """The answer is whole, whatever may still come."""
        self._sink = sink
        self._on_stop = on_stop
        self._parser = EventParser()
        self._text: list[str] = []
        self._usage = Usage(0, 0, 0, 0)
        self._model = ""
        self._stop_reason: str | None = None

    @property
    def tokens_shown(self) -> bool:
        """The sink has got text."""
        return bool(self._text)

    def on_data(self, data: bytes) -> None:
        """Take events; all their text goes to the sink in one call, before any error."""
        if self._status != _OK:
            super().on_data(data)
            return
        texts: list[str] = []
        failure: ProviderError | None = None
        try:
            self._count(data)
            decode = _event.decode
            for raw in self._parser.feed(data):
                event = decode(raw)
                if event.type == "content_block_delta":
                    if event.delta is not None and event.delta.text:
                        texts.append(event.delta.text)
                else:
                    self._on_event(event)
        except ProviderError as error:
            failure = error
        except (msgspec.DecodeError, UnicodeDecodeError, EventTooLong) as error:
            failure = self._failed("malformed", f"an event makes no sense: {error}")
            failure.__cause__ = error
        if texts:
            text = "".join(texts)
            self._text.append(text)
            self._sink.on_delta(text)
        if failure is not None:
            failure.tokens_shown = self.tokens_shown
            raise failure

    def completion(self) -> Completion:
        """What was answered, when nothing more will come.

        Raises:
          ProviderError: it is an error, or was not whole.
        """
        self.check_status()
        if not self.stopped or self._stop_reason is None:
            raise self._failed("cut", "the answer broke off", tokens_shown=self.tokens_shown)
        if self._stop_reason == "refusal":
            raise self._failed(
                "filtered", "the model refused to go on", tokens_shown=self.tokens_shown
            )
        return Completion(
            text="".join(self._text),
            usage=self._usage,
            stop_reason=self._stop_reason,
            model=self._model,
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
            self.stopped = True
            self._on_stop()
        elif event.type == "error":
            error = event.error or _Error()
            kind = _KIND_OF_TYPE.get(error.type, "server_error")
            raise self._failed(kind, f"the answer broke off with {_short(error)}")
        # `ping`, `content_block_start` and `_stop`, and kinds that are still to be invented


def kind_of_response(status: int, error_type: str, message: str) -> ErrorKind:
    """What an error response means."""
    if status in _KIND_OF_STATUS:
        return _KIND_OF_STATUS[status]
    if error_type == "overloaded_error":
        return "overloaded"
    if status >= 500:
        return "server_error"
    if any(words in message.lower() for words in _TOO_LONG):
        return "too_long"
    return _KIND_OF_TYPE.get(error_type, "refused")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after`; Anthropic sends no dates there."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, RETRY_AFTER_S_MAX) if seconds >= 0 else None


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


def _short(error: _Error) -> str:
    text = f"{error.type}: {error.message}" if error.type else ""
    return text if len(text) <= _MESSAGE_CHARACTERS_MAX else f"{text[:_MESSAGE_CHARACTERS_MAX]}…"
