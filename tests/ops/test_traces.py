"""Traces: a tree for each turn and grade, by the GenAI conventions, without anybody's words."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import trio

from coach import config
from coach.errors import ConfigurationError, Overloaded
from coach.ops import traces
from coach.providers import ProviderError, open_provider
from tests.grading.test_at_once import World as Grading
from tests.providers.asking import Student, answers, streams
from tests.providers.peer import Peer, open_pool_to
from tests.providers.test_anthropic import PROMPT, SETTINGS, START, delta, end
from tests.session.test_failover import two
from tests.session.world import World, says

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is missing")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

WORDS = ("The sea was calm.", "I like to read", "Well done", "secret", "draft", '"ana"', '"ann"')


@asynccontextmanager
async def recorded() -> AsyncIterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    async with traces.open_traces(config.Traces(), worker="w-test", exporter=exporter):
        yield exporter


def tree(exporter: InMemorySpanExporter) -> dict[str, list[str]]:
    """The names of each span's children, by its name; the root is the child of nobody."""
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    found: dict[str, list[str]] = {}
    for span in spans:
        parent = names[span.parent.span_id] if span.parent is not None else ""
        found.setdefault(parent, []).append(span.name)
    return {name: sorted(children) for name, children in found.items()}


def one(exporter: InMemorySpanExporter, name: str) -> tuple[ReadableSpan, dict[str, Any]]:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == name]
    return span, dict(span.attributes or {})


def assert_nobody_is_quoted(exporter: InMemorySpanExporter) -> None:
    said = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert [word for word in WORDS if word in said] == []


async def test_a_request_has_the_conventions_attributes() -> None:
    peer = Peer(streams(START, delta("Well done"), end()))
    async with recorded() as exporter, open_pool_to(peer) as pool:
        with traces.span("feedback turn"):
            await open_provider(SETTINGS, pool).stream(PROMPT, Student())
    assert tree(exporter) == {"": ["feedback turn"], "feedback turn": ["chat claude-test"]}
    span, said = one(exporter, "chat claude-test")
    assert span.kind is SpanKind.CLIENT
    assert said.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-test",
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.stream": True,
        "gen_ai.output.type": "text",
        "gen_ai.response.model": "claude-test-1",
        "gen_ai.response.finish_reasons": ("end_turn",),
        "gen_ai.usage.input_tokens": 60,
        "gen_ai.usage.cache_read.input_tokens": 30,
        "gen_ai.usage.cache_creation.input_tokens": 20,
        "gen_ai.usage.output_tokens": 42,
        "server.address": "provider.test",
        "server.port": 443,
        "coach.provider": "claude",
    }
    assert_nobody_is_quoted(exporter)


async def test_a_refusal_is_an_error_by_its_kind_and_not_in_its_words() -> None:
    peer = Peer(answers(529, b'{"error": {"type": "overloaded_error", "message": "secret"}}'))
    async with recorded() as exporter, open_pool_to(peer) as pool:
        with pytest.raises(ProviderError):
            await open_provider(SETTINGS, pool).complete(PROMPT)
    span, said = one(exporter, "chat claude-test")
    assert (said["error.type"], span.status.status_code) == ("overloaded", StatusCode.ERROR)
    assert span.status.description is None
    assert span.events == ()


async def test_a_cancelled_request_says_so_and_what_it_had_used() -> None:
    peer = Peer(streams(START, delta("Well"), whole=False))
    async with recorded() as exporter, open_pool_to(peer) as pool:
        with trio.move_on_after(1):
            await open_provider(SETTINGS, pool).stream(PROMPT, Student())
    span, said = one(exporter, "chat claude-test")
    assert (said["coach.cancelled"], said["gen_ai.usage.input_tokens"]) == (True, 60)
    assert span.status.status_code is StatusCode.UNSET


async def test_a_turn_is_one_tree_with_what_it_waited_for() -> None:
    world = two(World(says("Well done"), full=Overloaded("no room", retry_after_s=1.0)))
    async with recorded() as exporter, world.student() as student:
        await student.ask("r1")
        await student.until("done", "error")
    assert tree(exporter) == {"": ["feedback turn"]}  # scripted providers have no spans
    span, said = one(exporter, "feedback turn")
    assert said.pop("coach.time_to_first_token") >= 0
    assert said == {"coach.request": "r1", "coach.org": "school"}
    assert [event.name for event in span.events] == ["within the limits", "admitted"]
    assert dict(span.events[1].attributes or {})["coach.provider"] == "second"
    assert_nobody_is_quoted(exporter)


async def test_a_grade_is_one_tree_with_a_branch_for_each_judge() -> None:
    async with recorded() as exporter:
        await Grading().grade()
    assert tree(exporter) == {"": ["grade"], "grade": ["judge-1", "judge-2"]}
    assert one(exporter, "grade")[1] == {"coach.submission": "s1", "coach.lane": "submission"}
    assert_nobody_is_quoted(exporter)


async def test_two_at_a_time_are_two_trees() -> None:
    async with recorded() as exporter, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(Grading().grade)
    spans = exporter.get_finished_spans()
    assert len({span.context.trace_id for span in spans if span.context is not None}) == 2


async def test_off_it_is_one_object_that_does_nothing() -> None:
    """Nothing is made, whatever is asked for: the packages need not even be there."""
    async with traces.open_traces(config.Traces(), worker="w-test"):
        assert not traces.is_on()
        with traces.span("feedback turn", "client", {"a": 1}) as span:
            assert span is traces.NO_SPAN is traces.current()
            span.set("a", 1)
            span.event("b", c=2)


async def test_a_share_of_trees_is_sampled_whole_or_not_at_all() -> None:
    exporter = InMemorySpanExporter()
    few = config.Traces(sample_percent=30)
    async with traces.open_traces(few, worker="w-test", exporter=exporter):
        for _ in range(300):
            with traces.span("turn"), traces.span("chat"):
                pass
    counts = [
        sum(span.name == name for span in exporter.get_finished_spans())
        for name in ("turn", "chat")
    ]
    assert counts[0] == counts[1]
    assert 30 < counts[0] < 150


async def test_without_the_packages_the_operator_hears_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "is_installed", lambda: False)
    wanted = config.Traces(endpoint="http://127.0.0.1:4318/v1/traces")
    with pytest.raises(ConfigurationError, match=r"pip install 'coach\[otel\]'"):
        async with traces.open_traces(wanted, worker="w-test"):
            pass


@pytest.mark.real_time
async def test_spans_reach_a_collector_by_otlp_before_the_process_ends() -> None:
    with collector() as (url, requests):
        wanted = config.Traces(endpoint=url, headers={"x-key": "k"}, service="essays")
        async with traces.open_traces(wanted, worker="w-test"):
            with traces.span("feedback turn"):
                pass
    ((key, body),) = requests
    sent = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    said = {each.key: each.value.string_value for each in sent.resource.attributes}
    assert (key, said["service.name"], said["service.instance.id"]) == ("k", "essays", "w-test")
    assert [span.name for span in sent.scope_spans[0].spans] == ["feedback turn"]


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str | None, bytes]]]]:
    """A server that keeps the key and the body of what is posted to it."""
    requests: list[tuple[str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append((self.headers["x-key"], body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", requests
        finally:
            server.shutdown()
            thread.join()
