"""What is kept of sessions in Redis: the real scripts, on a real server."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from coach import config
from coach.session.auth import Identity
from coach.session.resume import Kept, Records, State, Tail, revoke_sessions
from coach.store import Redis
from tests.support.valkey import open_test_redis

ANA = Identity("ana", "school", "student", 0.0)
EVE = Identity("eve", "school", "student", 0.0)
STATE = State(seq=2, connected=False, turns=(), feedback=(), submissions=())

pytestmark = pytest.mark.real_time


async def keep(
    redis: Redis,
    *,
    worker: str = "w-1",
    epoch: int = 1,
    token: str = "t1",
    said: tuple[bytes, ...] = (),
    tail: Tail = "append",
    parted: bool = False,
) -> Kept:
    fields: dict[str, str | bytes] = {
        "user": ANA.user,
        "org": ANA.org,
        "role": ANA.role,
        "token": token,
        "previous": "",
        "state": msgspec.json.encode(STATE),
    }
    return await Records(redis, config.Session()).keep(
        "s",
        worker=worker,
        epoch=epoch,
        fields=fields,
        said=said,
        tail=tail,
        parted=parted,
    )


async def test_who_shows_the_token_gets_the_session_as_it_was_kept(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        records = Records(redis, config.Session())
        assert await keep(redis, said=(b'"a"',)) == "kept"
        assert await keep(redis, said=(b'"b"',)) == "kept"
        claim = await records.claim("s", digest="t1", identity=ANA, worker="w-2", then="t2")
        assert claim is not None
        assert (claim.worker, claim.epoch, claim.state) == ("w-1", 2, STATE)
        assert claim.said == (b'"a"', b'"b"')
        assert await keep(redis, said=(b'"late"',)) == "moved"
        assert await keep(redis, worker="w-2", epoch=2, token="t2", tail="clear") == "kept"
        again = await records.claim("s", digest="t2", identity=None, worker="w-1", then="t3")
        assert again is not None
        assert (again.epoch, again.said) == (3, ())
        for key in await redis.keys("*"):
            assert await redis.ttl(key) > 0, key


async def test_a_token_that_was_shown_is_honoured_until_it_is_cleared(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        records = Records(redis, config.Session())
        await keep(redis)
        for then in ("t2", "t3"):
            assert await records.claim("s", digest="t1", identity=ANA, worker="w-2", then=then)
        assert not await records.claim("s", digest="t2", identity=ANA, worker="w-2", then="t4")
        await keep(redis, worker="w-2", epoch=3, token="t3")
        assert not await records.claim("s", digest="t1", identity=ANA, worker="w-1", then="t4")


@pytest.mark.parametrize(("digest", "identity"), [("t0", ANA), ("t1", EVE), ("t1", None)])
async def test_without_token_and_user_nothing_is_claimed(
    tmp_path: Path, digest: str, identity: Identity | None
) -> None:
    async with open_test_redis(tmp_path) as redis:
        records = Records(redis, config.Session())
        await keep(redis)
        claim = await records.claim("s", digest=digest, identity=identity, worker="w", then="x")
        assert (claim is None) == (identity is not None)


async def test_what_was_revoked_is_neither_claimed_nor_written(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        records = Records(redis, config.Session())
        await keep(redis, said=(b'"a"',))
        assert await revoke_sessions(redis, user="eve", org="school", session="s") == []
        assert await revoke_sessions(redis, user="eve", org="school") == []
        assert await revoke_sessions(redis, user="ana", org="school") == ["s"]
        assert await revoke_sessions(redis, user="ana", org="school") == []
        assert await revoke_sessions(redis, session="s") == []
        assert await keep(redis) == "revoked"
        assert await redis.hkeys("session:{s}") == [b"revoked"], "nothing else stays"
        assert not await records.claim("s", digest="t1", identity=ANA, worker="w-2", then="t2")
        assert await redis.xlen("mail:w-1") == 1


async def test_a_session_that_was_left_for_good_cannot_be_resumed(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        records = Records(redis, config.Session())
        await keep(redis)
        await keep(redis, token="", parted=True)
        assert not await records.claim("s", digest="t1", identity=ANA, worker="w-2", then="t2")
