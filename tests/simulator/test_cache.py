"""The prompt cache: what is read, written or neither, and when an entry begins and dies."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.cache import CacheBlock, PromptCache

from .support import Bench, FakeExchange, question

TTL_S = 300.0


def block(text: str, tokens: int, *, ends: bool = False, hour: bool = False) -> CacheBlock:
    return CacheBlock(text, tokens, breakpoint=ends, hour=hour)


RUBRIC = block("rubric", 2_000, ends=True)
TASK = block("task", 500, ends=True)


def cache() -> PromptCache:
    return PromptCache(ttl_s=TTL_S, tokens_min=1_024)


def test_a_prefix_is_written_once_and_read_afterwards() -> None:
    prompts = cache()
    first = prompts.plan("m", [RUBRIC, TASK, block("essay 1", 300)], 0)
    prompts.commit(first, 0)
    second = prompts.plan("m", [RUBRIC, TASK, block("essay 2", 400)], 1)

    assert (first.read, first.write, first.uncached) == (0, 2_500, 300)
    assert (second.read, second.write, second.uncached) == (2_500, 0, 400)


def test_a_read_refreshes_what_stands_before_it() -> None:
    prompts = cache()
    turns = [block("essay", 300, ends=True), block("more", 100, ends=True)]
    for now, count in ((0, 1), (200, 2)):
        plan = prompts.plan("m", [RUBRIC, TASK, *turns[:count]], now)
        prompts.touch(plan, now)
        prompts.commit(plan, now)
    assert prompts.plan("m", [RUBRIC, TASK, block("another", 300)], 450).read == 2_500


def test_an_entry_exists_only_once_the_first_response_has_begun() -> None:
    prompts = cache()
    prompts.commit(prompts.plan("m", [RUBRIC], 0), 5)

    assert prompts.plan("m", [RUBRIC], 5).read == 2_000
    assert cache().plan("m", [RUBRIC], 0).write == cache().plan("m", [RUBRIC], 1).write == 2_000


def test_a_shorter_prefix_is_read_when_the_rest_differs() -> None:
    prompts = cache()
    prompts.commit(prompts.plan("m", [RUBRIC, TASK], 0), 0)
    other = prompts.plan("m", [RUBRIC, block("other task", 600, ends=True)], 1)

    assert (other.read, other.write, other.uncached) == (2_000, 600, 0)


def test_what_differs_at_the_beginning_or_by_model_reads_nothing() -> None:
    prompts = cache()
    prompts.commit(prompts.plan("m", [RUBRIC, TASK], 0), 0)

    assert prompts.plan("m", [block("rubriC", 2_000), TASK], 1).read == 0
    assert prompts.plan("other", [RUBRIC, TASK], 1).read == 0


def test_short_prefixes_are_not_cached() -> None:
    prompts = cache()
    plan = prompts.plan("m", [block("short", 1_023, ends=True)], 0)
    prompts.commit(plan, 0)

    assert (plan.write, plan.uncached, len(prompts)) == (0, 1_023, 0)


def test_every_read_prolongs_the_life_of_an_entry() -> None:
    prompts = cache()
    prompts.commit(prompts.plan("m", [RUBRIC], 0), 0)
    for now in (299, 598):
        plan = prompts.plan("m", [RUBRIC], now)
        assert plan.read == 2_000
        prompts.touch(plan, now)

    assert prompts.plan("m", [RUBRIC], 898).read == 0
    assert len(prompts) == 0


def test_an_entry_may_be_asked_to_live_for_an_hour() -> None:
    prompts = cache()
    plan = prompts.plan("m", [block("rubric", 2_000, ends=True, hour=True), TASK], 0)
    prompts.commit(plan, 0)

    assert (plan.write, plan.write_hour) == (2_500, 2_000)
    assert prompts.plan("m", [block("rubric", 2_000, ends=True), TASK], 3_599).read == 2_000


def test_entries_are_found_at_most_20_blocks_before_a_breakpoint() -> None:
    prompts = cache()
    prompts.commit(prompts.plan("m", [RUBRIC], 0), 0)

    def later(blocks: int) -> int:
        rest = [block(f"turn {index}", 10) for index in range(blocks - 1)]
        return prompts.plan(
            "m", [block("rubric", 2_000), *rest, block("last", 10, ends=True)], 1
        ).read

    assert (later(19), later(20)) == (2_000, 0)


def test_the_number_of_entries_is_bounded() -> None:
    prompts = PromptCache(ttl_s=TTL_S, tokens_min=1, entries_max=3)
    for index in range(5):
        prompts.commit(prompts.plan("m", [block(str(index), 10, ends=True)], 0), 0)

    assert len(prompts) == 3
    assert [prompts.plan("m", [block(str(index), 10, ends=True)], 1).read for index in (1, 2)] == [
        0,
        10,
    ]


blocks = st.lists(
    st.builds(
        block, st.sampled_from("abc"), st.integers(1, 50), ends=st.booleans(), hour=st.booleans()
    ),
    max_size=8,
)


@given(st.lists(st.tuples(blocks, st.integers(0, 400), st.booleans()), max_size=12))
def test_reads_writes_and_the_rest_make_up_the_prompt(
    requests: list[tuple[list[CacheBlock], int, bool]],
) -> None:
    prompts, now = PromptCache(ttl_s=TTL_S, tokens_min=20), 0
    for prompt, pause, begins in requests:
        now += pause
        plan = prompts.plan("m", prompt, now)
        assert plan.read + plan.write + plan.uncached == sum(each.tokens for each in prompt)
        assert 0 <= plan.write_hour <= plan.write
        assert min(plan.read, plan.uncached) >= 0
        prompts.touch(plan, now)
        if begins:
            prompts.commit(plan, now)
            again = prompts.plan("m", prompt, now)
            assert again.write == 0 or again.read > 0


# --- over the API -----------------------------------------------------------------------------


def with_rubric(text: str) -> dict[str, Any]:
    system = [{"type": "text", "text": "rubric " * 1_000, "cache_control": {"type": "ephemeral"}}]
    return question(text, system=system)


def usage(exchange: FakeExchange) -> tuple[int, int]:
    used = exchange.events[0][1]["message"]["usage"]
    return used["cache_creation_input_tokens"], used["cache_read_input_tokens"]


def test_a_class_that_starts_together_pays_for_every_write_and_later_ones_for_none() -> None:
    bench = Bench()
    together = [bench.ask(with_rubric(f"Text {index}.")) for index in range(3)]
    bench.run(0.099)
    early = bench.ask(with_rubric("Text 4."))
    bench.run(0.101)
    late = bench.ask(with_rubric("Text 5."))
    bench.run(1)

    assert {usage(exchange) for exchange in (*together, early)} == {(1_750, 0)}
    assert usage(late) == (0, 1_750)
    stats = bench.stats()
    assert (stats["cache_write_tokens"], stats["cache_read_tokens"]) == (4 * 1_750, 1_750)
    assert stats["cache_entries"] == 1


def test_a_request_that_is_cancelled_before_its_answer_leaves_no_entry() -> None:
    bench = Bench()
    exchange = bench.ask(with_rubric("A text."))
    assert exchange.work is not None
    exchange.work.cancelled(by_reset=True)
    bench.run(1)
    again = bench.ask(with_rubric("A text."))
    bench.run(1)

    assert usage(again) == (1_750, 0)


def test_the_end_of_a_stream_repeats_what_was_read_and_written() -> None:
    bench = Bench()
    exchange = bench.ask(with_rubric("A text."))
    bench.run(30)
    final = next(data["usage"] for name, data in exchange.events if name == "message_delta")

    assert (final["cache_creation_input_tokens"], final["cache_read_input_tokens"]) == (1_750, 0)
    assert final["input_tokens"] > 0
    assert final["output_tokens"] == bench.stats()["output_tokens"]
