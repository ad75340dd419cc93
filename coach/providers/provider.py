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
from ..ops import metrics
from .answer import Api, OnHeaders
from .anthropic import Anthropic
from .estimator import Estimator
from .exchange import StreamError, StreamRequest
from .openai import OpenAI
from .pool import OpensStreams, origin_of
from .records import Completion, ErrorKind, Prompt, ProviderError, Sink

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
        self._path = api.path(urlsplit(settings.base_url).path.rstrip("/"))
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
        answer = self._api.streamed(self.name, prompt, on_headers, sink, on_stop)
        with self._counted():
            try:
                async with self._pool.open_stream(request, answer) as stream:
                    with scope:
                        await stream.wait_end()
            except StreamError as error:
                if not answer.stopped:
                    raise self._lost(error, tokens_shown=answer.tokens_shown) from error
            return self._learnt(prompt, answer.completion())

    async def complete(self, prompt: Prompt, *, on_headers: OnHeaders | None = None) -> Completion:
        """See `Provider`."""
        request = self._request(self._api.body(prompt, self.model, stream=False), stream=False)
        answer = self._api.whole(self.name, prompt, on_headers)
        with self._counted():
            try:
                async with self._pool.open_stream(request, answer) as stream:
                    await stream.wait_end()
            except StreamError as error:
                raise self._lost(error, tokens_shown=False) from error
            return self._learnt(prompt, answer.completion())

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

    def _learnt(self, prompt: Prompt, completion: Completion) -> Completion:
        usage = completion.usage
        self.estimator.learn(prompt.size(), usage.input + usage.cache_write + usage.cache_read)
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
