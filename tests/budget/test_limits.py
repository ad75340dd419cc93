"""User and org limits on a real Valkey: exact under concurrency, cancellation and failure."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from coach import config
from coach.budget import UserLimits, open_user_limits
from coach.budget.limit_scripts import LimitKeys, LimitScripts, Over, Reserved
from coach.budget.rules import keys_of, set_rule, show_limits, show_rules
from coach.errors import ConfigurationError, Overloaded, RateLimited, TooLarge
from coach.ops import metrics
from coach.store import Redis, RedisError, open_embedded, open_redis
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

from .limits_worker import HELD, HELD_TOKENS, SETTINGS, TURNS
from .support import Clock, Window, open_holder, read_window, use_clock

pytestmark = pytest.mark.real_time

USER, ORG = "limit:{school}:user:ana", "limit:{school}:org"
NOBODY: dict[str, Any] = {"user": "ana", "org": "school"}


def limits(redis: Redis, **settings: Any) -> AbstractAsyncContextManager[UserLimits]:
    return open_user_limits(redis, config.Limits(**settings))


def scripts_of(redis: Redis, *limits: int, **settings: Any) -> LimitScripts:
    return LimitScripts(redis, limits or (9, 9, 9, 9), lease_s=10.0, **settings)


def hold(name: str) -> LimitKeys:
    return attrs.evolve(keys_of(org="school", user="ana"), hold=name)


async def windows(redis: Redis) -> tuple[Window, Window]:
    return await read_window(redis, USER, 2), await read_window(redis, ORG, 2)


async def assert_used(redis: Redis, requests: int, tokens: int) -> None:
    for window in await windows(redis):
        assert window.sum == window.in_buckets == (requests, tokens)


async def test_of_1000_at_once_exactly_those_that_fit_get_through(tmp_path: Path) -> None:
    """No request slips in between the check and the reservation; the rest are told when."""
    admitted, refused, all_refused = [], [], trio.Event()
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, user_requests_per_minute=1000, user_tokens_per_minute=1_799) as users,
    ):

        async def one(number: int) -> None:
            await trio.lowlevel.checkpoint()
            try:
                async with users.reserve(**NOBODY, tokens=50) as reservation:
                    admitted.append(number)
                    await all_refused.wait()
                    reservation.settle(50)
            except RateLimited as error:
                refused.append(error)
                if len(refused) == 965:
                    all_refused.set()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(1_000):
                    nursery.start_soon(one, number)
        assert len(admitted) == 35
        assert len(refused) == 965
        assert all(0 < (error.retry_after_s or 0) <= 60 for error in refused)
        await assert_used(redis, 35, 1_750)


@pytest.mark.parametrize("known", [True, False])
async def test_cancelled_at_any_checkpoint_as_if_it_had_not_been_or_settled(
    tmp_path: Path, *, known: bool
) -> None:
    """Cancelled at its k-th step, for every k, a reservation leaves what was settled, or nothing.

    Also where the server does not know the scripts, and each takes two round trips.
    """
    async with open_test_redis(tmp_path) as redis, limits(redis) as users:
        outcomes = set()
        step, expected = 0, 0
        while True:
            if known:
                async with users.reserve(**NOBODY, tokens=1):
                    pass
            else:
                await redis.script_flush()
            step += 1
            settled = False
            with cancel_at_step(step) as scope:
                async with users.reserve(**NOBODY, tokens=100) as reservation:
                    await trio.lowlevel.checkpoint()
                    reservation.settle(7)
                    settled = True
                    await trio.lowlevel.checkpoint()
            expected += settled
            outcomes.add((settled, scope.cancelled_caught))
            await assert_used(redis, expected, 7 * expected)
            if not scope.cancel_called:
                break
        assert step > (5 if known else 7)
        assert outcomes == {(False, True), (True, True), (True, False)}


async def test_reservation_whose_reply_was_abandoned_is_undone(tmp_path: Path) -> None:
    """The script runs on the server after its caller has gone; the refund by name follows it."""
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis) as users,
        trio.open_nursery() as nursery,
    ):
        async with users.reserve(user="warm", org="up", tokens=1):
            pass  # the server knows the scripts
        entered = False

        async def reserve() -> None:
            nonlocal entered
            async with users.reserve(**NOBODY, tokens=100):
                entered = True

        await redis.execute_command("CLIENT PAUSE", 200, "WRITE")
        nursery.start_soon(reserve)
        await trio.sleep(0.05)
        assert redis.statistics().written_count == 1
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.01)
            while redis.statistics().written_count:  # noqa: ASYNC110  it has no event
                await trio.sleep(0.01)
            assert not entered
            await assert_used(redis, 0, 0)


async def test_reservation_that_comes_after_its_refund_does_not_revive(tmp_path: Path) -> None:
    """Over a new connection the two may change places: the name has ended, nothing is reserved."""
    async with open_test_redis(tmp_path) as redis:
        scripts = scripts_of(redis)
        await scripts.settle(hold("x"), requests=0, tokens=0, age_s=0)
        with pytest.raises(RedisError, match="ended"):
            await scripts.reserve(hold("x"), least=0, tokens=5)
        assert not await redis.exists(USER, ORG)


async def test_repeating_a_script_changes_nothing(tmp_path: Path) -> None:
    """After a lost connection both may be run again."""
    async with open_test_redis(tmp_path) as redis:
        scripts = scripts_of(redis)
        for _ in range(3):
            assert await scripts.reserve(hold("x"), least=0, tokens=5) == Reserved(5)
            await assert_used(redis, 1, 5)
        for _ in range(3):
            await scripts.settle(hold("x"), requests=1, tokens=3, age_s=0)
            await assert_used(redis, 1, 3)


@pytest.mark.parametrize("seed", range(2))
async def test_random_ends_leave_windows_equal_to_the_real_use(tmp_path: Path, seed: int) -> None:
    """Done, failed, cancelled, never sent: sum and buckets hold what was really used."""
    rng = random.Random(seed)
    used: list[int] = []
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, user_requests_per_minute=1000, user_tokens_per_minute=20_000) as users,
    ):

        async def one(end: str, tokens: int, use: int, after_s: float) -> None:
            with trio.CancelScope() as scope:
                await trio.lowlevel.checkpoint()
                try:
                    async with users.reserve(**NOBODY, tokens=tokens) as reservation:
                        if end in ("done", "failed", "cancelled"):
                            reservation.settle(use)
                            used.append(use)
                        if end.startswith("cancelled"):
                            scope.cancel()
                        await trio.sleep(after_s)
                        if end == "failed":
                            raise ZeroDivisionError
                except (RateLimited, ZeroDivisionError):
                    pass

        async with trio.open_nursery() as nursery:
            for _ in range(150):
                end = rng.choice(["done", "failed", "cancelled", "cancelled unsent", "unsent"])
                tokens = rng.randrange(500)
                nursery.start_soon(
                    one, end, tokens, rng.randrange(tokens + 50), rng.uniform(0, 0.1)
                )
                await trio.sleep(rng.choice([0, 0, 0.005]))
        await assert_used(redis, len(used), sum(used))


@attrs.define
class Model:
    """What the windows must hold: each use with its second, counted for 60 seconds."""

    uses: list[tuple[int, int]] = attrs.field(factory=list)

    def counted(self, now_s: int) -> tuple[int, int]:
        tokens = [tokens for second, tokens in self.uses if now_s - second < 60]
        return len(tokens), sum(tokens)


@pytest.mark.parametrize("seed", range(3))
async def test_windows_follow_the_rule_through_minutes(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reserving, settling and time in any order: as the model; the promised time is exact."""
    rng = random.Random(seed)
    use_clock(monkeypatch)
    limit = (12, 1_000)
    model, held = Model(), []
    async with open_test_redis(tmp_path) as redis:
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        # reservations that are not settled stay, as if their owner lived and renewed them
        scripts = attrs.evolve(scripts_of(redis, *limit, 10**6, 10**6), lease_s=60.0, hold_s=86_400)
        for number in range(300):
            now_s = clock.now_ms // 1000
            tokens = rng.choice([0, 10, 100, 400, 1_000])
            reply = await scripts.reserve(hold(str(number)), least=tokens, tokens=tokens)
            requests_now, tokens_now = model.counted(now_s)
            fits = requests_now + 1 <= limit[0] and tokens_now + tokens <= limit[1]
            assert isinstance(reply, Reserved) == fits
            if isinstance(reply, Reserved):
                model.uses.append((now_s, tokens))
                held.append((number, len(model.uses) - 1))
            else:
                assert reply.retry_s is not None
                earlier = (clock.now_ms + round(reply.retry_s * 1000) - 1) // 1000
                counted = model.counted(earlier)
                assert counted[0] + 1 > limit[0] or counted[1] + tokens > limit[1]
                counted = model.counted(earlier + 1)
                assert counted[0] + 1 <= limit[0]
                assert counted[1] + tokens <= limit[1]
            if held and rng.random() < 0.5:
                settled, at = held.pop(rng.randrange(len(held)))
                used = rng.randrange(300)
                age_s = now_s - model.uses[at][0]
                await scripts.settle(hold(str(settled)), requests=1, tokens=used, age_s=age_s)
                if now_s - model.uses[at][0] < 60:
                    model.uses[at] = (model.uses[at][0], used)
            await clock.advance(rng.choice([0, 0.3, 1, 2.5, 20, 61, 130]) * rng.random())
        await clock.advance(60)
        assert await scripts.reserve(hold("last"), least=0, tokens=0) == Reserved(0)
        await assert_used(redis, 1, 0)


async def test_clock_set_back_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover to a server whose clock lags, what is spent still slides out."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis, limits(redis) as users:
        clock = Clock(redis)
        for step_s in (0, -3600, 3599, 1):
            await clock.advance(step_s)
            async with users.reserve(**NOBODY, tokens=5) as reservation:
                reservation.settle(5)
        await clock.advance(60)
        async with users.reserve(**NOBODY, tokens=9) as reservation:
            reservation.settle(9)
        await assert_used(redis, 1, 9)


async def test_more_than_the_whole_limit_is_refused_for_good(tmp_path: Path) -> None:
    """Waiting would not help: no retry_after_s, and the message says how much there is."""
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, user_tokens_per_minute=100) as users,
    ):
        with pytest.raises(TooLarge, match="101 tokens or more; your whole limit is 100") as caught:
            async with users.reserve(**NOBODY, tokens=200, tokens_least=101):
                pass
        assert caught.value.retry_after_s is None
        assert not await redis.exists(USER, ORG)


async def test_what_may_fit_is_let_through_a_small_limit(tmp_path: Path) -> None:
    """The most it may use is more than the limit: the whole limit is reserved, and that is told."""
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, user_tokens_per_minute=100) as users,
    ):
        async with users.reserve(**NOBODY, tokens=5_000, tokens_least=60) as reservation:
            assert reservation.tokens == 100
            await assert_used(redis, 1, 100)
            reservation.settle(70)
        await assert_used(redis, 1, 70)
        with pytest.raises(RateLimited) as caught:
            async with users.reserve(**NOBODY, tokens=5_000, tokens_least=60):
                pass
        assert 58 < (caught.value.retry_after_s or 0) <= 60  # a second may have begun


async def test_what_the_org_refuses_the_user_keeps(tmp_path: Path) -> None:
    """Both windows or neither; the message names the limit that was reached."""
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, org_tokens_per_minute=150) as users,
        users.reserve(**NOBODY, tokens=100) as reservation,
    ):
        reservation.settle(100)
        with pytest.raises(RateLimited, match="your organisation's limit of 150 tokens") as e:
            async with users.reserve(user="bob", org="school", tokens=100):
                pass
        assert e.value.retry_after_s is not None
        assert not await redis.exists("limit:{school}:user:bob")
        async with users.reserve(user="bob", org="other", tokens=100):
            pass


async def test_every_key_ends_by_itself_and_shares_the_orgs_slot(tmp_path: Path) -> None:
    """Names with braces, colons or nothing ordinary in them cannot reach others' keys."""
    async with open_test_redis(tmp_path) as redis, limits(redis) as users:
        names = [("a", "b"), ("a}:user:b", "{b}"), ("ü :*", "x:org"), ("org", "hold:1")]
        for org, user in names:
            async with users.reserve(user=user, org=org, tokens=1) as reservation:
                reservation.settle(1)
        keys = [key.decode() for key in await redis.execute_command("KEYS", "*")]
        assert len(keys) == 3 * len(names), keys
        assert len({key.split("}")[0] for key in keys}) == len(names)
        assert all([0 < await redis.ttl(key) <= 121 for key in keys])


async def test_without_redis_nobody_gets_through(tmp_path: Path) -> None:
    """Overloaded within wait_s and a last try; and the body did not run."""
    async with open_redis(f"unix://{tmp_path}/nobody.sock", wait_s=30) as redis:
        started_s = trio.current_time()
        with pytest.raises(Overloaded) as caught:
            async with (
                limits(redis, wait_s=0.3) as users,
                users.reserve(**NOBODY, tokens=1),
            ):
                pytest.fail("admitted without Redis")
        assert caught.value.retry_after_s
        assert 0.3 <= trio.current_time() - started_s < 1.0


async def test_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    """A turn that starts while Redis is away goes on when it comes back in time."""
    url = f"unix://{tmp_path}/data/valkey.sock"
    async with (
        open_redis(url) as redis,
        limits(redis, wait_s=20) as users,
        trio.open_nursery() as nursery,
    ):
        done = trio.Event()

        async def turn() -> None:
            async with users.reserve(**NOBODY, tokens=10) as reservation:
                reservation.settle(4)
            done.set()

        nursery.start_soon(turn)
        await trio.sleep(0.2)
        assert not done.is_set()
        async with open_embedded(tmp_path / "data", appendonly=False):
            await done.wait()
            await assert_used(redis, 1, 4)


async def test_uncontended_turn_takes_two_scripts(tmp_path: Path) -> None:
    """One to reserve, one to settle."""
    async with open_test_redis(tmp_path) as redis, limits(redis) as users:
        for _ in range(2):
            await redis.execute_command("CONFIG RESETSTAT")
            async with users.reserve(**NOBODY, tokens=10) as reservation:
                reservation.settle(4)
        stats = await redis.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] == 2


# -- leases: whose owner died -------------------------------------------------------------------


async def test_what_a_dead_worker_had_reserved_is_given_back_with_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before, and by whoever asks next; the windows hold what the living use."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        scripts = scripts_of(redis, 9, 100, 9, 100)
        assert await scripts.reserve(hold("dead"), least=0, tokens=80) == Reserved(80)
        await clock.advance(9.9)
        over = await scripts.reserve(hold("b"), least=50, tokens=50)
        assert isinstance(over, Over)
        assert (over.limit, over.left) == ("user_tokens", 20)
        await clock.advance(0.2)
        assert await scripts.reserve(hold("c"), least=50, tokens=50) == Reserved(50)
        await assert_used(redis, 1, 50)


async def test_who_was_thought_dead_counts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stood still renews, or settles: what it used is in the windows, once."""
    use_clock(monkeypatch)
    async with open_test_redis(tmp_path) as redis:
        clock = Clock(redis)
        await clock.set(clock.now_ms)
        scripts = scripts_of(redis, 9, 100, 9, 100)
        await scripts.reserve(hold("still"), least=0, tokens=80)
        await scripts.reserve(hold("late"), least=0, tokens=10)
        await clock.advance(11)
        await scripts.show(hold(""))
        await assert_used(redis, 0, 0)
        for _ in range(2):
            await scripts.renew([hold("still")])
            await assert_used(redis, 1, 80)
            await clock.advance(9)
        await scripts.settle(hold("still"), requests=1, tokens=30, age_s=29)
        await scripts.settle(hold("late"), requests=1, tokens=9, age_s=29)
        await assert_used(redis, 2, 39)
        await clock.advance(60)
        assert await scripts.reserve(hold("new"), least=0, tokens=100) == Reserved(100)
        await assert_used(redis, 1, 100)


async def test_a_living_worker_renews_and_leaves_no_lease_behind(tmp_path: Path) -> None:
    """A turn may take longer than a lease; what was settled is not refunded later."""
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, lease_s=1.0) as users,
    ):
        async with users.reserve(**NOBODY, tokens=10) as reservation:
            await trio.sleep(2.2)
            await show_limits(redis, config.Limits(lease_s=1.0), org="school", user="ana")
            await assert_used(redis, 1, 10)
            reservation.settle(8)
        await assert_used(redis, 1, 8)
        for key in ("limit:{school}:leases", "limit:{school}:leases:ana"):
            assert not await redis.exists(key)


async def test_a_settlement_that_redis_did_not_take_is_made_good(tmp_path: Path) -> None:
    """The turn does not wait for it; when Redis answers again, the real use is in the windows."""
    async with open_test_redis(tmp_path) as redis, limits(redis) as users:
        async with users.reserve(**NOBODY, tokens=10) as reservation:
            reservation.settle(4)
            await redis.execute_command("CLIENT PAUSE", 1_500, "WRITE")
            began_s = trio.current_time()
        assert trio.current_time() - began_s < 1.4
        with trio.fail_after(5):
            while (await read_window(redis, USER, 2)).sum != (1, 4):  # noqa: ASYNC110  in Redis
                await trio.sleep(0.02)
        await assert_used(redis, 1, 4)


# -- rules: what operators set ------------------------------------------------------------------


async def test_a_rule_counts_from_the_next_request_on(tmp_path: Path) -> None:
    """Of the user before those of all users before the settings; `show` says which it is."""
    settings = config.Limits(user_tokens_per_minute=100)

    async def change(redis: Redis, **whose: Any) -> None:
        await set_rule(redis, org="school", by="an operator", **whose)

    async def standing(redis: Redis) -> tuple[int, int, str]:
        found = {
            limit.name: limit
            for limit in await show_limits(redis, settings, org="school", user="ana")
        }["user_tokens"]
        return found.most, found.left, found.origin

    async with open_test_redis(tmp_path) as redis, open_user_limits(redis, settings) as users:
        assert await standing(redis) == (100, 100, "settings")
        await change(redis, user=None, each_user=True, limits={"tokens": 50})
        with pytest.raises(TooLarge, match="whole limit is 50"):
            async with users.reserve(**NOBODY, tokens=60, tokens_least=60):
                pass
        await change(redis, user="ana", each_user=False, limits={"tokens": 200})
        async with users.reserve(**NOBODY, tokens=150, tokens_least=150) as reservation:
            reservation.settle(150)
        assert await standing(redis) == (200, 50, "user")
        assert [rule.whose for rule in await show_rules(redis, org="school")] == [
            "users",
            "user:ana",
        ]
        before, after = await set_rule(
            redis,
            org="school",
            user="ana",
            each_user=False,
            limits={"tokens": None},
            by="an operator",
        )
        assert before is not None
        assert (before.tokens, before.by, after) == (200, "an operator", None)
        assert await standing(redis) == (50, 0, "users")
        assert await redis.ttl("limit:{school}:rules") > 0


async def test_an_org_can_not_fill_redis_with_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coach.budget.rules.RULES_MAX", 2)
    async with open_test_redis(tmp_path) as redis:
        for user in ("a", "b"):
            await set_rule(
                redis, org="o", user=user, each_user=False, limits={"requests": 1}, by="x"
            )
        with pytest.raises(ConfigurationError, match="has 2 rules"):
            await set_rule(
                redis, org="o", user="c", each_user=False, limits={"requests": 1}, by="x"
            )


async def test_in_shadow_mode_everybody_gets_through_and_is_counted(tmp_path: Path) -> None:
    """The windows hold the truth, also above the limit; what would have been is a metric."""
    refusals = metrics.limit_refusals_total.labels("user_tokens", "shadow")
    counted = refusals._value.get()
    async with (
        open_test_redis(tmp_path) as redis,
        limits(redis, mode="shadow", user_tokens_per_minute=100) as users,
    ):
        for least in (80, 80, 500):
            async with users.reserve(**NOBODY, tokens=500, tokens_least=least) as reservation:
                assert reservation.tokens == 500
                reservation.settle(80)
        await assert_used(redis, 3, 240)
    assert refusals._value.get() == counted + 2  # the first would have fitted


# -- crashes of real processes --------------------------------------------------------------------


async def test_of_a_killed_process_only_what_was_really_used_remains(tmp_path: Path) -> None:
    """Two workers, turns that end in every way; one is killed (-9) while it holds five, the other
    lives and holds its five for longer than a lease."""
    async with (
        open_embedded(tmp_path / "data", appendonly=False) as server,
        open_redis(server.url) as redis,
    ):
        workers = [await open_worker(server.url, seed) for seed in (1, 2)]
        try:
            used = [use for _, uses in workers for use in uses]
            assert 40 < len(used) < 2 * TURNS
            held = 2 * HELD
            await assert_used(redis, len(used) + held, sum(used) + held * HELD_TOKENS)
            workers[0][0].kill()
            await workers[0][0].wait()
            await trio.sleep(1.4 * SETTINGS.lease_s)  # the living one renews all the while
            await show_limits(redis, SETTINGS, org="school", user="ana")  # whoever comes next
            await assert_used(redis, len(used) + HELD, sum(used) + HELD * HELD_TOKENS)
        finally:
            with trio.move_on_after(5, shield=True):
                for process, _ in workers:
                    process.kill()
                    await process.wait()


async def open_worker(url: str, seed: int) -> tuple[trio.Process, list[int]]:
    """One that holds what it holds, and what it has used before."""
    process, said = await open_holder("limits_worker", url, str(seed))
    return process, [int(line.split()[1]) for line in said.splitlines()]


# -- known failures elsewhere ---------------------------------------------------------------------


async def test_no_663_tokens_through_a_limit_of_100(tmp_path: Path) -> None:
    """Workers that check first and count afterwards let whole crowds through: three of them here,
    over connections of their own."""
    used = []

    async def worker(url: str) -> None:
        async with (
            open_redis(url) as redis,
            limits(redis, user_tokens_per_minute=100, user_requests_per_minute=1_000) as users,
            trio.open_nursery() as nursery,
        ):
            for _ in range(100):
                nursery.start_soon(one, users)

    async def one(users: UserLimits) -> None:
        try:
            async with users.reserve(**NOBODY, tokens=13, tokens_least=13) as reservation:
                await trio.sleep(0.05)
                used.append(13)
                reservation.settle(13)
        except RateLimited:
            pass

    async with open_embedded(tmp_path / "data", appendonly=False) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(worker, server.url)
        async with open_redis(server.url) as redis:
            assert sum(used) == 91
            await assert_used(redis, 7, 91)
