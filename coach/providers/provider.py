"""A provider's endpoint as sessions and graders use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, final
from urllib.parse import urlsplit

import structlog
import trio

from .. import config
from ..errors import ConfigurationError
from ..ops import metrics, traces
from .answer import Api, OnHeaders
from .anthropic import Anthropic
from .estimator import Estimator
from .exchange import StreamError, StreamRequest
from .openai import OpenAI
from .pool import OpensStreams, origin_of
from .records import Completion, ErrorKind, Prompt, ProviderError, Sink, Usage

log = structlog.get_logger()

REFUSALS: Final[frozenset[ErrorKind]] = frozenset(
    ("rate_limited", "accelerated", "overloaded", "spend_cap", "auth")
)
"""Kinds that operators want to count: what coach is there to avoid, and what only they can mend."""
END_S_MAX: Final = 1.0
"""For the end of a response whose answer is whole."""


class Provider(Protocol):
    """One endpoint and one model."""

    @property
    def name(self) -> str:
        """As in the settings."""

    @property
    def model(self) -> str:
        """The one that is asked for."""

    @property
    def estimator(self) -> Estimator:
        """What the model makes of text; learns from every answer."""

    async def stream(
        self, prompt: Prompt, sink: Sink, *, on_headers: OnHeaders | None = None
    ) -> Completion:
        """Ask; the answer's text goes to the sink as it comes, then all of it is returned.

        Args:
          prompt: what is asked.
          sink: called from the reader task of the connection; see `Sink`.
          on_headers: called from there, too, with the headers of each response, errors included;
            names in lower case. Must neither block nor raise.

        Raises:
          ProviderError: there is no whole answer; `kind` says why, `tokens_shown` whether the sink
            has text that must be taken back.
          ReceiverFailed: the sink raised.

        Cancellation: the provider's stream is reset before this returns.
        """

    async def complete(self, prompt: Prompt, *, on_headers: OnHeaders | None = None) -> Completion:
        """Ask for an answer in one piece; otherwise like `stream`."""


def open_provider(
    settings: config.Provider, pool: OpensStreams, *, cache: config.Cache | None = None
) -> Provider:
    """Make the endpoint that the settings describe; nothing is sent.

    Args:
      settings: of the endpoint.
      pool: what it is asked over.
      cache: how long its cache is to keep what it can; None: the defaults.

    Raises:
      ConfigurationError: the key or the address cannot stand in a request.
    """
    api: Api
    if settings.kind == "anthropic":
        api = Anthropic(cache_life=(cache or config.Cache()).ttl)
    else:
        api = OpenAI(compatible=settings.kind == "openai-compatible")
    provider = HttpProvider(settings, pool, api)
    try:
        provider.check()
    except ValueError as error:
        raise ConfigurationError(f"provider {settings.name}: {error}") from error
    return provider


@final
class HttpProvider:
    """An endpoint that is asked over the pool, in the words of its `Api`."""

    def __init__(self, settings: config.Provider, pool: OpensStreams, api: Api) -> None:
        self.name: Final = settings.name
        self.model: Final = settings.model
        self.estimator: Final = Estimator()
        self._api = api
        self._pool = pool
        self._api_key = settings.api_key
        self._base_url = settings.base_url
        self._origin = origin_of(settings.base_url)
        url = urlsplit(settings.base_url)
        self._path = api.path(url.path.rstrip("/"))
        self._system = "anthropic" if settings.kind == "anthropic" else "openai"
        self._address = url.hostname or ""
        self._port = url.port or (80 if url.scheme == "http" else 443)
        for kind in REFUSALS:  # from 0 on: Prometheus sees no increase where there was no figure
            metrics.provider_refusals_total.labels(self.name, kind)

    async def stream(
        self, prompt: Prompt, sink: Sink, *, on_headers: OnHeaders | None = None
    ) -> Completion:
        """See `Provider`."""
        scope = trio.CancelScope()

        def on_stop() -> None:
            scope.deadline = trio.current_time() + END_S_MAX

        request = self._request(self._api.body(prompt, self.model, stream=True), stream=True)
        with self._traced(prompt, stream=True) as span, self._counted():
            if span is not traces.NO_SPAN:
                sink = _FirstChunk(sink, span)
            answer = self._api.streamed(self.name, prompt, on_headers, sink, on_stop)
            try:
                async with self._pool.open_stream(request, answer) as stream:
                    with scope:
                        await stream.wait_end()
            except StreamError as error:
                if not answer.stopped:
                    raise self._lost(error, tokens_shown=answer.tokens_shown) from error
            return self._learnt(prompt, answer.completion(), span)

    async def complete(self, prompt: Prompt, *, on_headers: OnHeaders | None = None) -> Completion:
        """See `Provider`."""
        request = self._request(self._api.body(prompt, self.model, stream=False), stream=False)
        answer = self._api.whole(self.name, prompt, on_headers)
        with self._traced(prompt, stream=False) as span, self._counted():
            try:
                async with self._pool.open_stream(request, answer) as stream:
                    await stream.wait_end()
            except StreamError as error:
                raise self._lost(error, tokens_shown=False) from error
            return self._learnt(prompt, answer.completion(), span)

    def check(self) -> None:
        """Raise ValueError if no request can be made of the settings."""
        url = urlsplit(self._base_url)
        if url.query or url.fragment:
            raise ValueError("base_url must end with its path: a query is not sent")
        self._request(b"", stream=True)

    def _request(self, body: bytes, *, stream: bool) -> StreamRequest:
        return StreamRequest(
            origin=self._origin,
            method="POST",
            path=self._path,
            headers=self._api.headers(self._api_key, stream=stream),
            body=body,
        )

    def _traced(self, prompt: Prompt, *, stream: bool) -> traces.Span:
        """A span by the GenAI conventions."""
        if not traces.is_on():
            return traces.NO_SPAN
        return traces.span(
            f"chat {self.model}",
            "client",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": self._system,
                "gen_ai.request.model": self.model,
                "gen_ai.request.max_tokens": prompt.output_tokens_max,
                "gen_ai.request.stream": stream,
                "gen_ai.output.type": "text" if prompt.schema is None else "json",
                "server.address": self._address,
                "server.port": self._port,
                "coach.provider": self.name,
            },
        )

    def _learnt(self, prompt: Prompt, completion: Completion, span: traces.Span) -> Completion:
        usage = completion.usage
        read = usage.input + usage.cache_write + usage.cache_read
        self.estimator.learn(prompt.size(), read)
        if span is not traces.NO_SPAN:
            _tell_usage(span, usage)
            span.set("gen_ai.response.model", completion.model)
            span.set("gen_ai.response.finish_reasons", (completion.stop_reason,))
        return completion

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count refusals; money that is spent is said aloud, as nobody else can mend it."""
        try:
            yield
        except ProviderError as error:
            if error.kind in REFUSALS:
                metrics.provider_refusals_total.labels(self.name, error.kind).inc()
            if error.kind == "spend_cap":
                log.error("spend_cap", provider=self.name, error=str(error))
            raise

    def _lost(self, error: StreamError, *, tokens_shown: bool) -> ProviderError:
        return ProviderError(
            f"{self.name}: {error}",
            kind=error.kind,
            provider=self.name,
            tokens_shown=tokens_shown,
        )


@final
class _FirstChunk:
    """A sink for the time to the first chunk; text goes past it, straight to the other one."""

    def __init__(self, sink: Sink, span: traces.Span) -> None:
        self.on_delta: Final = sink.on_delta
        self._sink = sink
        self._span = span
        self._asked_at = trio.current_time()

    def on_start(self, model: str, usage: Usage) -> None:
        """The answer begins."""
        waited_s = trio.current_time() - self._asked_at
        self._span.set("gen_ai.response.time_to_first_chunk", waited_s)
        _tell_usage(self._span, usage)
        self._sink.on_start(model, usage)


def _tell_usage(span: traces.Span, usage: Usage) -> None:
    """Tokens, of an answer that may yet break off; those of the input include cached ones."""
    read = usage.input + usage.cache_write + usage.cache_read
    span.set("gen_ai.usage.input_tokens", read)
    span.set("gen_ai.usage.cache_read.input_tokens", usage.cache_read)
    span.set("gen_ai.usage.cache_creation.input_tokens", usage.cache_write)
    span.set("gen_ai.usage.output_tokens", usage.output)
