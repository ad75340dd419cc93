"""How long one insists on a script, and what one knows afterwards; on the mock clock."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio
from redis.exceptions import ClusterDownError, ReadOnlyError, ResponseError, TryAgainError

from coach.budget.scripts import RETRY_S, Insistence, Patience, RedisAway, insist
from coach.errors import Overloaded
from coach.store import ConnectionLost, NotSent, RedisError

PASSING = [
    NotSent("no connection"),
    ConnectionLost("no answer"),
    ReadOnlyError("You can't write against a read only replica."),
    ClusterDownError("The cluster is down"),
    TryAgainError("the slot is on its way"),
    ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
    ResponseError("BUSY Redis is busy running a script."),
]
LASTING = [ResponseError("COACH_BADARG ask"), ResponseError("WRONGTYPE of value"), RedisError("?")]


@attrs.define
class Failing:
    """A script that fails so often, and then answers; or for ever."""

    error: RedisError
    failures_max: float = float("inf")
    runs_count: int = 0

    async def __call__(self) -> str:
        await trio.lowlevel.checkpoint()
        self.runs_count += 1
        if self.runs_count <= self.failures_max:
            raise self.error
        return "answer"


@pytest.mark.parametrize("error", PASSING, ids=lambda error: str(error)[:8])
async def test_what_may_pass_is_waited_for(error: RedisError) -> None:
    """A failover, a full disk, a slot on its way: try again, but not for ever."""
    run = Failing(error, failures_max=3)
    assert await Insistence(wait_s=1.0)(run) == "answer"
    assert trio.current_time() == pytest.approx(3 * RETRY_S)
    await insist(Failing(error, failures_max=3))
    call = Insistence(wait_s=1.0)
    begun_s = trio.current_time()
    with pytest.raises(Overloaded) as caught:
        await call(Failing(error))
    assert trio.current_time() - begun_s == pytest.approx(1.0)
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("error", LASTING, ids=lambda error: str(error)[:8])
async def test_what_lasts_is_raised_at_once(error: RedisError) -> None:
    """Waiting would hide a mistake."""
    for call in (Insistence(wait_s=1.0), insist):
        run = Failing(error)
        with pytest.raises(type(error)) as caught:
            await call(run)
        assert caught.value is error
        assert run.runs_count == 1


async def test_knows_whether_something_may_have_run() -> None:
    """Only what surely never ran needs no undoing; what once may have, may have."""
    call = Insistence(wait_s=1.0)
    known = [call.may_have_run]
    for error in (NotSent("no connection"), ConnectionLost("no answer"), NotSent("again")):
        with pytest.raises(Overloaded):
            await call(Failing(error))
        known.append(call.may_have_run)
    assert known == [False, False, True, True]


async def test_cancelled_it_may_have_run() -> None:
    """The caller undoes it."""
    call = Insistence(wait_s=1.0)
    with trio.move_on_after(0.5) as scope:
        await call(partial(trio.sleep, 9))
    assert scope.cancelled_caught
    assert call.may_have_run


async def test_one_request_waits_for_redis_once_whatever_it_asks() -> None:
    """What its first call has waited the next ones have no more; with nothing left none is sent."""
    patience = Patience(1.0)
    lost = ConnectionLost("no answer")
    await Insistence(1.0, patience)(Failing(lost, failures_max=12))
    assert patience.left_s == pytest.approx(1.0 - 12 * RETRY_S)
    begun_s = trio.current_time()
    with pytest.raises(RedisAway) as caught:
        await Insistence(1.0, patience)(Failing(lost))
    assert trio.current_time() - begun_s == pytest.approx(1.0 - 12 * RETRY_S)
    assert caught.value.retry_after_s == 1.0
    run, call = Failing(lost), Insistence(1.0, patience)
    with pytest.raises(RedisAway):
        await call(run)
    assert (run.runs_count, call.may_have_run) == (0, False)


async def test_a_call_waits_no_longer_than_itself_whatever_patience_there_is() -> None:
    """A patient request does not make every call of it wait for so long."""
    patience = Patience(9.0)
    with pytest.raises(RedisAway):
        await Insistence(1.0, patience)(Failing(ConnectionLost("no answer")))
    assert patience.left_s == pytest.approx(8.0)


async def test_cancelled_it_has_waited_all_the_same() -> None:
    """Else a request that is cancelled and goes on elsewhere would wait anew."""
    patience = Patience(1.0)
    with trio.move_on_after(0.4):
        await Insistence(1.0, patience)(Failing(ConnectionLost("no answer")))
    assert patience.left_s == pytest.approx(0.6)
