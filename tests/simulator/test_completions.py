"""The simulator as OpenAI: shapes, quotas, cache and faults; what it shares is tested elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.providers.openai import duration_s
from coach.simulator.completions import Completions, duration
from coach.simulator.corpus import load_essays
from coach.simulator.faults import FAULTS, LATE_S, FaultName, Rule

from .support import SCHEMA, Bench, FakeExchange

ESSAY = load_essays()[0].text
KEY = {b"authorization": b"Bearer test"}
LONG_S = 120.0


def question(text: str = ESSAY, *, system: str = "Be kind.", **more: Any) -> dict[str, Any]:
    """The body of `POST /v1/chat/completions`, streamed unless `more` says otherwise."""
    return {
        "model": "sim-1",
        "max_completion_tokens": 500,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": f"<essay>\n{text}\n</essay>\nPlease comment."},
        ],
        **more,
    }


def judged(**more: Any) -> dict[str, Any]:
    form = {"name": "answer", "strict": True, "schema": SCHEMA}
    body = question(response_format={"type": "json_schema", "json_schema": form}, **more)
    if not body["stream"] or "stream" not in more:
        del body["stream"], body["stream_options"]
    return body


def whole(text: str = ESSAY, **more: Any) -> dict[str, Any]:
    body = question(text, **more)
    del body["stream"], body["stream_options"]
    return body


def bench(faults: dict[FaultName, Rule] | None = None, **settings: Any) -> Bench:
    return Bench(faults, dialect=Completions(), **settings)


def answered(body: dict[str, Any], **settings: Any) -> FakeExchange:
    place = bench(**settings)
    exchange = place.ask(body)
    place.run(LONG_S)
    return exchange


def hit(fault: FaultName, body: dict[str, Any] | None = None) -> FakeExchange:
    place = bench({fault: Rule(next=1)})
    exchange = place.ask(body or question())
    place.run(LONG_S)
    assert place.stats()[f"fault_{fault}"] == 1
    return exchange


def chunks(exchange: FakeExchange) -> list[Any]:
    """Data of each event; what is not JSON is None, `[DONE]` itself, comments are left out."""
    found: list[Any] = []
    for block in exchange.data.decode().split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        data = block.removeprefix("data: ")
        try:
            found.append(json.loads(data))
        except json.JSONDecodeError:
            found.append(data if data == "[DONE]" else None)
    return found


def text_of(exchange: FakeExchange) -> str:
    said = [chunk for chunk in chunks(exchange) if isinstance(chunk, dict) and chunk.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in said)


# -- answers ---------------------------------------------------------------------------------------


def test_a_stream_has_its_chunks_in_the_order_of_the_real_one() -> None:
    exchange = answered(question())
    first, *deltas, last, usage, done = chunks(exchange)

    assert (exchange.status, exchange.done) == (200, ["start", "end"])
    assert exchange.answer_headers["x-request-id"].startswith("req_")
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(delta["choices"][0]["delta"].keys() == {"content"} for delta in deltas)
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == (
        usage["usage"]["prompt_tokens"] + usage["usage"]["completion_tokens"]
    )
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in (first, *deltas, last, usage)} == {first["id"]}
    assert all(chunk["usage"] is None for chunk in (first, *deltas, last))
    assert text_of(exchange).startswith("[")


def test_usage_comes_only_where_it_was_asked_for() -> None:
    *_, last, done = chunks(answered(question(stream_options=None)))
    assert (last["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")
    assert "usage" not in last


def test_both_protocols_say_the_same() -> None:
    anthropic = Bench()
    system, user = question()["messages"]
    exchange = anthropic.ask(
        {
            "model": "sim-1",
            "max_tokens": 500,
            "system": system["content"],
            "messages": [user],
        }
    )
    anthropic.run(LONG_S)
    assert exchange.json["content"][0]["text"] == text_of(answered(question()))


def test_a_grade_comes_whole() -> None:
    exchange = answered(judged())
    (choice,) = exchange.json["choices"]

    assert exchange.json["object"] == "chat.completion"
    assert json.loads(choice["message"]["content"]).keys() == {"content"}
    assert (choice["finish_reason"], choice["message"]["refusal"]) == ("stop", None)
    assert exchange.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_cut_the_answer(name: str) -> None:
    body = question()
    del body["max_completion_tokens"]
    *_, last, usage, _ = chunks(answered({**body, name: 7}))
    assert last["choices"][0]["finish_reason"] == "length"
    assert 4 < usage["usage"]["completion_tokens"] <= 7


def test_deltas_can_be_stamped() -> None:
    _, delta, *_ = chunks(answered(question(model="a@b"), stamp=True))
    stamp, _, _ = delta["choices"][0]["delta"]["content"].partition(" ")
    assert float(stamp.removeprefix("@")) > 0


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, None), ({b"authorization": b"Basic x"}, None), (KEY, "invalid_api_key")],
)
def test_a_key_is_wanted(headers: dict[bytes, bytes], code: str | None) -> None:
    exchange = bench(api_key="other").ask(question(), headers=headers)
    assert exchange.status == 401
    assert exchange.json["error"]["code"] == code


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        ({**question(), "surprise": 1}, "surprise"),
        ({**question(), "max_tokens": 7}, "at the same time"),
        ({**whole(), "stream_options": {"include_usage": True}}, "stream_options"),
        (question(messages=[]), "messages"),
        (question(messages=[{"role": "robot", "content": ""}]), "role"),
        (question(prompt_cache_key="x" * 65), "prompt_cache_key"),
        (question(response_format={"type": "json_schema"}), "json_schema"),
    ],
)
def test_bad_requests_are_refused(body: dict[str, Any] | bytes, said: str) -> None:
    exchange = bench().ask(body)
    error = exchange.json["error"]
    assert (exchange.status, error["type"]) == (400, "invalid_request_error")
    assert error.keys() == {"message", "type", "param", "code"}
    assert said in error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "object"}}},
            "required": ["a"],
            "additionalProperties": False,
        },
    ],
)
def test_schemas_that_strict_mode_refuses(schema: dict[str, Any]) -> None:
    form = {"name": "answer", "strict": True, "schema": schema}
    body = question(response_format={"type": "json_schema", "json_schema": form})
    assert "Invalid schema" in bench().ask(body).json["error"]["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "required", "additionalProperties", "items"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from([*question(), "response_format", "prompt_cache_key", "max_tokens"]),
    JSON
    | JSON.map(
        lambda schema: {
            "type": "json_schema",
            "json_schema": {"name": "a", "strict": True, "schema": schema},
        }
    ),
)
def test_any_body_is_answered_or_refused(field: str, value: Any) -> None:
    exchange = bench().ask({**question("x"), field: value})
    assert exchange.status == 0 or exchange.json["error"]["message"]


def test_other_pages_are_those_of_the_other_protocol_or_none() -> None:
    place = bench()
    assert place.ask(question(), path="/v1/messages").status == 404
    assert place.ask(question(), method="GET").status == 405
    assert place.ask(question(), too_large=True).status == 413
    assert Bench().ask(question(), path="/v1/chat/completions").status == 404
    assert place.control(ttft_ms=7).status == 200
    assert place.stats()["requests"] == 0


# -- quotas ----------------------------------------------------------------------------------------


def test_a_request_counts_as_the_larger_of_its_limit_and_its_prompt() -> None:
    """Before anything is generated, whatever is generated, and whatever is cached."""
    place = bench(tokens_per_minute=10_000)
    small = place.ask(question("x" * 400))
    place.run(0.2)
    left = int(small.answer_headers["x-ratelimit-remaining-tokens"])
    assert 9_500 < left < 9_540  # 500, and some time
    large = place.ask(question("x" * 8_000))
    place.run(0.2)
    taken = left - int(large.answer_headers["x-ratelimit-remaining-tokens"])
    assert 1_950 < taken < 2_050


def test_headers_are_those_of_the_real_one() -> None:
    place = bench(requests_per_minute=100, tokens_per_minute=30_000)
    exchange = place.ask(question())
    place.run(0.12)
    headers = exchange.answer_headers
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert headers["x-ratelimit-reset-requests"] == "490ms"
    assert headers["x-ratelimit-limit-tokens"] == "30000"
    assert not any(name.startswith("anthropic") for name in headers)
    assert "x-ratelimit-limit-tokens" not in answered(question()).answer_headers


def test_over_quota_is_429_with_both_retry_headers() -> None:
    place = bench(tokens_per_minute=1_500)
    for _ in range(3):
        place.ask(question("x"))
    refused = place.ask(question("x"))

    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.json["error"]["type"] == "tokens"
    assert refused.answer_headers["retry-after-ms"] == "20000"
    assert refused.answer_headers["retry-after"] == "20"
    assert refused.answer_headers["x-ratelimit-remaining-tokens"] == "0"
    place.run(20)
    assert place.ask(question("x")).status == 0


def test_what_no_minute_holds_is_too_large() -> None:
    refused = bench(tokens_per_minute=400).ask(question("x"))
    assert refused.status == 429
    assert refused.json["error"]["message"].startswith("Request too large for sim-1")
    assert "retry-after" not in refused.answer_headers


def test_requests_that_fail_count() -> None:
    place = bench(
        {"server_error": Rule(next=1), "reset": Rule(next=1)},
        requests_per_minute=3,
        tokens_per_minute=1_100,
    )
    assert place.ask(question("x")).status == 500
    assert place.ask(question("x")).done == ["abort"]
    refused = place.ask(question("x"))
    assert (refused.status, refused.json["error"]["type"]) == (429, "tokens")
    assert place.ask(question("x")).json["error"]["type"] == "requests"  # that counted, too


# -- the prompt cache ------------------------------------------------------------------------------


def cached(place: Bench, body: dict[str, Any]) -> int:
    exchange = place.ask(body)
    place.run(30.0)
    tokens: int = exchange.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_a_prefix_is_cached_in_steps_of_128_tokens_from_1024() -> None:
    place = bench()
    system = "rubric " * 1_000  # 1,750 tokens
    assert cached(place, whole(system=system)) == 0
    assert cached(place, whole("another", system=system)) == 1_664
    assert cached(place, whole("another", system=system[:5_000])) == 1_152
    assert cached(place, whole("another", system=system[:4_000])) == 0
    assert cached(place, whole("another", system="no" + system)) == 0


def test_another_key_or_model_has_another_cache() -> None:
    place = bench()
    system = "rubric " * 1_000
    assert cached(place, whole(system=system, prompt_cache_key="a")) == 0
    assert cached(place, whole(system=system, prompt_cache_key="b")) == 0
    assert cached(place, whole(system=system, prompt_cache_key="a", model="m")) == 0
    assert cached(place, whole(system=system, prompt_cache_key="a")) > 1_600


def test_nothing_is_said_to_be_written() -> None:
    place = bench()
    exchange = place.ask(whole(system="rubric " * 1_000))
    place.run(LONG_S)
    usage = exchange.json["usage"]
    assert usage["prompt_tokens"] > 1_750
    assert place.stats()["cache_write_tokens"] > 1_600


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code", "retry_after"),
    [
        ("rate_limited", 429, "tokens", "rate_limit_exceeded", "5"),
        ("spend_limit", 429, "insufficient_quota", "insufficient_quota", None),
        ("server_error", 500, "server_error", None, None),
        ("overloaded", 503, "service_unavailable_error", "server_is_overloaded", None),
        ("too_long", 400, "invalid_request_error", "context_length_exceeded", None),
        ("bad_parameter", 400, "invalid_request_error", "unsupported_parameter", None),
    ],
)
def test_refusals(
    fault: FaultName, status: int, kind: str, code: str | None, retry_after: str | None
) -> None:
    exchange = hit(fault)
    error = exchange.json["error"]
    assert (exchange.status, error["type"], error["code"]) == (status, kind, code)
    assert exchange.answer_headers.get("retry-after") == retry_after


WHOLE_TEXT = text_of(answered(question()))


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        ("cut", ["start", "reset"]),
        ("disconnect", ["start", "abort"]),
        ("stall", ["start"]),
        ("error_event", ["start", "end"]),
        ("no_end", ["start", "end"]),
        ("filtered", ["start", "end"]),
    ],
)
def test_faults_in_the_middle_of_a_stream(fault: FaultName, done: list[str]) -> None:
    exchange = hit(fault)
    assert exchange.done == done
    assert WHOLE_TEXT.startswith(text_of(exchange))
    reasons = [
        chunk["choices"][0]["finish_reason"]
        for chunk in chunks(exchange)
        if isinstance(chunk, dict) and chunk.get("choices")
    ]
    assert [reason for reason in reasons if reason] == (
        ["content_filter"] if fault == "filtered" else []
    )
    assert ("[DONE]" in chunks(exchange)) == (fault == "filtered")
    assert ("error" in chunks(exchange)[-1]) == (fault == "error_event")


def test_malformed_is_one_chunk_that_is_not_json_among_good_ones() -> None:
    assert chunks(hit("malformed")).count(None) == 1


def test_a_late_first_token_has_headers_and_comments_meanwhile() -> None:
    place = bench({"late_first_token": Rule(next=1)})
    exchange = place.ask(question())
    place.run(LATE_S)
    assert len(chunks(exchange)) == 1
    assert exchange.data.count(b": keep-alive\n\n") == 3
    place.run(1)
    assert len(chunks(exchange)) > 1


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("body", [question(), judged()], ids=["streamed", "whole"])
def test_no_fault_leaves_anything_behind(fault: FaultName, body: dict[str, Any]) -> None:
    place = bench({fault: Rule(next=1)})
    exchange = place.ask(body)
    place.run(LONG_S)
    if fault in ("silent", "stall"):
        assert exchange.work is not None
        exchange.work.cancelled(by_reset=True)
    stats = place.stats()
    assert (stats["streams_open"], stats["timers"]) == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        *((0.0, "0ms"), (0.02, "20ms"), (0.9999, "1s"), (8.64, "8.64s"), (360.0, "6m0s")),
        *((60.5, "1m0.5s"), (3_600.0, "1h0m0s"), (86_399.001, "23h59m59.001s")),
    ],
)
def test_durations(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@given(st.floats(0, 1e6))
def test_durations_are_read_as_they_were_meant(seconds: float) -> None:
    """To the next millisecond, by what coach reads them with."""
    read = duration_s(duration(seconds))
    assert read is not None
    assert -1e-6 <= read - seconds <= 1.001e-3
