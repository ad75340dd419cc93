"""OpenAI's Chat Completions over the pool: what is sent, and what becomes of every answer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import attrs
import h2.errors
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.errors import ConfigurationError
from coach.providers import (
    Block,
    Message,
    Prompt,
    ProviderError,
    Usage,
    estimate_tokens,
    open_provider,
)
from coach.providers.openai import OpenAI, OpenAIStream, cache_key, duration_s, retry_after_s
from coach.providers.records import ErrorKind
from tests.support.cancels import cancel_at_step

from .asking import Student, answers, failure_of, streams
from .peer import Exchange, Peer, open_pool_to

CANCEL = int(h2.errors.ErrorCodes.CANCEL)
SETTINGS = config.Provider(
    name="gpt",
    kind="openai",
    base_url="https://provider.test/v1",
    model="gpt-test",
    api_key="secret",
)
PROMPT = Prompt(
    system=(Block("rules", cache=True), Block("assignment", cache=True)),
    messages=(Message("user", (Block("draft"), Block("please"))),),
    output_tokens_max=100,
)
ESTIMATE = estimate_tokens(PROMPT.size())
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def event(**fields: object) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(fields)


def chunk(
    delta: Mapping[str, object] | None, finish_reason: str | None = None, **fields: object
) -> bytes:
    """A chunk as the API sends them: with everything, also what nobody here reads."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return event(
        **{
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "gpt-test-1",
            "service_tier": "default",
            "system_fingerprint": "fp_1",
            "choices": [choice],
            "usage": None,
            "obfuscation": "x7",
            **fields,
        }
    )


def text(content: str) -> bytes:
    return chunk({"content": content})


START = chunk({"role": "assistant", "content": "", "refusal": None})
COUNTS = {
    "prompt_tokens": 1_500,
    "completion_tokens": 42,
    "total_tokens": 1_542,
    "prompt_tokens_details": {"cached_tokens": 1_152, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 7},
}
USAGE = chunk(None, choices=[], usage=COUNTS)
DONE = b"data: [DONE]\n\n"
ERROR = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}


def finish(reason: str = "stop") -> bytes:
    return chunk({}, reason)


def end(reason: str = "stop") -> bytes:
    return finish(reason) + USAGE + DONE


def told(*parts: bytes) -> tuple[OpenAIStream, Student]:
    """A receiver that has been given these parts of a 200."""
    student = Student()
    answer = OpenAIStream("gpt", PROMPT, None, student, lambda: None)
    answer.on_head(200, [])
    for part in parts:
        answer.on_data(part)
    return answer, student


async def fails(peer: Peer) -> tuple[ProviderError, Student]:
    return await failure_of(SETTINGS, PROMPT, peer)


# -- what is sent ----------------------------------------------------------------------------------


async def test_what_is_sent_is_what_the_api_documents() -> None:
    asked: list[Exchange] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange)
        await streams(START + text("x") + end())(exchange)

    prompt = attrs.evolve(PROMPT, schema=SCHEMA, user_id="u-1")
    async with open_pool_to(Peer(script)) as pool:
        await open_provider(SETTINGS, pool).stream(prompt, Student())
    (exchange,) = asked
    assert {name: value for name, value in exchange.headers.items() if name != b"user-agent"} == {
        b":method": b"POST",
        b":scheme": b"https",
        b":authority": b"provider.test",
        b":path": b"/v1/chat/completions",
        b"authorization": b"Bearer secret",
        b"content-type": b"application/json",
        b"accept": b"text/event-stream",
    }
    assert msgspec.json.decode(exchange.body) == {
        "model": "gpt-test",
        "max_completion_tokens": 100,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "rules\n\nassignment"},
            {"role": "user", "content": "draft\n\nplease"},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
        },
        "prompt_cache_key": cache_key(prompt),
        "safety_identifier": "u-1",
        "store": False,
    }


def test_a_compatible_server_is_sent_only_what_all_of_them_take() -> None:
    """Several refuse a request for one field that they do not know."""
    prompt = attrs.evolve(PROMPT, user_id="u-1")
    body = msgspec.json.decode(OpenAI(compatible=True).body(prompt, "m", stream=True))
    assert sorted(body) == ["max_tokens", "messages", "model", "stream", "stream_options", "user"]
    assert body["max_tokens"] == 100


def test_a_prompt_without_extras_sends_none() -> None:
    body = msgspec.json.decode(OpenAI().body(attrs.evolve(PROMPT, system=()), "m", stream=False))
    assert sorted(body) == ["max_completion_tokens", "messages", "model", "store"]


def test_the_cache_key_is_the_same_for_a_class_and_for_no_other() -> None:
    other_draft = attrs.evolve(PROMPT, messages=(Message("user", (Block("other"),)),))
    other_class = attrs.evolve(PROMPT, system=(Block("rules"), Block("another assignment")))
    assert cache_key(PROMPT) == cache_key(other_draft) != cache_key(other_class)
    assert len(cache_key(PROMPT)) <= 64


def test_a_name_that_is_too_long_is_sent_as_a_digest() -> None:
    body = msgspec.json.decode(
        OpenAI().body(attrs.evolve(PROMPT, user_id="u" * 65), "m", stream=False)
    )
    assert len(body["safety_identifier"]) == 64
    assert "uu" not in body["safety_identifier"]


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("https://provider.test", b"/v1/chat/completions"),
        ("https://provider.test/v1/", b"/v1/chat/completions"),
        ("https://provider.test/openai/v1", b"/openai/v1/chat/completions"),
        ("https://provider.test/v1beta/openai", b"/v1beta/openai/chat/completions"),
    ],
)
async def test_base_url_is_that_of_the_sdks(base_url: str, path: bytes) -> None:
    asked: list[bytes] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange.headers[b":path"])
        await streams(text("x") + end())(exchange)

    settings = msgspec.structs.replace(SETTINGS, base_url=base_url)
    async with open_pool_to(Peer(script)) as pool:
        await open_provider(settings, pool).stream(PROMPT, Student())
    assert asked == [path]


# -- answers ---------------------------------------------------------------------------------------


async def test_an_answer_is_streamed_and_then_returned_whole() -> None:
    headers: list[Mapping[str, str]] = []
    peer = Peer(streams(START, text("Well ") + text("done"), text("!") + end()))
    async with open_pool_to(peer) as pool:
        student = Student()
        completion = await open_provider(SETTINGS, pool).stream(
            PROMPT, student, on_headers=headers.append
        )
    assert student.starts == [("gpt-test-1", Usage(ESTIMATE, 0, 0, 0))]
    assert student.texts == ["Well done", "!"]
    assert completion.text == "Well done!"
    assert completion.usage == Usage(348, 0, 1_152, 42)
    assert (completion.stop_reason, completion.model) == ("end_turn", "gpt-test-1")
    assert [one["x-left"] for one in headers] == ["7"]
    assert peer.resets == []


def test_content_null() -> None:
    """Chunks without text say so in three ways."""
    answer, student = told(START, chunk({"content": None}), text(""), chunk({}), text("x"), end())
    assert student.texts == ["x"]
    assert answer.completion().text == "x"


def test_empty_choices() -> None:
    """Azure begins with a chunk about its filter, and may put others without a delta between."""
    about_filter = event(choices=[], model="", object="", prompt_filter_results=[{}])
    no_delta = event(choices=[{"index": 0, "finish_reason": None, "content_filter_offsets": {}}])
    null = chunk(None, choices=None)
    answer, student = told(about_filter, START, null, text("x"), no_delta, end())
    assert student.starts == [("gpt-test-1", Usage(ESTIMATE, 0, 0, 0))]
    assert answer.completion().model == "gpt-test-1"


def test_usage_only_in_the_last_chunk() -> None:
    answer, _ = told(START + text("x") + finish(), USAGE, DONE)
    assert answer.completion().usage == Usage(348, 0, 1_152, 42)


def test_usage_with_the_end_of_the_text() -> None:
    """As DeepSeek and Mistral send it."""
    answer, _ = told(START + text("x") + chunk({}, "stop", usage=COUNTS) + DONE)
    assert answer.completion().usage == Usage(348, 0, 1_152, 42)


def test_usage_with_cache_writes() -> None:
    """From GPT-5.6 on they are counted, and part of the prompt's tokens."""
    details = {"cached_tokens": 1_024, "cache_write_tokens": 256}
    usage = chunk(None, choices=[], usage={**COUNTS, "prompt_tokens_details": details})
    answer, _ = told(text("x") + finish() + usage)
    assert answer.completion().usage == Usage(220, 256, 1_024, 42)


@pytest.mark.parametrize("usage", [b"", chunk(None, choices=[], usage={"total_tokens": 3})])
def test_no_usage(usage: bytes) -> None:
    """A server that does not count is estimated, upwards."""
    answer, _ = told(text("x" * 700) + finish() + usage + DONE)
    assert answer.completion().usage == Usage(ESTIMATE, 0, 0, estimate_tokens(700))


def test_done() -> None:
    """Nothing that follows `[DONE]` counts."""
    answer, student = told(START + text("x") + end() + b"data: nonsense\n\n", text("y"))
    assert student.texts == ["x"]
    assert answer.completion().text == "x"


def test_no_done() -> None:
    """The text is whole with its `finish_reason`; the SDKs do not miss `[DONE]` either."""
    assert told(START + text("x") + finish())[0].completion().text == "x"


def test_done_alone_is_no_end() -> None:
    answer, _ = told(START + text("x") + DONE)
    with pytest.raises(ProviderError) as caught:
        answer.completion()
    assert (caught.value.kind, caught.value.tokens_shown) == ("cut", True)


def test_comments() -> None:
    """OpenRouter sends `: OPENROUTER PROCESSING` while it waits, others bare colons."""
    answer, student = told(b": OPENROUTER PROCESSING\n\n", b":\n\n" + START, b": x\n" + text("x"))
    assert student.texts == ["x"]
    answer.on_data(end())
    assert answer.completion().text == "x"


def test_crlf() -> None:
    whole = (START + text("x") + end()).replace(b"\n", b"\r\n")
    assert told(whole)[0].completion().text == "x"


def test_unknown_fields() -> None:
    """Of a reasoning model, of the other choices, of times to come."""
    thinking = chunk({"reasoning_content": "hm", "annotations": [], "tool_calls": None})
    other = chunk(None, choices=[{"index": 1, "delta": {"content": "no"}}], x_groq={"id": 1})
    answer, student = told(thinking, other, text("x"), end())
    assert student.texts == ["x"]
    assert answer.completion().text == "x"


def test_finish_reason_length() -> None:
    """The model's own end at its limit: what the limit asked for, and said so."""
    answer, _ = told(START + text("x") + end("length"))
    assert answer.completion().stop_reason == "max_tokens"


def test_finish_reason_length_without_text() -> None:
    """A reasoning model that thought up all of it has not answered."""
    answer, _ = told(START + end("length"))
    with pytest.raises(ProviderError, match="empty") as caught:
        answer.completion()
    assert caught.value.kind == "malformed"


def test_error_object_in_a_200() -> None:
    with pytest.raises(ProviderError, match="The server had an error") as caught:
        told(START + text("We") + event(error=ERROR) + DONE)
    assert (caught.value.kind, caught.value.tokens_shown) == ("server_error", True)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "rate_limit_error", "code": "rate_limit_exceeded"}, "rate_limited"),
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, "spend_cap"),
        ({"code": "content_filter", "message": "no"}, "filtered"),
        ({"code": 502, "message": "Provider disconnected"}, "server_error"),
        ({"code": 429, "message": "slowly"}, "rate_limited"),
        ({"code": "400", "message": "no"}, "refused"),
        (
            {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"},
            "too_long",
        ),
        ({"type": "overloaded_error"}, "overloaded"),
        ("the engine failed", "server_error"),
        ("This model's maximum context length is 8 tokens", "too_long"),
    ],
)
def test_errors_in_a_200_in_all_their_shapes(error: object, kind: ErrorKind) -> None:
    with pytest.raises(ProviderError) as caught:
        told(b"event: error\n" + event(error=error))
    assert (caught.value.kind, caught.value.tokens_shown) == (kind, False)


@pytest.mark.parametrize("error", [None, "", {}])
def test_an_error_that_says_nothing_is_none(error: object) -> None:
    """As the SDKs see it."""
    assert told(chunk({"content": "x"}, error=error) + end())[0].completion().text == "x"


def test_refusal_deltas() -> None:
    with pytest.raises(ProviderError, match="refused") as caught:
        told(START, chunk({"refusal": "I'm"}), chunk({"refusal": " sorry"}))
    assert (caught.value.kind, caught.value.tokens_shown) == ("filtered", False)


PIECES = ["", "a", "é", "ü\u0308", "日本", "🙂", '"', "\\", "\n", "\r\n", "\u2028", "data: [DONE]"]


def in_escapes(content: str) -> bytes:
    """A chunk as Python's json writes it by default; beyond the BMP in pairs."""
    units = content.encode("utf-16-be")
    escapes = b"".join(
        b"\\u%04x" % int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)
    )
    return chunk({"content": "@"}).replace(b"@", escapes)


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8),
    st.lists(st.integers(0, 5_000), max_size=30),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_any_chunking_gives_the_same_answer(
    pieces: list[str], cuts: list[int], escaped: bool, newline: bytes
) -> None:
    """Multi-byte characters and escapes may be split anywhere."""
    encode = in_escapes if escaped else text
    data = (START + b"".join(map(encode, pieces)) + end()).replace(b"\n", newline)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    answer, student = told(*(data[a:b] for a, b in pairwise(edges) if a < b))
    said = "".join(pieces)
    assert "".join(student.texts) == said
    assert len(student.texts) <= len(edges)
    if said:
        assert answer.completion().text == said


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_an_answer_or_an_expected_error(noise: bytes, at: int) -> None:
    whole = START + text("x") + end()
    try:
        answer, _ = told(whole[:at] + noise + whole[at:])
        answer.completion()
    except ProviderError as error:
        assert error.kind in ("malformed", "cut")  # noqa: PT017


# -- failures --------------------------------------------------------------------------------------


def error_body(kind: str | None, code: str | int | None, message: str = "no") -> bytes:
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    )


INVALID = "invalid_request_error"
LONG = "This model's maximum context length is 8 tokens. However, your messages resulted in 9."


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, error_body("tokens", "rate_limit_exceeded"), "rate_limited"),
        (429, error_body("requests", "rate_limit_exceeded"), "rate_limited"),
        (429, error_body("tokens", "rate_limit_exceeded", "Request too large for m"), "too_long"),
        (429, error_body("insufficient_quota", "insufficient_quota"), "spend_cap"),
        (429, error_body("insufficient_quota", "project_spend_limit_exceeded"), "spend_cap"),
        (429, error_body("insufficient_quota", "a_code_of_times_to_come"), "spend_cap"),
        (429, error_body("rate_limit_error", "slow_down"), "accelerated"),
        (429, b"", "rate_limited"),
        (400, error_body(INVALID, "context_length_exceeded", LONG), "too_long"),
        (400, error_body(INVALID, "string_above_max_length"), "too_long"),
        (400, error_body("BadRequestError", 400, LONG), "too_long"),
        (400, error_body("exceed_context_size_error", 400), "too_long"),
        (500, error_body("server_error", 500, "Context size has been exceeded."), "too_long"),
        (413, error_body(None, None), "too_long"),
        (400, error_body(None, "content_filter"), "filtered"),
        (400, error_body(INVALID, "content_policy_violation"), "filtered"),
        (400, error_body(INVALID, "invalid_prompt"), "filtered"),
        (400, error_body(INVALID, None, "triggering our content management policy"), "filtered"),
        (400, error_body(INVALID, "unsupported_parameter"), "refused"),
        (404, error_body(INVALID, "model_not_found"), "refused"),
        (422, b'{"detail": [{"loc": ["body"]}]}', "refused"),
        (401, error_body(INVALID, "invalid_api_key"), "auth"),
        (402, error_body(None, 402, "Insufficient Balance"), "spend_cap"),
        (403, error_body("request_forbidden", "unsupported_country_region_territory"), "auth"),
        (500, error_body("server_error", None), "server_error"),
        (503, error_body("service_unavailable_error", "server_is_overloaded"), "overloaded"),
        (503, error_body("server_error", "slow_down"), "accelerated"),
        (503, error_body(None, None, "The engine is currently overloaded"), "overloaded"),
        (503, b"upstream connect error", "server_error"),
        (502, b"<html>no", "server_error"),
        (408, b"", "server_error"),
        (529, b"", "overloaded"),
        (302, b"", "refused"),
        (400, b'{"object":"error","message":"no","type":"BadRequestError","code":400}', "refused"),
        (400, b'{"error":"no"}', "refused"),
        (429, b'[{"error":{"code":429,"message":"no","status":"EXHAUSTED"}}]', "rate_limited"),
        (500, b"[]", "server_error"),
        (500, b"\xff" + b"[" * 5_000, "server_error"),
    ],
)
async def test_error_statuses(status: int, body: bytes, kind: ErrorKind) -> None:
    error, student = await fails(Peer(answers(status, body, ("retry-after", "5"))))
    assert (error.kind, error.status, error.retry_after_s) == (kind, status, 5.0)
    assert not error.tokens_shown
    assert not student.starts
    assert str(error).startswith(f"gpt answered {status}")
    assert len(str(error)) < 400
    if b'"no"' in body:
        assert "no" in str(error)


async def test_insufficient_quota_is_not_to_be_waited_for() -> None:
    """It is no rate limit, and the resets in its headers mean nothing."""
    peer = Peer(
        answers(
            429,
            error_body("insufficient_quota", "insufficient_quota"),
            ("x-ratelimit-remaining-requests", "99"),
            ("x-ratelimit-reset-requests", "6ms"),
        )
    )
    error, _ = await fails(peer)
    assert (error.kind, error.retry_after_s) == ("spend_cap", None)


@pytest.mark.parametrize(
    ("parts", "kind", "shown"),
    [
        ((START,), "cut", False),
        ((START, text("We")), "cut", True),
        ((START, text("We"), DONE), "cut", True),
        ((START, text("We"), USAGE), "cut", True),
        ((START, text("We") + finish("tool_calls")), "cut", True),
        ((START, text("We") + finish("insufficient_system_resource")), "cut", True),
        ((START, text("We") + finish("content_filter")), "filtered", True),
        ((START, finish("content_filter")), "filtered", False),
        ((START, text("We") + b'data: {"choices":[{"delta":{"con\n\n'), "malformed", True),
        ((b"data: [1]\n\n",), "malformed", False),
        ((b"data: \xff\xfe\n\n",), "malformed", False),
        ((chunk({"content": ["We"]}),), "malformed", False),
        ((b"data: " + b"x" * 300_000,), "malformed", False),
        ((START, text("We"), b": ping\n\n" * 600_000), "malformed", True),
        ((b"<html>200 OK</html>",), "cut", False),
    ],
)
async def test_answers_that_are_not_whole(
    parts: tuple[bytes, ...], kind: ErrorKind, shown: bool
) -> None:
    """Text that came with the fault, or before it, has been shown."""
    error, student = await fails(Peer(streams(*parts)))
    assert error.kind == kind
    assert error.tokens_shown is shown
    assert student.texts == (["We"] if shown else [])


@pytest.mark.parametrize("parts", [(), (START, text("We"))])
async def test_silence(parts: tuple[bytes, ...]) -> None:
    error, student = await fails(Peer(streams(*parts, whole=False)))
    assert error.kind == "stalled"
    assert error.tokens_shown is bool(student.texts) is bool(parts)


@pytest.mark.parametrize("last", [finish() + USAGE + DONE, finish() + USAGE, finish()])
async def test_a_whole_answer_is_whole_though_the_stream_does_not_end(last: bytes) -> None:
    peer = Peer(streams(START, text("done"), last, whole=False))
    async with open_pool_to(peer) as pool:
        begun = trio.current_time()
        assert (await open_provider(SETTINGS, pool).stream(PROMPT, Student())).text == "done"
        assert trio.current_time() - begun < 1.5
    assert peer.resets == [CANCEL]


async def test_done_without_an_end_is_not_waited_for() -> None:
    begun = trio.current_time()
    error, _ = await fails(Peer(streams(START, text("We"), DONE, whole=False)))
    assert (error.kind, error.tokens_shown) == ("cut", True)
    assert trio.current_time() - begun < 1.5


async def test_cancelled_at_any_step_nothing_goes_on_at_the_provider() -> None:
    peer = Peer(streams(START, text("We"), text("ll"), end()), connect_s=0.1)
    whole = False
    for step in range(1, 100):
        async with open_pool_to(peer) as pool:
            with cancel_at_step(step) as scope:
                await open_provider(SETTINGS, pool).stream(PROMPT, Student())
            whole = not scope.cancelled_caught
            assert pool.statistics().streams == pool.statistics().waiting == 0
        assert peer.streams_open == 0
        if whole:
            break
    assert whole
    assert set(peer.resets) == {CANCEL}


# -- answers in one piece --------------------------------------------------------------------------


def message(finish_reason: str | None = "stop", **fields: object) -> bytes:
    known = {"role": "assistant", "content": "{}", "refusal": None, "annotations": [], **fields}
    choice = {"index": 0, "message": known, "logprobs": None, "finish_reason": finish_reason}
    return msgspec.json.encode({"model": "gpt-1", "choices": [choice], "usage": COUNTS})


async def test_an_answer_in_one_piece() -> None:
    async with open_pool_to(Peer(answers(200, message()))) as pool:
        completion = await open_provider(SETTINGS, pool).complete(PROMPT)
    assert (completion.text, completion.model) == ("{}", "gpt-1")
    assert completion.stop_reason == "end_turn"
    assert completion.usage == Usage(348, 0, 1_152, 42)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (message(content=None, refusal="I'm sorry"), "filtered"),
        (message("content_filter"), "filtered"),
        (message(None), "cut"),
        (message("error"), "cut"),
        (message(content=None), "malformed"),
        (message(content=""), "malformed"),
        (message()[:40], "malformed"),
        (b'{"choices":[]}', "cut"),
        (b"", "malformed"),
        (b"x" * 5_000_000, "malformed"),
        (msgspec.json.encode({"error": {"code": 429, "message": "slowly"}}), "rate_limited"),
    ],
)
async def test_answers_in_one_piece_that_are_none(body: bytes, kind: ErrorKind) -> None:
    async with open_pool_to(Peer(answers(200, body))) as pool:
        with pytest.raises(ProviderError) as caught:
            await open_provider(SETTINGS, pool).complete(PROMPT)
    assert caught.value.kind == kind


async def test_an_answer_in_one_piece_that_was_cut_at_its_limit_says_so() -> None:
    async with open_pool_to(Peer(answers(200, message("length")))) as pool:
        assert (await open_provider(SETTINGS, pool).complete(PROMPT)).stop_reason == "max_tokens"


# -- when to ask again -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1s", 1.0),
        ("8.64s", 8.64),
        ("1h30m0s", 5_400.0),
        ("23h47m36.648s", 85_656.648),
        ("1m0.5s", 60.5),
        ("0s", 0.0),
        ("17", 17.0),  # Azure
        ("250µs", 0.00025),
        ("", None),
        ("soon", None),
        ("-1s", None),
        ("1x", None),
        ("1s ", None),
        ("s", None),
        ("nan", None),
        ("1m" * 50, None),
    ],
)
def test_durations(duration: str, seconds: float | None) -> None:
    assert duration_s(duration) == (pytest.approx(seconds) if seconds is not None else None)


@given(st.text() | st.from_regex(r"[0-9hmsun.µ-]{0,40}", fullmatch=True))
def test_any_duration_is_harmless(text: str) -> None:
    seconds = duration_s(text)
    assert seconds is None or seconds >= 0


DATE = ("date", "Wed, 21 Oct 2026 07:28:00 GMT")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("retry-after-ms", "1500"), ("retry-after", "9")], 1.5),
        ([("retry-after-ms", "soon"), ("retry-after", "9")], 9.0),
        ([("retry-after", "-1")], None),
        ([("retry-after", "nan")], None),
        ([("retry-after", "1e9")], 3_600.0),
        ([DATE, ("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT")], 30.0),
        ([DATE, ("retry-after", "Wed, 21 Oct 2026 07:27:30 GMT")], None),
        ([DATE, ("retry-after", "Wed, 21 Oct 2026 07:28:30")], None),
        ([DATE, ("retry-after", "tomorrow")], None),
        ([("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT")], None),
        ([("x-ratelimit-reset-requests", "1s"), ("x-ratelimit-reset-tokens", "6m0s")], 360.0),
        (
            [
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "1s"),
                ("x-ratelimit-remaining-tokens", "700"),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ],
            1.0,
        ),
        ([("x-ratelimit-reset-requests", "23h59m")], 3_600.0),
        ([("x-ratelimit-reset-tokens", "2s"), ("retry-after", "1")], 1.0),
        ([("x-ratelimit-remaining-tokens", "-1")], None),
    ],
)
async def test_when_a_rate_limit_is_to_be_asked_again(
    headers: list[tuple[str, str]], expected: float | None
) -> None:
    body = error_body("tokens", "rate_limit_exceeded")
    error, _ = await fails(Peer(answers(429, body, *headers)))
    assert (error.kind, error.retry_after_s) == ("rate_limited", expected)


def test_resets_are_for_rate_limits_only() -> None:
    headers = {"x-ratelimit-reset-tokens": "2s"}
    assert retry_after_s(headers, by_reset=False) is None
    assert retry_after_s(headers, by_reset=True) == 2.0


# -- settings --------------------------------------------------------------------------------------


async def test_a_key_that_no_header_can_hold_is_a_mistake_of_configuration() -> None:
    settings = msgspec.structs.replace(SETTINGS, api_key="secret\n")
    async with open_pool_to(Peer(streams())) as pool:
        with pytest.raises(ConfigurationError, match="provider gpt") as caught:
            open_provider(settings, pool)
    assert "secret" not in str(caught.value)


async def test_a_query_that_would_not_be_sent_is_a_mistake_of_configuration() -> None:
    """As in addresses of Azure's older API."""
    settings = msgspec.structs.replace(SETTINGS, base_url="https://provider.test/x?api-version=1")
    async with open_pool_to(Peer(streams())) as pool:
        with pytest.raises(ConfigurationError, match="provider gpt: base_url"):
            open_provider(settings, pool)


@pytest.mark.parametrize(
    ("kind", "quota", "said"),
    [
        ("openai", {"input_tokens_per_minute": 9_000}, "quota.tokens_per_minute"),
        ("openai", {"output_tokens_per_minute": 9_000}, "quota.tokens_per_minute"),
        ("openai", {"tokens_per_minute": 1_499}, "less than 1500"),
        ("anthropic", {"tokens_per_minute": 9_000}, "quota.input_tokens_per_minute"),
        ("openai", {"tokens_per_minute": 1_500, "requests_per_minute": 1}, None),
        ("openai", {}, None),
        ("openai-compatible", {"input_tokens_per_minute": 1, "tokens_per_minute": 1}, None),
    ],
)
def test_a_quota_in_another_providers_words_is_refused(
    kind: str, quota: dict[str, int], said: str | None
) -> None:
    data = {"name": "p", "kind": kind, "base_url": "https://x", "model": "m", "api_key": "k"}
    if said is None:
        msgspec.convert({**data, "quota": quota}, config.Provider)
        return
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({**data, "quota": quota}, config.Provider)
