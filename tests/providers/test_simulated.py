"""Both providers against the simulator that speaks their protocol, on real TLS connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import attrs
import httpx
import msgspec
import pytest

from coach import config
from coach.providers import (
    Conversation,
    Pool,
    Prompt,
    Provider,
    ProviderError,
    feedback_prompt,
    judge_prompt,
)
from coach.providers import open_pool as open_coach_pool
from coach.providers import open_provider as open_coach_provider
from coach.providers.records import ErrorKind
from coach.simulator.authority import CA_NAME
from coach.simulator.completions import Completions
from coach.simulator.faults import FaultName, Rule
from coach.simulator.messages import Messages
from coach.simulator.provider import Provider as Simulator
from coach.simulator.provider import open_provider as open_simulator
from coach.simulator.settings import Settings

from .asking import Student

pytestmark = pytest.mark.real_time

Kind = Literal["anthropic", "openai", "openai-compatible"]
KINDS: tuple[Kind, ...] = ("anthropic", "openai", "openai-compatible")
RUBRIC = "content (Content, 100 %)\n" + "  0: nothing to be seen of it\n" * 200
ESSAY = "My sister has a dog. It barks all night and nobody sleeps."
SCHEMA = {
    "type": "object",
    "properties": {"content": {"type": "integer", "enum": [0, 1, 2, 3]}},
    "required": ["content"],
    "additionalProperties": False,
}
ASKED = feedback_prompt(
    rubric=RUBRIC,
    assignment="Dogs",
    question=Conversation().ask(ESSAY, None, now_s=0.0),
    output_tokens_max=300,
)
JUDGED = judge_prompt(
    rubric=RUBRIC, assignment="Dogs", essay=ESSAY, schema=SCHEMA, output_tokens_max=300
)


@attrs.frozen
class Place:
    """A simulator, coach's pool to it, and a provider."""

    simulator: Simulator
    pool: Pool
    provider: Provider
    ca_file: str

    async def stats(self) -> dict[str, float]:
        async with httpx.AsyncClient(transport=self.pool) as client:
            numbers: dict[str, float] = (await client.get(f"{self.simulator.url}/stats")).json()
        return numbers


@asynccontextmanager
async def place(
    path: Path, kind: Kind, faults: dict[FaultName, Rule] | None = None, **settings: object
) -> AsyncIterator[Place]:
    quick = {"ttft_ms": 10, "ttft_jitter_ms": 0, "events_per_s": 2_000, "judge_ms": 10}
    dialect = Messages() if kind == "anthropic" else Completions()
    async with open_simulator(
        msgspec.convert({**quick, **settings}, Settings),
        faults or {},
        data_dir=path,
        dialect=dialect,
    ) as simulator:
        provider = config.Provider(
            name="p",
            kind=kind,
            base_url=simulator.url,
            model="sim-1",
            api_key="k",
            ca_file=str(path / CA_NAME),
        )
        all_settings = config.Settings(provider=(provider,), pool=config.Pool(stall_s_max=0.3))
        async with open_coach_pool(all_settings) as pool:
            one = open_coach_provider(provider, pool)
            yield Place(simulator, pool, one, str(path / CA_NAME))


@pytest.mark.parametrize("kind", KINDS)
async def test_feedback_and_a_grade(tmp_path: Path, kind: Kind) -> None:
    student = Student()
    async with place(tmp_path, kind) as here:
        completion = await here.provider.stream(ASKED, student)
        grade = await here.provider.complete(JUDGED)
        again = await here.provider.complete(JUDGED)
        stats = await here.stats()
    assert "".join(student.texts) == completion.text
    assert "[Content] «" in completion.text
    assert (completion.stop_reason, completion.model) == ("end_turn", "sim-1")
    assert msgspec.json.decode(grade.text).keys() == {"content"}
    assert again.usage.cache_read > 1_000  # of a prompt of some 1,500
    assert again.usage.input > 0
    usages = [completion.usage, grade.usage, again.usage]
    read = sum(usage.input + usage.cache_write + usage.cache_read for usage in usages)
    counted = ("input_tokens", "cache_write_tokens", "cache_read_tokens")
    assert read == sum(stats[name] for name in counted)
    assert sum(usage.output for usage in usages) == stats["output_tokens"]
    assert stats["handshakes"] <= 2


FAULTS: list[tuple[FaultName, ErrorKind, ErrorKind]] = [
    ("rate_limited", "rate_limited", "rate_limited"),
    ("spend_limit", "spend_cap", "spend_cap"),
    ("server_error", "server_error", "server_error"),
    ("overloaded", "overloaded", "overloaded"),
    ("unavailable", "server_error", "server_error"),
    ("too_long", "too_long", "too_long"),
    ("bad_parameter", "refused", "refused"),
    ("reset", "unreachable", "unreachable"),
    ("cut", "cut", "cut"),
    ("disconnect", "cut", "cut"),
    ("stall", "stalled", "stalled"),
    ("malformed", "malformed", "malformed"),
    ("error_event", "overloaded", "server_error"),
    ("no_end", "cut", "cut"),
    ("filtered", "filtered", "filtered"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
@pytest.mark.parametrize("kind", ["anthropic", "openai"])
async def test_what_becomes_of_every_fault(
    tmp_path: Path, kind: Kind, fault: tuple[FaultName, ErrorKind, ErrorKind]
) -> None:
    """Each has the kind that says what to do about it, and the next request is answered."""
    name, with_anthropic, with_openai = fault
    student = Student()
    async with place(tmp_path, kind, {name: Rule(next=1)}) as here:
        with pytest.raises(ProviderError) as caught:
            await here.provider.stream(ASKED, student)
        assert caught.value.kind == (with_anthropic if kind == "anthropic" else with_openai)
        assert caught.value.retry_after_s == (5.0 if name == "rate_limited" else None)
        assert caught.value.tokens_shown is bool(student.texts)
        assert (await here.provider.complete(ASKED)).text


async def test_what_openai_counts_is_told_in_its_headers(tmp_path: Path) -> None:
    """And what is refused says when to come back, to the millisecond."""
    heads: list[dict[str, str]] = []
    async with place(tmp_path, "openai", tokens_per_minute=6_000) as here:
        await here.provider.complete(ASKED, on_headers=lambda head: heads.append(dict(head)))
        await here.provider.complete(ASKED)
        with pytest.raises(ProviderError) as caught:
            await here.provider.complete(ASKED)
    assert heads[0]["x-ratelimit-limit-tokens"] == "6000"
    assert caught.value.kind == "rate_limited"
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s < 60


async def test_a_prompt_that_no_minute_holds_is_too_long(tmp_path: Path) -> None:
    async with place(tmp_path, "openai", tokens_per_minute=500) as here:
        with pytest.raises(ProviderError) as caught:
            await here.provider.complete(JUDGED)
    assert (caught.value.kind, caught.value.retry_after_s) == ("too_long", None)


async def test_another_prompt_of_the_class_reads_what_the_first_has_written(
    tmp_path: Path,
) -> None:
    """The key is that of the system prompt, whoever asks."""
    other: Prompt = attrs.evolve(
        judge_prompt(
            rubric=RUBRIC, assignment="Dogs", essay="Cats!", schema=SCHEMA, output_tokens_max=300
        ),
        user_id="another",
    )
    async with place(tmp_path, "openai") as here:
        await here.provider.complete(JUDGED)
        assert (await here.provider.complete(other)).usage.cache_read > 1_000
