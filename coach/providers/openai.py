"""OpenAI's Chat Completions, and what speaks like them: what is sent, what comes back; no I/O.

Source: OpenAI API reference, "Chat Completions", "Streaming"; guides "Error codes", "Rate limits",
"Prompt caching", "Structured outputs"; and for what the reference leaves open, the official SDKs
(openai-python `_streaming.py`, `_base_client.py`). Servers that only speak like it differ in shapes
that are accepted here as they come: docs/providers.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import Any, Final, final

import msgspec

from .answer import (
    RETRY_AFTER_S_MAX,
    Answer,
    OnHeaders,
    StreamedAnswer,
    WholeAnswer,
    seconds_of,
)
from .exchange import Header
from .records import Block, Completion, ErrorKind, Prompt, Sink, Usage, estimate_tokens, size_of

DONE: Final = b"[DONE]"
USER_ID_CHARACTERS_MAX: Final = 64
SCHEMA_NAME: Final = "answer"

_STOP_REASON: Final = {
    "stop": "end_turn",
    "eos_token": "end_turn",  # Text Generation Inference
    "length": "max_tokens",
    "model_length": "max_tokens",  # Mistral
}
"""Ends that leave a whole answer, in the words of `Completion`. All others cut it short."""

_KIND_OF_CODE: Final[dict[str, ErrorKind]] = {
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "tokens": "rate_limited",
    "requests": "rate_limited",
    "slow_down": "accelerated",  # traffic that grows too fast, whatever the quota
    "server_is_overloaded": "overloaded",
    "service_unavailable_error": "overloaded",
    "overloaded_error": "overloaded",
    "server_error": "server_error",
    "internal_error": "server_error",
    "context_length_exceeded": "too_long",
    "string_above_max_length": "too_long",
    "exceed_context_size_error": "too_long",  # llama.cpp
    "request_too_large": "too_long",
    "content_filter": "filtered",
    "content_policy_violation": "filtered",
    "invalid_prompt": "filtered",  # a reasoning model's own filter
    "insufficient_quota": "spend_cap",
    "credit_balance_exhausted": "spend_cap",
    "organization_spend_limit_exceeded": "spend_cap",
    "project_spend_limit_exceeded": "spend_cap",
    "organization_usage_limit_exceeded": "spend_cap",
    "billing_hard_limit_reached": "spend_cap",
    "billing_not_active": "spend_cap",
    "account_deactivated": "auth",
    "invalid_api_key": "auth",
}
"""By `error.code`, else by `error.type`. Money that ran out comes as a 429, and is no rate limit:
only the operator can mend it."""
_KIND_OF_STATUS: Final[dict[int, ErrorKind]] = {
    401: "auth",
    402: "spend_cap",
    403: "auth",
    408: "server_error",
    409: "server_error",
    413: "too_long",
    429: "rate_limited",
    529: "overloaded",
}
_TOO_LONG: Final = (
    "maximum context length",
    "context window",
    "context size",
    "prompt is too long",
    "request too large",  # for the whole quota of a minute: it would be refused for ever
)
_FILTERED: Final = ("content management policy", "usage policy")
_OVERLOADED: Final = ("currently overloaded",)

_UNITS_S: Final = {
    "h": 3_600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_NUMBER: Final = r"(\d{1,12}(?:\.\d{0,12})?)"
_UNIT: Final = r"(h|ms|m|us|µs|ns|s)"
_STEP: Final = re.compile(_NUMBER + _UNIT)
_DURATION: Final = re.compile(f"(?:{_NUMBER}{_UNIT}){{1,8}}")


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    """In place of `delta`, in an answer in one piece."""
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    """From GPT-5.6 on, where they cost more than other input."""


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    """A name; or with other servers the HTTP status."""


class _Completion(msgspec.Struct):
    """A whole completion, or a chunk of one: what it does not have is None."""

    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Counts | None = None
    error: _Error | str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    detail: Any = None


_completion: Final = msgspec.json.Decoder(_Completion)
_error_body: Final[msgspec.json.Decoder[_ErrorBody | list[_ErrorBody]]] = msgspec.json.Decoder(
    _ErrorBody | list[_ErrorBody]
)


@final
class OpenAI:
    """Chat Completions; see `Api`.

    Args:
      compatible: the server is not OpenAI's: send only what all of them take.
    """

    def __init__(self, *, compatible: bool = False) -> None:
        self._compatible = compatible

    def path(self, base: str) -> str:
        """See `Api`. As with the SDKs the version is part of `base_url`; without a path it is 1."""
        return f"{base or '/v1'}/chat/completions"

    def headers(self, api_key: str, *, stream: bool) -> list[Header]:
        """See `Api`."""
        return [
            (b"authorization", b"Bearer " + api_key.encode()),
            (b"content-type", b"application/json"),
            (b"accept", b"text/event-stream" if stream else b"application/json"),
            (b"user-agent", b"coach"),
        ]

    def body(self, prompt: Prompt, model: str, *, stream: bool) -> bytes:
        """See `Api`. Blocks of a message are joined: not every server takes parts."""
        messages = [{"role": "system", "content": _text(prompt.system)}] if prompt.system else []
        messages += [
            {"role": message.role, "content": _text(message.blocks)} for message in prompt.messages
        ]
        body: dict[str, Any] = {"model": model, "messages": messages}
        if self._compatible:
            body["max_tokens"] = prompt.output_tokens_max
        else:
            body["max_completion_tokens"] = prompt.output_tokens_max
            body["store"] = False  # an essay is nobody's training data
            if prompt.system:
                body["prompt_cache_key"] = cache_key(prompt)
        if stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        if prompt.schema is not None:
            schema = {"name": SCHEMA_NAME, "strict": True, "schema": dict(prompt.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if prompt.user_id is not None:
            name = "user" if self._compatible else "safety_identifier"
            body[name] = _user_id(prompt.user_id)
        return msgspec.json.encode(body)

    def whole(self, provider: str, prompt: Prompt, on_headers: OnHeaders | None) -> OpenAIWhole:
        """See `Api`."""
        return OpenAIWhole(provider, prompt, on_headers)

    def streamed(
        self,
        provider: str,
        prompt: Prompt,
        on_headers: OnHeaders | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> OpenAIStream:
        """See `Api`."""
        return OpenAIStream(provider, prompt, on_headers, sink, on_stop)


class _Answer(Answer):
    """What both kinds of answer make of headers and errors."""

    def _meaning(self, status: int, body: bytes) -> tuple[ErrorKind, str]:
        error = _error_in(body)
        return kind_of_error(status, error), _words(error)

    def _retry_after_s(self, kind: ErrorKind) -> float | None:
        return retry_after_s(self._headers, by_reset=kind == "rate_limited")

    def _check_error(self, error: _Error | str | None) -> None:
        """Raise what a 200 says has gone wrong after all."""
        if isinstance(error, str):
            error = _Error(message=error or None)
        if error is not None and error != _Error():
            kind = kind_of_error(None, error)
            raise self._failed(kind, f"the answer broke off with {_words(error)}")

    def _stop_reason_of(self, finish_reason: str) -> str:
        if finish_reason == "content_filter":
            raise self._failed("filtered", "the provider's filter ended the answer")
        if finish_reason not in _STOP_REASON:
            raise self._failed("cut", f"the answer ended early: {finish_reason}")
        return _STOP_REASON[finish_reason]

    def _check_text(self, text: str) -> None:
        if not text:
            raise self._failed(
                "malformed", "the answer is empty; did the model think up all its output tokens?"
            )


@final
class OpenAIWhole(_Answer, WholeAnswer):
    """A completion in one piece."""

    def __init__(self, provider: str, prompt: Prompt, on_headers: OnHeaders | None) -> None:
        super().__init__(provider, on_headers)
        self._prompt = prompt

    def _read(self, body: bytes) -> Completion:
        completion = _completion.decode(body)
        self._check_error(completion.error)
        choice = completion.choices[0] if completion.choices else _Choice()
        message = choice.message or _Delta()
        if message.refusal:
            raise self._failed("filtered", "the model refused to answer")
        if choice.finish_reason is None:
            raise self._failed("cut", "the answer has no end")
        stop_reason = self._stop_reason_of(choice.finish_reason)
        text = message.content or ""
        self._check_text(text)
        return Completion(
            text=text,
            usage=_usage(completion.usage, self._prompt, text),
            stop_reason=stop_reason,
            model=completion.model or "",
        )


@final
class OpenAIStream(_Answer, StreamedAnswer):
    """A completion as chunks.

    The chunk with `finish_reason` ends the text. What follows is wanted, but not needed: the chunk
    with the usage, and `[DONE]`, which some servers leave out.
    """

    def __init__(
        self,
        provider: str,
        prompt: Prompt,
        on_headers: OnHeaders | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(provider, on_headers, sink, on_stop)
        self._prompt = prompt
        self._counts: _Counts | None = None
        self._model = ""
        self._stop_reason: str | None = None
        self._started = False
        self._done = False

    def _take(self, events: list[bytes], texts: list[str]) -> None:
        decode = _completion.decode
        for raw in events:
            if self._done:
                return
            if raw.startswith(DONE):
                self._done = True
                self._on_stop()
                return
            chunk = decode(raw)
            if chunk.error is not None:
                self._check_error(chunk.error)
            if chunk.usage is not None:
                self._counts = chunk.usage
            for choice in chunk.choices or ():
                if choice.index == 0:
                    if not self._started:
                        self._start(chunk)
                    self._on_choice(choice, texts)

    def _on_choice(self, choice: _Choice, texts: list[str]) -> None:
        delta = choice.delta
        if delta is not None:
            if delta.content:
                texts.append(delta.content)
            if delta.refusal:
                raise self._failed("filtered", "the model refused to answer")
        if choice.finish_reason is not None:
            self._stop_reason = self._stop_reason_of(choice.finish_reason)
            self._stop()

    def _completed(self, text: str) -> Completion:
        self._check_text(text)
        return Completion(
            text=text,
            usage=_usage(self._counts, self._prompt, text),
            stop_reason=self._stop_reason or "",
            model=self._model,
        )

    def _start(self, chunk: _Completion) -> None:
        self._started = True
        self._model = chunk.model or ""
        # Tokens are counted at the end only; until then, an answer that is cut has cost this.
        estimate = estimate_tokens(self._prompt.size())
        self._sink.on_start(self._model, Usage(estimate, 0, 0, 0))


def cache_key(prompt: Prompt) -> str:
    """What sends prompts with the same beginning to the machine that holds it in its cache."""
    digest = blake2b(_text(prompt.system).encode("utf-8", "surrogatepass"), digest_size=16)
    return f"coach-{digest.hexdigest()}"


def kind_of_error(status: int | None, error: _Error) -> ErrorKind:
    """What an error means.

    Args:
      status: of the response; None for an error within a 200.
      error: what it says.
    """
    message = (error.message or "").lower()
    if any(words in message for words in _TOO_LONG):
        return "too_long"
    for name in (error.code, error.type):
        if isinstance(name, str) and name in _KIND_OF_CODE:
            return _KIND_OF_CODE[name]
    if status is None:
        code = str(error.code)
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 500
    if status in _KIND_OF_STATUS:
        return _KIND_OF_STATUS[status]
    if any(words in message for words in _FILTERED):
        return "filtered"
    if any(words in message for words in _OVERLOADED):
        return "overloaded"
    return "server_error" if status >= 500 else "refused"


def retry_after_s(headers: Mapping[str, str], *, by_reset: bool) -> float | None:
    """Seconds until the provider wants to be asked again.

    Args:
      headers: of the response, names in lower case.
      by_reset: where it does not say, take the time until what is used up is full again.

    Returns:
      By `retry-after-ms`, then `retry-after` (seconds, or a date as seen from the response's own),
      then the resets; None without any, or of values that are not to be believed.
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        seconds = seconds_of(headers.get(name, ""), unit_s=unit_s)
        if seconds is not None:
            return seconds
    seconds = _between(headers.get("date"), headers.get("retry-after"))
    if seconds is None and by_reset:
        seconds = _reset_s(headers)
    return None if seconds is None else min(seconds, RETRY_AFTER_S_MAX)


def duration_s(text: str) -> float | None:
    """Read `6m0s`, `1.5s`, `20ms`, `1h30m` (Go's notation), or a plain number of seconds."""
    if _DURATION.fullmatch(text):
        return sum(float(number) * _UNITS_S[unit] for number, unit in _STEP.findall(text))
    return seconds_of(text)


def _reset_s(headers: Mapping[str, str]) -> float | None:
    """The longest reset of what is used up; of all where nothing is used up entirely."""
    empty: list[float] = []
    others: list[float] = []
    for dimension in ("requests", "tokens"):
        seconds = duration_s(headers.get(f"x-ratelimit-reset-{dimension}", ""))
        if seconds is not None:
            is_empty = headers.get(f"x-ratelimit-remaining-{dimension}") == "0"
            (empty if is_empty else others).append(seconds)
    return max(empty or others, default=None)


def _between(now: str | None, then: str | None) -> float | None:
    if now is None or then is None:
        return None
    try:
        seconds = (parsedate_to_datetime(then) - parsedate_to_datetime(now)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


def _error_in(body: bytes) -> _Error:
    """The error in a body, whichever of its shapes that has."""
    try:
        found = _error_body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Error()  # as from a proxy in between
    if isinstance(found, list):
        found = found[0] if found else _ErrorBody()
    if isinstance(found.error, str):
        return _Error(message=found.error)
    if found.error is not None:
        return found.error
    message = found.message or (found.detail if isinstance(found.detail, str) else None)
    return _Error(message=message, type=found.type, code=found.code)


def _words(error: _Error) -> str:
    name = error.code if isinstance(error.code, str) and error.code else error.type
    return ": ".join(part for part in (name, error.message) if part)


def _usage(counts: _Counts | None, prompt: Prompt, text: str) -> Usage:
    """What was counted; estimates of what was not."""
    if counts is None:
        counts = _Counts()
    details = counts.prompt_tokens_details or _Details()
    cached, written = details.cached_tokens or 0, details.cache_write_tokens or 0
    if counts.prompt_tokens is None:
        fresh = estimate_tokens(prompt.size())
    else:
        fresh = max(0, counts.prompt_tokens - cached - written)
    output = counts.completion_tokens
    return Usage(
        input=fresh,
        cache_write=written,
        cache_read=cached,
        output=estimate_tokens(size_of(text)) if output is None else output,
    )


def _text(blocks: Sequence[Block]) -> str:
    return "\n\n".join(block.text for block in blocks)


def _user_id(user_id: str) -> str:
    if len(user_id) <= USER_ID_CHARACTERS_MAX:
        return user_id
    return blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
