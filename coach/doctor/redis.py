"""Redis: what it is, whether it keeps what it is given, and how fast it answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import trio

from ..store import Redis, RedisError, open_redis, without_password
from .needs import Needs
from .report import Finding

VERSION_MIN: Final = (7, 2)
PINGS: Final = 50
LATENCY_MS_MAX: Final = 5.0
COMMANDS_PER_S: Final = 20_000
"""What one core of a server runs of coach's scripts, roughly."""
SKEW_S_MAX: Final = 2.0
WAIT_S: Final = 1.0

Facts = Mapping[str, Any]


async def examine_redis(url: str, needs: Needs | None) -> list[Finding]:
    """Look at the server, or the cluster, that `url` leads to; a few commands, nothing written."""
    try:
        async with open_redis(url, wait_s=WAIT_S, name="coach-doctor") as redis:
            info = await redis.info()
            keeps = await _configured(redis, "appendonly", "appendfsync", "maxmemory-policy")
            latency = await _latency_ms(redis)
            before = time.time()
            seconds, micros = await redis.time()
            skew_s = abs(seconds + micros / 1e6 - (before + time.time()) / 2)
    except RedisError as error:
        return [
            Finding(
                "redis",
                "answers",
                "fail",
                f"{without_password(url)}: {error}",
                "start it, or mend redis.url",
            )
        ]
    return [*judge(info, keeps, latency, skew_s), *_load(needs)]


def judge(
    info: Facts, keeps: Mapping[str, str], latency_ms: tuple[float, float], skew_s: float
) -> list[Finding]:
    """What is to be made of what a server says.

    Args:
      info: its INFO.
      keeps: some of its settings; fewer where it does not tell.
      latency_ms: of PING, median and worst.
      skew_s: how far its clock is from this machine's.
    """
    return [
        _version(info),
        *_persistence(info, keeps),
        *_eviction(info, keeps),
        _is_fast(latency_ms),
        _clock(skew_s),
        *_role(info),
    ]


async def _configured(redis: Redis, *names: str) -> dict[str, str]:
    """Settings of the server; fewer where CONFIG is not allowed, as at some hosts."""
    found: dict[str, str] = {}
    for name in names:
        try:
            reply = await redis.config_get(name)
        except RedisError:
            continue
        found |= {_text(key): _text(value) for key, value in reply.items()}
    return found


async def _latency_ms(redis: Redis) -> tuple[float, float]:
    """Of PING: median and the worst."""
    took_ms = []
    for _ in range(PINGS):
        begun = trio.current_time()
        await redis.ping()
        took_ms.append((trio.current_time() - begun) * 1000)
    took_ms.sort()
    return took_ms[len(took_ms) // 2], took_ms[-1]


def _version(info: Facts) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = _text(info.get("valkey_version", info.get("redis_version", "?")))
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if parts < VERSION_MIN:
        return Finding("redis", "version", "fail", f"{name} {text}", "7.2 or newer is needed")
    return Finding("redis", "version", "ok", f"{name} {text}")


def _persistence(info: Facts, keeps: Mapping[str, str]) -> Iterator[Finding]:
    if not int(info.get("aof_enabled", 0)):
        yield Finding(
            "redis",
            "persistence",
            "fail",
            "no append-only file: submissions are refused, as they could be lost",
            "CONFIG SET appendonly yes, and in the server's file",
        )
        return
    how = keeps.get("appendfsync", "")
    found = f"append-only file, appendfsync {how or 'unknown'}"
    if how == "no":
        yield Finding(
            "redis", "persistence", "fail", found, "CONFIG SET appendfsync everysec, or always"
        )
    elif _text(info.get("aof_last_write_status", "ok")) != "ok":
        yield Finding(
            "redis", "persistence", "fail", "the last write to disk failed", "look at its disk"
        )
    else:
        yield Finding("redis", "persistence", "ok", found)


def _eviction(info: Facts, keeps: Mapping[str, str]) -> Iterator[Finding]:
    policy = _text(info.get("maxmemory_policy", keeps.get("maxmemory-policy", "")))
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if policy not in {"", "noeviction"}:
        yield Finding(
            "redis",
            "eviction",
            "fail",
            f"maxmemory-policy {policy}: it may throw essays away",
            "CONFIG SET maxmemory-policy noeviction",
        )
    elif most and used > 0.8 * most:
        yield Finding(
            "redis",
            "memory",
            "warn",
            f"{used / most:.0%} of maxmemory is used",
            "raise maxmemory: a full server takes no submissions",
        )
    else:
        yield Finding("redis", "eviction", "ok", "nothing is evicted")


def _is_fast(latency: tuple[float, float]) -> Finding:
    median, worst = latency
    found = f"PING {median:.2f} ms at the median, {worst:.1f} ms at worst"
    if median > LATENCY_MS_MAX:
        return Finding(
            "redis",
            "latency",
            "warn",
            found,
            "bring it nearer: a turn waits for two answers of it before it leaves",
        )
    return Finding("redis", "latency", "ok", found)


def _clock(skew_s: float) -> Finding:
    found = f"{skew_s:.2f} s apart from this machine's"
    if skew_s > SKEW_S_MAX:
        fix = "run NTP on both: coach itself goes by Redis' clock, tokens and logs do not"
        return Finding("redis", "clock", "warn", found, fix)
    return Finding("redis", "clock", "ok", found)


def _role(info: Facts) -> Iterator[Finding]:
    role = _text(info.get("role", "master"))
    if role != "master":
        yield Finding(
            "redis", "role", "fail", role, "redis.url must lead to the master, or to Sentinel"
        )
    elif int(info.get("cluster_enabled", 0)):
        yield Finding("redis", "role", "ok", "a node of a cluster")
    elif int(info.get("connected_slaves", 0)):
        yield Finding("redis", "role", "ok", f"master of {info['connected_slaves']} replicas")
    else:
        yield Finding("redis", "role", "ok", "one server without a replica")


def _load(needs: Needs | None) -> Iterator[Finding]:
    if needs is None:
        return
    share = needs.redis_commands_per_s / COMMANDS_PER_S
    found = f"{needs.redis_commands_per_s:,} scripts a second, {share:.0%} of a core of it"
    is_enough = share < 0.6
    fix = "" if is_enough else "a cluster, and grading.shards > 1"
    yield Finding("writers", "redis", "ok" if is_enough else "warn", found, fix)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
