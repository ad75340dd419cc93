"""What the failover tests ask of a stack with two providers: one turn, who paid, what is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from coach.grading import load_rubric
from coach.simulator.answers import compose, lengthened
from coach.simulator.dialect import Request
from coach.store import open_redis
from tests.support.stack import Stack, Student, open_stack

FIRST, SECOND = "simulator", "second"
NAMES: Final = (FIRST, SECOND)
DRAFT: Final = (
    "The sea was calm that day, and nobody on the pier believed that it would stay so. " * 3
)
EVENTS_MIN: Final = {FIRST: 300, SECOND: 60}
"""Of an answer: each provider's text is of its own length, so that none passes for the other's."""
LATE_S: Final = 1.0
STALL_S: Final = 0.8
FAULTS_MAX: Final = 3
WAIT_S: Final = 8.0
"""For what other processes do soon."""

_QUICK = ("--ttft-ms", "30", "--ttft-jitter-ms", "3", "--judge-ms", "100", "--events-per-s", "800")
_ROOM = "feedback_output_tokens_max = 4000"
_SETTINGS = f"""
[failover]
first_token_s_min = {LATE_S}
first_token_s_max = {LATE_S}
stall_s_max = {STALL_S}
faults_max = {FAULTS_MAX}
open_s = 0.3
open_s_max = 0.6
ramp_step_s = 0.2
[limits]
user_requests_per_minute = 100000
user_tokens_per_minute = 1000000000
org_requests_per_minute = 100000
org_tokens_per_minute = 1000000000
[grading]
retry_s_max = 1
"""


@contextmanager
def stack_beside(data_dir: Path) -> Iterator[Stack]:
    """Two providers, a worker and a grader, for tests that each have a run of their own.

    A run of trio in a thread holds them. The kernel ends them with that thread, which ends with
    the block.
    """
    opened: list[Stack] = []
    failures: list[BaseException] = []
    is_open, may_end = threading.Event(), threading.Event()

    async def hold() -> None:
        async with open_stack(
            data_dir,
            settings=_SETTINGS,
            simulator=(*_QUICK, "--feedback-events-min", str(EVENTS_MIN[FIRST])),
            provider=_ROOM,
            second=(*_QUICK, "--feedback-events-min", str(EVENTS_MIN[SECOND])),
            second_provider=_ROOM,
        ) as stack:
            opened.append(stack)
            is_open.set()
            await trio.to_thread.run_sync(may_end.wait)

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as error:  # noqa: ASYNC103  raised by whoever waits
            failures.append(error)
        finally:
            is_open.set()

    thread = threading.Thread(target=run, name="stack")
    thread.start()
    try:
        is_open.wait()
        if opened:
            yield opened[0]
    finally:
        may_end.set()
        thread.join()
    if failures:
        raise failures[0]


def answer_of(provider: str) -> str:
    """What a provider without a fault says to `DRAFT`, whole."""
    request = Request(
        model="sim-1",
        blocks=(),
        system=load_rubric(None).as_text(),
        conversation=(("user", f"<essay>\n{DRAFT}\n</essay>\nPlease comment on my draft."),),
        output_tokens_max=1,
        stream=True,
        schema=None,
    )
    return "".join(lengthened(compose(request, None), EVENTS_MIN[provider]).pieces)


@attrs.frozen
class Seen:
    """One turn as the student saw it."""

    story: tuple[str, ...]
    """Messages in order with what matters of them; deltas in a row are one `text`."""
    text: str
    """What stood on the page in the end."""
    last: Mapping[str, object]
    """The message that ended it."""

    @property
    def usage(self) -> dict[str, float]:
        """Of `done`."""
        usage = self.last["usage"]
        assert isinstance(usage, dict)
        return usage


async def one_turn(stack: Stack, student: Student | None = None, request: str = "r") -> Seen:
    """Ask for feedback on `DRAFT`; a new student's, where none is given. Nothing may follow it."""
    if student is None:
        async with stack.student() as someone:
            return await one_turn(stack, someone, request)
    story: list[str] = []
    text = ""
    await student.ask(request, text=DRAFT)
    while True:
        with trio.fail_after(WAIT_S):
            message = await student.receive()
        kind = str(message["type"])
        assert message["request"] == request
        if kind == "delta":
            text += str(message["text"])
            if story[-1:] != ["text"]:
                story.append("text")
            continue
        if kind == "restarted":
            text = ""
        told = [message.get(key) for key in ("provider", "reason", "code")]
        story.append(" ".join([kind, *(str(each) for each in told if each)]))
        if kind in {"done", "error"}:
            return Seen(tuple(story), text, message)


@attrs.frozen
class Books:
    """What one provider has counted, and what coach has booked on it."""

    requests: float
    tokens: Mapping[str, float]
    """By kind, as the provider's answers tell."""
    booked: Mapping[str, float]
    """By kind, `coach_tokens_total`."""
    cancelled: float
    """Streams that coach has reset."""

    @classmethod
    async def of(cls, stack: Stack, provider: str) -> Books:
        """As they stand."""
        stats = await stack.providers[provider].stats()
        kinds = ("input", "cache_write", "cache_read", "output")
        tokens = {kind: stats[f"{kind}_tokens"] for kind in kinds}
        if provider == SECOND:  # it speaks Chat Completions: what fills the cache is input as any
            tokens["input"] += tokens["cache_write"]
            tokens["cache_write"] = 0.0
        return cls(
            requests=stats["requests"] - stats["judge_requests"],
            tokens=tokens,
            booked={
                kind: await stack.metric("coach_tokens_total", provider=provider, kind=kind)
                for kind in kinds
            },
            cancelled=stats["streams_cancelled"],
        )

    def since(self, before: Books) -> Books:
        """The difference."""
        return Books(
            requests=self.requests - before.requests,
            tokens={kind: count - before.tokens[kind] for kind, count in self.tokens.items()},
            booked={kind: count - before.booked[kind] for kind, count in self.booked.items()},
            cancelled=self.cancelled - before.cancelled,
        )


async def books_of(stack: Stack) -> dict[str, Books]:
    """Both providers'."""
    return {name: await Books.of(stack, name) for name in NAMES}


async def until_settled(stack: Stack) -> None:
    """Wait until nothing is reserved and no stream is open at either provider."""
    with trio.fail_after(WAIT_S):
        async with open_redis(stack.redis.url) as redis:
            for name in NAMES:
                tickets = b"admitted"
                while tickets:
                    found = await redis.execute_command("HVALS", f"tickets:{{{name}}}")
                    tickets = b" ".join(each for each in found if not each.startswith(b"ended"))
                    await trio.sleep(0.01)
                while (await stack.providers[name].stats())["streams_open"]:  # noqa: ASYNC110
                    await trio.sleep(0.01)


async def breaker(stack: Stack, provider: str) -> dict[str, str]:
    """Its record in Redis; one that is not there is closed."""
    async with open_redis(stack.redis.url) as redis:
        flat = await redis.execute_command("HGETALL", f"circuit:{{{provider}}}")
        now_s = int((await redis.execute_command("TIME"))[0])
    pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
    record = {key.decode(): value.decode() for key, value in pairs}
    hold_s = max(0, int(record.get("hold", "0")) // 1000 - now_s)
    return {
        "state": record.get("state", "closed"),
        "faults": record.get("faults", "0"),
        "bad": record.get("bad", "0"),
        "hold": "held" if hold_s else "",
    }


async def until_breaker(stack: Stack, provider: str, **fields: str) -> None:
    """Wait until its record says so: workers report in the background."""
    record: dict[str, str] = {}
    with trio.move_on_after(WAIT_S):
        while True:
            record = await breaker(stack, provider)
            if fields.items() <= record.items():
                return
            await trio.sleep(0.02)
    raise AssertionError(f"the breaker of {provider} is {record}, not {fields}")


async def until_share(stack: Stack, provider: str, share: float) -> None:
    """Wait until the worker's gauge, which is a second behind, says so."""
    name = "coach_circuit_share_ratio"
    with trio.fail_after(WAIT_S):
        while await stack.metric(name, endpoint=provider) != share:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def recover(stack: Stack) -> None:
    """End all faults, forget what breakers and gates know, and see the first provider answer.

    A worker that was told to wait believes it for as long as it was told, and hears otherwise with
    its next report: so the second provider refuses until the first was asked all the same.
    """
    await stack.providers[FIRST].control(faults={})
    with trio.fail_after(WAIT_S):
        while True:
            async with open_redis(stack.redis.url) as redis:
                for name in NAMES:
                    await redis.execute_command("DEL", f"circuit:{{{name}}}")
                    await redis.execute_command("HDEL", f"spend:{{{name}}}", "gate")
            if (await one_turn(stack)).story[0] == f"started {FIRST}":
                break
            await stack.providers[SECOND].control(faults={"bad_parameter": {"next": 1}})
            await one_turn(stack)
            await stack.providers[SECOND].control(faults={})
    await stack.providers[SECOND].control(faults={})
    await until_settled(stack)
