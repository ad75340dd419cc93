"""Anthropic's Messages API over the pool: what is sent, and what becomes of every answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import attrs
import h2.errors
import msgspec
import pytest
import trio

from coach import config
from coach.errors import ConfigurationError
from coach.providers import (
    Block,
    Message,
    Pool,
    Prompt,
    Provider,
    ProviderError,
    ReceiverFailed,
    Usage,
    open_provider,
)
from coach.providers.anthropic import Anthropic
from coach.providers.failover import SPENT_S, closes_gate, hold_s
from coach.providers.records import ErrorKind
from tests.support.cancels import cancel_at_step

from .asking import Student, answers, failure_of, streams
from .peer import Exchange, Peer, open_pool_to

CANCEL = int(h2.errors.ErrorCodes.CANCEL)
SETTINGS = config.Provider(
    name="claude", base_url="https://provider.test", model="claude-test", api_key="secret"
)
PROMPT = Prompt(
    system=(Block("rules", cache=True),),
    messages=(Message("user", (Block("draft"), Block("please"))),),
    output_tokens_max=100,
)


def event(name: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": name, **fields})
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


START = event(
    "message_start",
    message={
        "model": "claude-test-1",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 30,
            "output_tokens": 1,
        },
    },
) + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
PING = event("ping")


def end(stop_reason: str = "end_turn") -> bytes:
    return (
        event("content_block_stop", index=0)
        + event("message_delta", delta={"stop_reason": stop_reason}, usage={"output_tokens": 42})
        + event("message_stop")
    )


def provider(pool: Pool) -> Provider:
    return open_provider(SETTINGS, pool)


async def fails(peer: Peer) -> tuple[ProviderError, Student]:
    return await failure_of(SETTINGS, PROMPT, peer)


async def test_an_answer_is_streamed_and_then_returned_whole() -> None:
    headers: list[Mapping[str, str]] = []
    peer = Peer(streams(START, PING, delta("Well ") + delta("done"), delta("!") + end()))
    async with open_pool_to(peer) as pool:
        student = Student()
        completion = await provider(pool).stream(PROMPT, student, on_headers=headers.append)
    assert student.starts == [("claude-test-1", Usage(10, 20, 30, 1))]
    assert student.texts == ["Well done", "!"]
    assert completion.text == "Well done!"
    assert completion.usage == Usage(10, 20, 30, 42)
    assert (completion.stop_reason, completion.model) == ("end_turn", "claude-test-1")
    assert [one["x-left"] for one in headers] == ["7"]
    assert peer.resets == []


async def test_what_is_sent_is_what_the_api_documents() -> None:
    bodies: list[Exchange] = []

    async def script(exchange: Exchange) -> None:
        bodies.append(exchange)
        await streams(START + delta("x") + end())(exchange)

    prompt = attrs.evolve(PROMPT, schema={"type": "object"}, user_id="u-1")
    async with open_pool_to(Peer(script)) as pool:
        await provider(pool).stream(prompt, Student())
    (exchange,) = bodies
    sent = {name: value for name, value in exchange.headers.items() if name != b"user-agent"}
    assert sent == {
        b":method": b"POST",
        b":scheme": b"https",
        b":authority": b"provider.test",
        b":path": b"/v1/messages",
        b"x-api-key": b"secret",
        b"anthropic-version": b"2023-06-01",
        b"content-type": b"application/json",
        b"accept": b"text/event-stream",
    }
    assert msgspec.json.decode(exchange.body) == {
        "model": "claude-test",
        "max_tokens": 100,
        "stream": True,
        "system": [{"type": "text", "text": "rules", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "draft"}, {"type": "text", "text": "please"}],
            }
        ],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "u-1"},
    }


def test_a_prompt_without_extras_sends_none() -> None:
    body = msgspec.json.decode(Anthropic().body(attrs.evolve(PROMPT, system=()), "m", stream=False))
    assert sorted(body) == ["max_tokens", "messages", "model", "stream"]


ERROR = '{"type":"error","error":{"type":"%s","message":"%s"}}'


@pytest.mark.parametrize(
    ("status", "kind_sent", "message", "kind"),
    [
        (400, "invalid_request_error", "messages: empty", "refused"),
        (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", "too_long"),
        (401, "authentication_error", "invalid x-api-key", "auth"),
        (402, "billing_error", "pay", "spend_cap"),
        (
            400,
            "invalid_request_error",
            "You have reached your specified API usage limits. You w",
            "spend_cap",
        ),
        (400, "invalid_request_error", "Your credit balance is too low to access", "spend_cap"),
        (429, "rate_limit_error", "maximum usage increase rate for input tokens", "accelerated"),
        (403, "permission_error", "no", "auth"),
        (404, "not_found_error", "model: m", "refused"),
        (413, "request_too_large", "", "too_long"),
        (429, "rate_limit_error", "slowly", "rate_limited"),
        (500, "api_error", "oops", "server_error"),
        (503, "", "", "server_error"),
        (504, "timeout_error", "late", "server_error"),
        (529, "overloaded_error", "Overloaded", "overloaded"),
        (302, "", "", "refused"),
    ],
)
async def test_error_statuses(status: int, kind_sent: str, message: str, kind: ErrorKind) -> None:
    body = (ERROR % (kind_sent, message)).encode() if kind_sent else b"<html>no"
    peer = Peer(answers(status, body, ("retry-after", "5")))
    for call in ("stream", "complete"):
        headers: list[Mapping[str, str]] = []
        async with open_pool_to(peer) as pool:
            endpoint = provider(pool)
            ask = partial(endpoint.stream, PROMPT, Student())
            if call == "complete":
                ask = partial(endpoint.complete, PROMPT)
            with pytest.raises(ProviderError) as caught:
                await ask(on_headers=headers.append)
        error = caught.value
        assert (error.kind, error.status, error.retry_after_s) == (kind, status, 5.0)
        assert not error.tokens_shown
        assert message in str(error)
        assert [one["retry-after"] for one in headers] == ["5"]


async def test_a_monthly_cap_is_no_rate_limit() -> None:
    """It comes as one, without a retry-after; only its details tell."""
    body = (
        b'{"type":"error","error":{"type":"rate_limit_error","message":"no",'
        b'"details":{"error_code":"enforced_spend_limit_reached"}}}'
    )
    error, _ = await fails(Peer(answers(429, body)))
    assert (error.kind, error.retry_after_s) == ("spend_cap", None)
    assert hold_s(error) == SPENT_S
    assert not closes_gate(error.kind)


@pytest.mark.parametrize(
    ("after", "expected"),
    [("", None), ("soon", None), ("-1", None), ("nan", None), ("1e9", 3600.0), ("0.5", 0.5)],
)
async def test_an_odd_retry_after_is_not_believed(after: str, expected: float | None) -> None:
    error, _ = await fails(Peer(answers(429, b"", ("retry-after", after))))
    assert (error.kind, error.retry_after_s) == ("rate_limited", expected)


@pytest.mark.parametrize(
    ("parts", "kind", "shown"),
    [
        ((START,), "cut", False),
        ((START, delta("We")), "cut", True),
        ((START, delta("We"), event("message_stop")), "cut", True),
        ((START, delta("We") + end("refusal")), "filtered", True),
        ((START, end("refusal")), "filtered", False),
        ((START, delta("We") + b'event: x\ndata: {"type":"con\n\n'), "malformed", True),
        ((b"data: {}\n\n",), "malformed", False),
        ((b"data: \xff\xfe\n\n",), "malformed", False),
        ((event("message_start"),), "malformed", False),
        ((b"data: " + b"x" * 300_000,), "malformed", False),
        (
            (START, delta("We") + event("error", error={"type": "overloaded_error"})),
            "overloaded",
            True,
        ),
        ((START, event("error", error={"type": "rate_limit_error"})), "rate_limited", False),
        ((START, event("error", error={"type": "api_error"})), "server_error", False),
        ((START, event("error")), "server_error", False),
        ((START, delta("We"), PING * 150_000), "malformed", True),
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


@pytest.mark.parametrize(
    ("parts", "kind", "limit_s"), [((), "stalled", 20), ((START, delta("We")), "stalled", 20)]
)
async def test_silence(parts: tuple[bytes, ...], kind: ErrorKind, limit_s: float) -> None:
    begun = trio.current_time()
    peer = Peer(streams(*parts, whole=False))
    error, student = await fails(peer)
    assert error.kind == kind
    assert error.tokens_shown is bool(student.texts) is bool(parts)
    assert trio.current_time() - begun == pytest.approx(limit_s, abs=0.2)
    assert peer.resets == [CANCEL]


async def test_pings_are_no_silence() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.data(START)
        for _ in range(20):
            await trio.sleep(10)
            await exchange.data(PING)
        await exchange.data(delta("late") + end(), end=True)

    async with open_pool_to(Peer(script)) as pool:
        assert (await provider(pool).stream(PROMPT, Student())).text == "late"


async def test_a_lost_connection_is_cut_for_all_and_nothing_is_a_success() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.data(START + delta("We"))
        if peer.requests == 10:
            await trio.sleep(1)
            await trio.aclose_forcefully(exchange.connection.stream)
        await trio.sleep_forever()

    peer, kinds = Peer(script), []

    async def ask(pool: Pool) -> None:
        with pytest.raises(ProviderError) as caught:
            await provider(pool).stream(PROMPT, Student())
        kinds.append((caught.value.kind, caught.value.tokens_shown))

    async with open_pool_to(peer) as pool, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask, pool)
    assert kinds == [("cut", True)] * 10


async def test_a_whole_answer_is_whole_though_the_stream_does_not_end() -> None:
    peer = Peer(streams(START, delta("done"), end(), whole=False))
    async with open_pool_to(peer) as pool:
        begun = trio.current_time()
        assert (await provider(pool).stream(PROMPT, Student())).text == "done"
        assert trio.current_time() - begun < 1.5
    assert peer.resets == [CANCEL]


async def test_no_connection_is_unreachable() -> None:
    error, _ = await fails(Peer(streams(), refuses=True))
    assert error.kind == "unreachable"


async def test_a_sink_that_raises_loses_its_own_answer() -> None:
    peer = Peer(streams(START, delta("We"), end()))
    async with open_pool_to(peer) as pool:
        with pytest.raises(ReceiverFailed) as caught:
            await provider(pool).stream(PROMPT, Student(raises=True))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (await provider(pool).stream(PROMPT, Student())).text == "We"
    assert peer.resets == [CANCEL]


def message(**fields: object) -> bytes:
    content = [{"type": "text", "text": "{"}, {"type": "other"}, {"type": "text", "text": "}"}]
    usage = {"input_tokens": 1, "cache_read_input_tokens": None, "output_tokens": 2}
    known = {"model": "m-1", "content": content, "usage": usage, "stop_reason": "end_turn"}
    return msgspec.json.encode({**known, **fields})


async def test_an_answer_in_one_piece() -> None:
    async with open_pool_to(Peer(answers(200, message()))) as pool:
        completion = await provider(pool).complete(PROMPT)
    assert (completion.text, completion.model, completion.stop_reason) == ("{}", "m-1", "end_turn")
    assert completion.usage == Usage(1, 0, 0, 2)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (message(stop_reason="refusal"), "filtered"),
        (message(stop_reason=None), "cut"),
        (message()[:40], "malformed"),
        (b"", "malformed"),
        (b"x" * 5_000_000, "malformed"),
    ],
)
async def test_answers_in_one_piece_that_are_none(body: bytes, kind: ErrorKind) -> None:
    async with open_pool_to(Peer(answers(200, body))) as pool:
        with pytest.raises(ProviderError) as caught:
            await provider(pool).complete(PROMPT)
    assert caught.value.kind == kind


async def test_a_body_shorter_than_its_content_length_is_cut() -> None:
    length = ("content-length", str(len(message())))
    async with open_pool_to(Peer(answers(200, message()[:40], length))) as pool:
        with pytest.raises(ProviderError) as caught:
            await provider(pool).complete(PROMPT)
    assert caught.value.kind == "cut"


async def test_a_key_that_no_header_can_hold_is_a_mistake_of_configuration() -> None:
    settings = msgspec.structs.replace(SETTINGS, api_key="secret\n")
    async with open_pool_to(Peer(streams())) as pool:
        with pytest.raises(ConfigurationError, match="provider claude") as caught:
            open_provider(settings, pool)
    assert "secret" not in str(caught.value)


async def test_cancelled_at_any_step_nothing_goes_on_at_the_provider() -> None:
    peer = Peer(streams(START, delta("We"), delta("ll"), end()), connect_s=0.1)
    whole = False
    for step in range(1, 100):
        async with open_pool_to(peer) as pool:
            with cancel_at_step(step) as scope:
                await provider(pool).stream(PROMPT, Student())
            whole = not scope.cancelled_caught
            assert pool.statistics().streams == pool.statistics().waiting == 0
        assert peer.streams_open == 0
        if whole:
            break
    assert whole
    assert set(peer.resets) == {CANCEL}
