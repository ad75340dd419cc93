"""The queue on a real Valkey: every operation, and what it refuses.

Each test has a server of its own; leases and delays are ended by hand, not by waiting.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from coach.errors import BadMessage, Conflict, Forbidden, Overloaded
from coach.grading.jobs import Claim, LaneStatistics, Receiver
from coach.grading.queue import Queue
from coach.grading.records import LANES
from coach.grading.scripts import UNIT
from coach.store import Redis, ResponseError, script
from tests.support.valkey import open_test_redis

from .support import (
    GRADE,
    SETTINGS,
    broken_invariants,
    due_now,
    essay,
    let_leases_run_out,
    mailed,
    open_test_queue,
    take,
)

pytestmark = pytest.mark.real_time


# -- submit ------------------------------------------------------------------------------------


async def test_a_submission_is_queued_once_however_often_it_is_sent(tmp_path: Path) -> None:
    """Same id and text: the present state, one job; the newest session gets the result."""
    async with open_test_queue(tmp_path) as (queue, redis):
        first = await queue.submit(essay())
        again = await queue.submit(essay(worker="w1-2", session="later"))
        assert (first.status, again.status) == ("queued", "queued")
        assert first.submitted_at == again.submitted_at > 1.6e9
        assert (await queue.statistics()).ready == {
            "interactive": 0,
            "submission": 1,
            "background": 0,
        }
        claim = await take(queue)
        assert await queue.finish(claim, GRADE) == Receiver(
            id="s1", worker="w1-2", session="later", user="ann"
        )
        done = await queue.submit(essay())
        assert (done.status, done.grade) == ("graded", GRADE)
        assert await queue.claim(0, LANES) is None
        assert await broken_invariants(redis) == []


async def test_a_known_id_with_other_text_or_owner_is_refused(tmp_path: Path) -> None:
    """Conflict for other text, Forbidden for another user or org, and nothing is changed."""
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay())
        with pytest.raises(Conflict):
            await queue.submit(essay(text="Something else."))
        with pytest.raises(Forbidden):
            await queue.submit(essay(user="bob"))
        with pytest.raises(Forbidden):
            await queue.submit(essay(org="college"))
        claim = await take(queue)
        job = await queue.load(claim)
        assert job is not None
        assert (job.user, job.org, job.text) == ("ann", "school", essay().text)
        assert await queue.claim(0, LANES) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("id_", ["", "a b", "x" * 65, "{0}", "é", "a\n", "-a"])
async def test_ids_that_could_not_be_keys_are_refused(tmp_path: Path, id_: str) -> None:
    async with open_test_redis(tmp_path) as redis:
        queue = Queue(redis, SETTINGS)
        with pytest.raises(BadMessage):
            await queue.submit(essay(id_))
        assert await queue.get("school", id_) is None
        assert await redis.execute_command("DBSIZE") == 0


async def test_text_that_utf8_cannot_hold_is_refused(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        with pytest.raises(BadMessage):
            await Queue(redis, SETTINGS).submit(essay(text="half \ud83d of it"))
        assert await redis.execute_command("DBSIZE") == 0


async def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    text = "«Ich», said she —\r\n\x00 \U0001f600 \u2028 ' \" \\"
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay(text=text))
        job = await queue.load(await take(queue))
        assert job is not None
        assert job.text == text


async def test_without_an_append_only_file_submissions_are_refused_plainly(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path, appendonly=False) as redis:
        with pytest.raises(Overloaded, match=r"on disk \(WAITAOF .*\): set appendonly yes"):
            await Queue(redis, SETTINGS).submit(essay())


async def test_without_waitaof_only_a_server_that_syncs_every_write_is_believed(
    tmp_path: Path,
) -> None:
    """As before version 7.2; and where it does not even say how it is set, it is not."""
    async with open_test_queue(tmp_path) as (queue, redis):
        await redis.execute_command("ACL SETUSER", "default", "-waitaof")
        await redis.execute_command("CONFIG SET", "appendfsync", "everysec")
        with pytest.raises(Overloaded, match="appendfsync always"):
            await queue.submit(essay())
        await redis.execute_command("CONFIG SET", "appendfsync", "always")
        assert (await queue.submit(essay())).status == "queued"
        await redis.execute_command("ACL SETUSER", "default", "-config")
        with pytest.raises(Overloaded, match="appendfsync always"):
            await queue.submit(essay())


async def test_a_submission_is_acknowledged_only_after_waitaof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that never syncs is not believed; also a known submission waits for the disk."""
    monkeypatch.setattr("coach.grading.queue.DISK_S_MAX", 0.2)
    async with open_test_queue(tmp_path) as (queue, redis):
        await redis.execute_command("CONFIG SET", "appendfsync", "no")
        for _ in range(2):
            with pytest.raises(Overloaded, match="disk"):
                await queue.submit(essay())
        await redis.execute_command("CONFIG SET", "appendfsync", "always")
        assert (await queue.submit(essay())).status == "queued"


async def test_beyond_the_depth_new_submissions_are_refused_and_known_ones_are_not(
    tmp_path: Path,
) -> None:
    async with open_test_queue(tmp_path, depth_max=2, org_depth_percent=100) as (queue, _):
        await queue.submit(essay("a"))
        await queue.submit(essay("b"))
        with pytest.raises(Overloaded) as caught:
            await queue.submit(essay("c"))
        assert caught.value.retry_after_s == 10.0
        assert (await queue.submit(essay("a"))).status == "queued"
        assert await queue.get("school", "c") is None


async def test_a_state_is_for_the_org_that_submitted(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay())
        assert await queue.get("college", "s1") is None
        assert await queue.get("school", "s2") is None
        state = await queue.get("school", "s1")
        assert state is not None
        assert (state.user, state.status, state.grade, state.failure) == (
            "ann",
            "queued",
            None,
            None,
        )
        await take(queue)
        state = await queue.get("school", "s1")
        assert state is not None
        assert state.status == "grading"


async def test_every_key_of_an_org_is_in_its_shard(tmp_path: Path) -> None:
    """All keys of one submission share the shard's hash tag, and shards do not mix."""
    async with open_test_queue(tmp_path, shards=4) as (queue, redis):
        orgs = ["a", "b", "c", "d", "e", "f"]
        for org in orgs:
            await queue.submit(essay(f"of-{org}", org=org))
        keys = {key.decode() for key in await redis.execute_command("KEYS", "*")} - {"sync"}
        assert all("{" in key for key in keys)
        assert {queue.shard(org) for org in orgs} == {
            int(key[key.index("{") + 1 : key.index("}")]) for key in keys
        }
        for org in orgs:
            shard = queue.shard(org)
            claim = await queue.claim(shard, LANES)
            assert isinstance(claim, Claim)
            assert queue.shard(claim.id.removeprefix("of-")) == shard
        assert sum((await queue.statistics()).ready.values()) == 0


async def test_a_job_may_be_of_another_kind_with_parameters_of_its_own(tmp_path: Path) -> None:
    """Both belong to what an id stands for: the same text with others is another submission."""
    async with open_test_queue(tmp_path) as (queue, _):
        again = essay(kind="regrade", parameters={"of": "s0", "rubric": "new"}, lane="background")
        await queue.submit(again)
        await queue.submit(attrs.evolve(again, parameters={"rubric": "new", "of": "s0"}))
        for other in (essay(), attrs.evolve(again, parameters={"of": "s0"})):
            with pytest.raises(Conflict):
                await queue.submit(other)
        job = await queue.load(await take(queue, ("background",)))
        assert job is not None
        assert (job.kind, job.parameters) == ("regrade", {"of": "s0", "rubric": "new"})


# -- order -------------------------------------------------------------------------------------


async def test_lanes_come_first_then_arrival(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        order = [("b1", 2), ("s1", 1), ("b2", 2), ("i1", 0), ("s2", 1), ("i2", 0)]
        for id_, lane in order:
            await queue.submit(essay(id_, lane=LANES[lane]))
        assert (await queue.statistics()).ready == dict.fromkeys(LANES, 2)
        claims = [await take(queue) for _ in order]
        assert [claim.id for claim in claims] == ["i1", "i2", "s1", "s2", "b1", "b2"]
        assert [claim.lane for claim in claims] == [lane for lane in LANES for _ in range(2)]
        assert await broken_invariants(redis) == []


async def test_a_grader_gets_only_jobs_of_its_lanes(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        await queue.submit(essay("s"))
        await queue.submit(essay("b", lane="background"))
        assert (await take(queue, ("background",))).id == "b"
        assert not isinstance(await queue.claim(0, ("interactive", "background")), Claim)
        assert await broken_invariants(redis) == []
        assert (await take(queue, ("submission",))).id == "s"


async def test_ranks_stay_exact_to_the_end_of_their_range(tmp_path: Path) -> None:
    """The last ranks of the last lane still differ by one; beyond is refused, by name."""
    async with open_test_queue(tmp_path) as (queue, redis):
        last = 2**51 - 1 - UNIT
        await redis.execute_command("HSET", "queue:{0}:control", "clock:2", last - 1)
        await queue.submit(essay("zz", lane="background", org="a"))
        await redis.execute_command("HSET", "queue:{0}:control", "clock:2", last)
        await queue.submit(essay("aa", lane="background", org="b"))
        for org in ("b", "a"):
            with pytest.raises(ResponseError, match="COACH_EXHAUSTED starts"):
                await queue.submit(essay("late", lane="background", org=org))
        await redis.execute_command("HSET", "queue:{0}:control", "arrivals", 2**51 - 1)
        with pytest.raises(ResponseError, match="COACH_EXHAUSTED arrivals"):
            await queue.submit(essay("late", lane="interactive"))
        scores = await redis.execute_command("ZRANGE", "queue:{0}:ready", 0, -1, "WITHSCORES")
        assert [float(pair[1]) for pair in scores] == [2**52 + last - 1, 2**52 + last]
        assert [(await take(queue)).id for _ in range(2)] == ["zz", "aa"]
        assert await queue.get("school", "late") is None


async def test_a_job_handed_back_keeps_its_place(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        for id_ in ("a", "b", "c"):
            await queue.submit(essay(id_))
        first, second = await take(queue), await take(queue)
        assert await queue.release(second)
        assert await queue.release(first)
        assert await broken_invariants(redis) == []
        again = [await take(queue) for _ in range(3)]
        assert [(claim.id, claim.attempt, claim.failures) for claim in again] == [
            ("a", 2, 0),
            ("b", 2, 0),
            ("c", 1, 0),
        ]


# -- leases and fencing ------------------------------------------------------------------------


async def test_nobody_but_the_holder_of_the_lease_can_change_a_job(tmp_path: Path) -> None:
    """After a lost lease the old attempt is refused by every operation, the new one by none."""
    async with open_test_queue(tmp_path) as (queue, redis):
        await queue.submit(essay())
        old = await take(queue)
        assert await let_leases_run_out(redis, queue) == (0, 1)
        for refused in (old, attrs.evolve(old, attempt=99)):
            await _refuses_everything(queue, refused)
        new = await take(queue)
        assert (new.attempt, new.failures) == (2, 1)
        await _refuses_everything(queue, old)
        assert await queue.heartbeat(new)
        assert await queue.save(new, "opus", b"{}")
        assert await queue.finish(new, GRADE) is not None
        await _refuses_everything(queue, old)
        state = await queue.get("school", "s1")
        assert state is not None
        assert state.grade == GRADE
        assert await broken_invariants(redis) == []


async def _refuses_everything(queue: Queue, claim: Claim) -> None:
    other = attrs.evolve(GRADE, score=1)
    assert not await queue.heartbeat(claim)
    assert not await queue.save(claim, "opus", b"stale")
    assert await queue.finish(claim, other) is None
    assert await queue.fail(claim, reason="stale") is None
    assert not await queue.release(claim)


async def test_of_a_user_who_is_erased_no_job_stays_and_none_comes_back(tmp_path: Path) -> None:
    """Its grader may still be at work: it finds that it has lost the job."""
    async with open_test_queue(tmp_path) as (queue, redis):
        for id_ in ("s1", "s2"):
            await queue.submit(essay(id_))
        await queue.submit(essay("other", user="eve"))
        claim = await take(queue)
        assert await queue.erase("school", "ana") == []
        assert sorted(await queue.erase("school", essay().user)) == ["s1", "s2"]
        await _refuses_everything(queue, claim)
        assert [await queue.get("school", id_) for id_ in ("s1", "s2")] == [None, None]
        assert (await take(queue)).id == "other"
        assert await broken_invariants(redis) == []


async def test_a_heartbeat_keeps_a_lease_that_would_have_run_out(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path, lease_s=0.15, heartbeat_s=0.05) as (queue, _):
        await queue.submit(essay())
        claim = await take(queue)
        for _ in range(4):
            await trio.sleep(0.05)
            assert await queue.heartbeat(claim)
            assert await queue.promote(0) == (0, 0)
        due_s = await queue.claim(0, LANES)
        assert isinstance(due_s, float)
        assert 0 < due_s <= 0.15
        await trio.sleep(due_s + 0.005)
        again = await take(queue)
        assert (again.attempt, again.failures) == (2, 1)
        assert not await queue.heartbeat(claim)


async def test_finishing_twice_is_harmless(tmp_path: Path) -> None:
    """The answer to the first finish may be lost: the second says the same, the first counts."""
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay())
        claim = await take(queue)
        first = await queue.finish(claim, GRADE)
        second = await queue.finish(claim, attrs.evolve(GRADE, score=1))
        assert first == second is not None
        state = await queue.get("school", "s1")
        assert state is not None
        assert state.grade == GRADE


async def test_what_judges_answered_is_there_for_the_next_attempt(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        await queue.submit(essay())
        claim = await take(queue)
        assert await queue.save(claim, "opus", b'{"a": 1}')
        await let_leases_run_out(redis, queue)
        job = await queue.load(await take(queue))
        assert job is not None
        assert job.answers == {"opus": b'{"a": 1}'}


# -- failure -----------------------------------------------------------------------------------


async def test_a_failed_job_waits_then_comes_back_until_it_is_dead(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path, attempts_max=3) as (queue, redis):
        await queue.submit(essay())
        for attempt in (1, 2):
            failed = await queue.fail(await take(queue), reason=f"no {attempt}", delay_s=60)
            assert failed is not None
            assert (failed.dead, failed.failures) == (None, attempt)
            assert not isinstance(await queue.claim(0, LANES), Claim)
            state = await queue.get("school", "s1")
            assert state is not None
            assert (state.status, state.failure) == ("queued", None)
            assert await due_now(redis, queue) == (1, 0)
        claim = await take(queue)
        failed = await queue.fail(claim, reason="no 3", code="internal", message="sorry")
        assert failed is not None
        assert failed.dead == Receiver(id="s1", worker="w0-1", session="sid", user="ann")
        assert await queue.fail(claim, reason="repeated") == failed
        state = await queue.get("school", "s1")
        assert state is not None
        assert state.status == "failed"
        assert state.failure is not None
        assert attrs.astuple(state.failure) == ("internal", "sorry", "no 3", 3, True)
        assert (await queue.statistics()).dead == 1
        assert (await queue.submit(essay())).status == "failed"
        assert await broken_invariants(redis) == []


async def test_failures_that_do_not_count_never_end_a_job(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path, attempts_max=1) as (queue, redis):
        await queue.submit(essay())
        for _ in range(3):
            failed = await queue.fail(await take(queue), reason="away", counted=False)
            assert failed is not None
            assert (failed.dead, failed.failures) == (None, 0)
            await due_now(redis, queue)
        failed = await queue.fail(await take(queue), reason="hopeless", final=True)
        assert failed is not None
        assert failed.dead is not None


async def test_the_delay_grows_with_attempts_and_is_bounded(tmp_path: Path) -> None:
    """Full jitter: never beyond base * 2^(attempt-1), never beyond the ceiling."""
    async with open_test_queue(tmp_path, retry_base_s=10.0, retry_s_max=25.0) as (queue, redis):
        await queue.submit(essay())
        seen = []
        for ceiling_s in (10, 20, 25, 25):
            await queue.fail(await take(queue), reason="away", counted=False)
            due_s = await queue.claim(0, LANES)
            assert isinstance(due_s, float)
            assert due_s <= ceiling_s
            seen.append(due_s)
            await due_now(redis, queue)
        assert len(set(seen)) == len(seen)


async def test_a_delay_can_be_what_the_provider_said(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay())
        await queue.fail(await take(queue), reason="429", counted=False, delay_s=7.0)
        assert await queue.claim(0, LANES) == pytest.approx(7.0, abs=0.2)


async def test_old_dead_letters_are_dropped_when_new_ones_come(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path, result_days=1) as (queue, redis):
        for id_ in ("old", "new"):
            await queue.submit(essay(id_))
            await queue.fail(await take(queue), reason="x", final=True)
            if id_ == "old":
                await redis.execute_command("ZADD", "queue:{0}:dead", 1, "old")
        assert await redis.execute_command("ZRANGE", "queue:{0}:dead", 0, -1) == [b"new"]
        assert await broken_invariants(redis) == []


async def test_a_record_that_outlived_its_time_ends_its_job(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        for operation in ("finish", "fail"):
            await queue.submit(essay())
            claim = await take(queue)
            await redis.execute_command("DEL", "submission:{0}:s1")
            assert await queue.load(claim) is None
            assert not await queue.save(claim, "opus", b"{}")
            if operation == "finish":
                assert await queue.finish(claim, GRADE) is None
            else:
                assert await queue.fail(claim, reason="gone", final=True) is None
            assert await queue.claim(0, LANES) is None
            assert await redis.execute_command("EXISTS", "submission:{0}:s1") == 0
            assert await broken_invariants(redis) == []


# -- waking ------------------------------------------------------------------------------------


async def test_a_sleeping_grader_wakes_for_a_job_of_its_lanes_only(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, _), trio.open_nursery() as nursery:
        woken: list[str] = []

        async def sleep(name: str, lane: Any) -> None:
            if await queue.wait(0, (lane,), at_most_s=5.0):
                woken.append(name)

        nursery.start_soon(sleep, "background", "background")
        nursery.start_soon(sleep, "submission", "submission")
        await trio.sleep(0.1)
        await queue.submit(essay())
        await trio.sleep(0.1)
        assert woken == ["submission"]
        nursery.cancel_scope.cancel()


async def test_a_job_submitted_between_claim_and_sleep_is_not_slept_through(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, _):
        assert await queue.claim(0, LANES) is None
        await queue.submit(essay())
        with trio.fail_after(0.2):
            assert await queue.wait(0, LANES, at_most_s=5.0)


async def test_one_job_wakes_one_of_many_sleepers_and_many_wake_many(tmp_path: Path) -> None:
    """No thundering herd; but a chain: who claims while more wait leaves a marker behind."""
    async with open_test_queue(tmp_path) as (queue, _), trio.open_nursery() as nursery:
        claims: list[str] = []
        wakes = 0

        async def sleeper() -> None:
            nonlocal wakes
            while True:
                claim = await queue.claim(0, LANES)
                if isinstance(claim, Claim):
                    claims.append(claim.id)
                    await queue.finish(claim, GRADE)
                    continue
                wakes += await queue.wait(0, LANES, at_most_s=5.0)

        for _ in range(8):
            nursery.start_soon(sleeper)
        await trio.sleep(0.1)
        await queue.submit(essay("one"))
        await trio.sleep(0.1)
        assert (claims, wakes) == (["one"], 1)
        async with trio.open_nursery() as senders:
            for number in range(40):
                senders.start_soon(queue.submit, essay(f"n{number}"))
        await trio.sleep(0.1)
        assert len(claims) == 41
        assert wakes <= 41 + 1
        nursery.cancel_scope.cancel()


async def test_a_sleeper_learns_of_a_job_that_was_put_off(tmp_path: Path) -> None:
    """Else it would come to it only when it looks again by itself."""
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay())
        await queue.fail(await take(queue), reason="later", delay_s=0.1)
        assert await queue.wait(0, LANES, at_most_s=5.0)
        due_s = await queue.claim(0, LANES)
        assert isinstance(due_s, float)
        assert 0 < due_s <= 0.1


async def test_markers_are_bounded_and_gone_when_nothing_waits(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(queue.submit, essay(f"n{number}"))
        assert await redis.execute_command("LLEN", "queue:{0}:markers:submission") == 64
        for _ in range(100):
            await take(queue)
        assert await redis.execute_command("EXISTS", "queue:{0}:markers:submission") == 0


async def test_who_claims_while_more_wait_leaves_a_marker_for_the_next(tmp_path: Path) -> None:
    """One marker, popped, is enough for any number of jobs: each claim calls one more grader."""
    async with open_test_queue(tmp_path) as (queue, redis):
        for number in range(3):
            await queue.submit(essay(f"n{number}"))
        await redis.execute_command("DEL", "queue:{0}:markers:submission")
        for left in (2, 1):
            await take(queue)
            assert await broken_invariants(redis) == []
            assert await queue.wait(0, LANES, at_most_s=0.5), left
        await take(queue)
        assert not await queue.wait(0, LANES, at_most_s=0.05)


async def test_who_finds_a_lost_lease_of_a_lane_it_does_not_serve_wakes_those_who_do(
    tmp_path: Path,
) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        await queue.submit(essay(lane="interactive"))
        await take(queue)
        await redis.execute_command("ZADD", "queue:{0}:leased", 1, "s1")
        assert await queue.claim(0, LANES[1:]) is None
        assert await broken_invariants(redis) == []
        assert await queue.wait(0, LANES[:1], at_most_s=0.5)


async def test_a_marker_that_died_with_its_grader_is_replaced(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        await queue.submit(essay())
        assert await queue.wait(0, LANES, at_most_s=1.0)
        assert await broken_invariants(redis) != []
        await queue.promote(0)
        assert await broken_invariants(redis) == []
        assert await queue.wait(0, LANES, at_most_s=1.0)


# -- mail and metrics --------------------------------------------------------------------------


async def test_mail_has_a_bound_and_an_end(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        receiver = Receiver(id="s1", worker="w0-1", session="sid", user="ann")
        await queue.mail(receiver, "grade", b'{"submission": "s1"}')
        await queue.mail(attrs.evolve(receiver, worker=""), "grade", b"{}")
        (mail,) = await mailed(redis)
        assert json.loads(mail.pop("payload")) == {"submission": "s1"}
        about = {"user": "ann", "org": "", "submission": "s1"}
        assert mail == {"kind": "grade", "session": "sid", **about}
        assert 3_500 < await redis.execute_command("TTL", "mail:w0-1") <= 3_600


async def test_records_and_only_records_have_an_end(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path, result_days=2) as (queue, redis):
        await queue.submit(essay("a"))
        await queue.submit(essay("b"))
        await queue.finish(await take(queue), GRADE)
        for id_ in ("a", "b"):
            ttl_s = await redis.execute_command("TTL", f"submission:{{0}}:{id_}")
            assert 2 * 86_400 - 5 < ttl_s <= 2 * 86_400


async def test_statistics_know_how_long_the_oldest_job_has_waited(tmp_path: Path) -> None:
    async with open_test_queue(tmp_path) as (queue, redis):
        for number in range(4):
            await queue.submit(essay(f"n{number}"))
        await queue.fail(await take(queue), reason="later", delay_s=60)
        await queue.fail(await take(queue), reason="never", final=True)
        await take(queue)
        await redis.execute_command(
            "HSET",
            "queue:{0}:jobs",
            "n0",
            re.sub(rb" \d{13} ", b" 1000 ", await job_of(redis, "n0")),
        )
        statistics = await queue.statistics()
        assert (statistics.delayed, statistics.dead, statistics.leased) == (1, 1, 1)
        assert statistics.ready == {"interactive": 0, "submission": 1, "background": 0}
        lane = statistics.lanes["submission"]
        assert (lane.unfinished, lane.mode) == (3, "open")
        assert lane.oldest_s > 1.6e9
        assert statistics.lanes["background"] == LaneStatistics()


async def job_of(redis: Redis, id_: str) -> bytes:
    job: bytes = await redis.execute_command("HGET", "queue:{0}:jobs", id_)
    return job


# -- grades that were never in the queue --------------------------------------------------------


async def test_a_grade_made_without_the_queue_is_kept_beside_the_others(tmp_path: Path) -> None:
    """It is found like any other, handed in again it is known, and no grader hears of it."""
    grade = attrs.evolve(GRADE, seconds=2.0)
    async with open_test_queue(tmp_path) as (queue, redis):
        assert await queue.keep(essay(), grade)
        state = await queue.get("school", "s1")
        assert state is not None
        assert (state.status, state.user, state.grade) == ("graded", "ann", grade)
        again = await queue.submit(essay())
        assert again.grade == grade
        with pytest.raises(Conflict):
            await queue.submit(essay(text="Another one."))
        assert await queue.claim(0, LANES) is None
        assert await redis.ttl("submission:{0}:s1") > 0
        assert await broken_invariants(redis) == []


async def test_a_grade_made_without_the_queue_changes_no_submission_that_is_in_it(
    tmp_path: Path,
) -> None:
    async with open_test_queue(tmp_path) as (queue, _):
        await queue.submit(essay())
        assert not await queue.keep(essay(), GRADE)
        claim = await take(queue)
        assert await queue.finish(claim, GRADE) is not None


# -- scripts refuse before they write ----------------------------------------------------------

SUBMIT = ["a", "u", "o", "", "", "d", 1, "", "", 60, 10, 10, 1, "grade", "", 0]
KEEP = ["a", "u", "o", "", "", "d", 1, "grade", "", "{}", 0, 60, 0]
FAIL = ["a", 1, 0, 1, 5, "c", "m", "r", 60, 0]


def changed(args: list[Any], at: int, value: Any) -> list[Any]:
    """Arguments of which one, counted as in ARGV, is another."""
    return [*args[: at - 1], value, *args[at:]]


BAD_CALLS: list[tuple[str, list[Any], str]] = [
    ("queue_claim", [0, 1, 10, 10, 1], "lease_ms"),
    ("queue_claim", [1000, 65, 10, 10, 1], "count_max"),
    ("queue_claim", [1000, 1, 0, 10, 1], "retry_per_s"),
    ("queue_claim", [1000, 1, 10, 0.5, 1], "retry_burst"),
    ("queue_claim", [1000, 1, 10, 10], "lanes"),
    ("queue_claim", [1000, 1, 10, 10, 0, 3], "lane"),
    ("queue_heartbeat", ["a", 1, 0], "lease_ms"),
    ("queue_judge", ["a", 1, "", "{}"], "judge"),
    ("queue_finish", ["a", 1, "{}", 0], "ttl_s"),
    ("queue_fail", changed(FAIL, 3, -1), "delay_ms"),
    ("queue_fail", changed(FAIL, 4, 2), "counted"),
    ("queue_fail", changed(FAIL, 5, 0), "failures_max"),
    ("queue_fail", changed(FAIL, 9, 0.5), "ttl_s"),
    ("queue_fail", changed(FAIL, 10, 2), "hopeless"),
    ("queue_promote", [257, 10, 10], "count_max"),
    ("queue_promote", [1, 0, 10], "retry_per_s"),
    ("queue_promote", [1, 10, 0], "retry_burst"),
    ("queue_mode", [3, "open"], "lane"),
    ("queue_mode", [1, "shut"], "mode"),
    ("queue_cancel", ["a", "c", "m", "r", 0], "ttl_s"),
    ("queue_replay", ["a", 101, 60], "weight"),
    ("queue_replay", ["a", 1, 0], "ttl_s"),
    ("queue_mail", [10, 60, "post", "", "", "", "{}"], "kind"),
    ("queue_mail", [0, 60, "grade", "", "", "", "{}"], "length_max"),
    ("queue_mail", [10, 0, "grade", "", "", "", "{}"], "ttl_s"),
    ("queue_submit", changed(SUBMIT, 1, ""), "id"),
    ("queue_submit", changed(SUBMIT, 3, ""), "org"),
    ("queue_submit", changed(SUBMIT, 6, ""), "digest"),
    ("queue_submit", changed(SUBMIT, 7, 3), "lane"),
    ("queue_submit", changed(SUBMIT, 10, 0), "ttl_s"),
    ("queue_submit", changed(SUBMIT, 11, 0), "depth_max"),
    ("queue_submit", changed(SUBMIT, 12, 0), "org_depth_max"),
    ("queue_submit", changed(SUBMIT, 13, 101), "weight"),
    ("queue_submit", changed(SUBMIT, 14, ""), "kind"),
    ("queue_submit", changed(SUBMIT, 16, 2), "announce"),
    ("queue_keep", changed(KEEP, 13, ""), "announce"),
    ("queue_keep", changed(KEEP, 1, ""), "id"),
    ("queue_keep", changed(KEEP, 3, ""), "org"),
    ("queue_keep", changed(KEEP, 6, ""), "digest"),
    ("queue_keep", changed(KEEP, 7, 3), "lane"),
    ("queue_keep", changed(KEEP, 8, ""), "kind"),
    ("queue_keep", changed(KEEP, 10, ""), "grade"),
    ("queue_keep", changed(KEEP, 11, -1), "took_ms"),
    ("queue_keep", changed(KEEP, 12, 0), "ttl_s"),
]


async def test_scripts_refuse_bad_arguments_by_name_and_write_nothing(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        for name, args, argument in BAD_CALLS:
            keys = [f"{{0}}:{number}" for number in range(13)]
            with pytest.raises(ResponseError, match=f"COACH_BADARG {argument}$"):
                await script(name)(redis, keys, args)
        assert await redis.execute_command("DBSIZE") == 0
