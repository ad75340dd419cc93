"""OpenTelemetry traces: a tree of spans for each feedback turn and each grade, exported by OTLP.

Names are those of OpenTelemetry's GenAI semantic conventions (status "development", November 2026:
docs/gen-ai/gen-ai-spans.md in github.com/open-telemetry/semantic-conventions-genai). No text is
ever in a span: neither essays nor feedback, prompts or names.

Off, which it is without `traces.endpoint`, a span is one shared object that does nothing. On, a
turn has two spans, or one more for each further provider, and some events; no token of it costs
anything: nothing here is called for a delta. Spans are exported by a thread of the SDK's, 512 at a
time; beyond `SPANS_MAX` that wait, about 2 KB each, they are dropped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import ContextVar, Token
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, final

import trio

from .. import config
from ..errors import CoachError, ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "client", "consumer"]
Value = str | bool | int | float | Sequence[str]

SPANS_MAX: Final = 2_048
EXPORT_EVERY_S: Final = 5.0
EXPORT_S_MAX: Final = 5.0
CLOSE_S_MAX: Final = 2.0
"""How long the end of a process waits for its last spans to be taken."""
PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Span(AbstractContextManager["Span"]):
    """A span that nobody records."""

    def set(self, name: str, value: Value | None) -> None:
        """Say something of what is going on; None: nothing is known."""

    def event(self, name: str, **attributes: Value) -> None:
        """Say that something happened now; `_` in a name of an attribute stands for `.`."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


NO_SPAN: Final = Span()
_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)  # tasks inherit it
_tracer: Tracer | None = None  # of the process, while its traces are open


def span(name: str, kind: Kind = "internal", attributes: Mapping[str, Value] | None = None) -> Span:
    """A child of the current span, or the first of a tree; it lasts as long as the block.

    An error that leaves the block is recorded by its kind or code, without its words. A block that
    is cancelled says so: `coach.cancelled`.
    """
    return NO_SPAN if _tracer is None else _Recorded(_tracer, name, kind, attributes)


def current() -> Span:
    """The innermost span around the caller, whichever task has opened it."""
    return _current.get()


def is_on() -> bool:
    """Whether anybody listens."""
    return _tracer is not None


def is_installed() -> bool:
    """Whether the extra `otel` is."""
    try:
        return all(find_spec(package) is not None for package in PACKAGES)
    except ModuleNotFoundError:
        return False


@asynccontextmanager
async def open_traces(
    settings: config.Traces, *, worker: str, exporter: SpanExporter | None = None
) -> AsyncIterator[None]:
    """Export this process' spans while the block runs, where the settings say where to.

    Args:
      settings: where to, and how many.
      worker: what this process is called.
      exporter: takes each span at once, instead of what the settings say.

    Raises:
      ConfigurationError: the extra is not installed.

    Cancellation: the last spans are given `CLOSE_S_MAX` all the same.
    """
    global _tracer  # noqa: PLW0603  one a process, as metrics are
    if settings.endpoint is None and exporter is None:
        yield
        return
    if not is_installed():
        raise ConfigurationError(
            "traces.endpoint is set, but OpenTelemetry is missing: pip install 'coach[otel]'"
        )
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(settings.sample_percent / 100),
        resource=Resource.create({"service.name": settings.service, "service.instance.id": worker}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_processor(settings, exporter))
    before, _tracer = _tracer, provider.get_tracer("coach")
    try:
        yield
    finally:
        _tracer = before
        with trio.move_on_after(CLOSE_S_MAX, shield=True):
            await trio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


def _processor(settings: config.Traces, exporter: SpanExporter | None) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    if exporter is not None:
        return SimpleSpanProcessor(exporter)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return BatchSpanProcessor(
        OTLPSpanExporter(
            endpoint=settings.endpoint, headers=dict(settings.headers), timeout=EXPORT_S_MAX
        ),
        max_queue_size=SPANS_MAX,
        schedule_delay_millis=EXPORT_EVERY_S * 1_000,
    )


@final
class _Recorded(Span):
    """A span that is exported, if it is among the sampled."""

    __slots__ = ("_attributes", "_kind", "_name", "_token", "_tracer", "otel")

    def __init__(
        self, tracer: Tracer, name: str, kind: Kind, attributes: Mapping[str, Value] | None
    ) -> None:
        self._attributes = attributes
        self._tracer = tracer
        self._name = name
        self._kind = kind
        self.otel: OtelSpan | None = None
        """While the block runs."""
        self._token: Token[Span] | None = None

    def __enter__(self) -> Self:
        from opentelemetry.trace import SpanKind, set_span_in_context

        parent = _current.get()
        inside = None
        if isinstance(parent, _Recorded) and parent.otel is not None:
            inside = set_span_in_context(parent.otel)
        self.otel = self._tracer.start_span(
            self._name,
            context=inside,
            kind=SpanKind[self._kind.upper()],
            attributes=self._attributes,
        )
        self._token = _current.set(self)
        return self

    def set(self, name: str, value: Value | None) -> None:
        if self.otel is not None and value is not None:
            self.otel.set_attribute(name, value)

    def event(self, name: str, **attributes: Value) -> None:
        if self.otel is not None:
            named = {key.replace("_", "."): value for key, value in attributes.items()}
            self.otel.add_event(name, named)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from opentelemetry.trace import StatusCode

        assert self.otel is not None
        assert self._token is not None
        _current.reset(self._token)
        if isinstance(error, trio.Cancelled):
            self.otel.set_attribute("coach.cancelled", value=True)
        elif error is not None:
            self.otel.set_attribute("error.type", _type_of(error))
            self.otel.set_status(StatusCode.ERROR)
        self.otel.end()
        self.otel = None


def _type_of(error: BaseException) -> str:
    """Low in cardinality, and without anybody's words."""
    kind = getattr(error, "kind", None)
    if isinstance(kind, str):
        return kind
    return error.code if isinstance(error, CoachError) else type(error).__name__
