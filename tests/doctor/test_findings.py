"""What the doctor makes of what it sees: rules without a machine, a server or a provider."""

from __future__ import annotations

import io
import resource
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from coach import config
from coach.doctor import machine, providers, redis
from coach.doctor.needs import needs_of
from coach.doctor.providers import Handshake, judge_handshake, judge_headers, quota_for
from coach.doctor.report import Finding, print_report
from tests.support.tls import Certificates

ANTHROPIC = config.Provider(
    name="a",
    base_url="https://a.test",
    model="m",
    api_key="k",
    quota=config.Quota(
        requests_per_minute=1_000,
        input_tokens_per_minute=400_000,
        output_tokens_per_minute=80_000,
    ),
)
SETTINGS = config.Settings(provider=(ANTHROPIC,))
SOUND = {"aof_enabled": 1, "redis_version": "7.2.4", "valkey_version": "9.1.0", "role": "master"}


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {each.name: each.status for each in findings}


def redis_findings(facts: dict[str, object], keeps: dict[str, str]) -> dict[str, str]:
    return statuses(redis.judge({**SOUND, **facts}, keeps, (0.1, 0.4), 0.0))


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_more_writers_never_need_less(some: int, more: int) -> None:
    few, many = needs_of(min(some, more), SETTINGS), needs_of(max(some, more), SETTINGS)
    assert few.workers <= many.workers
    assert few.memory_bytes <= many.memory_bytes
    assert few.redis_commands_per_s <= many.redis_commands_per_s
    assert few.input_tokens_per_minute <= many.input_tokens_per_minute


def test_six_hundred_writers_who_ask_twice_a_minute() -> None:
    needs = needs_of(600, SETTINGS)
    assert needs.workers == 1
    assert needs.requests_per_minute == 1_230  # 1,200 turns, and 10 essays of three judges
    assert needs.input_tokens_per_minute == 1_230 * 1_600
    assert needs.files == 600 + 32 + 64 + 128


def test_a_quota_that_does_not_carry_the_writers_is_named() -> None:
    found = list(quota_for(needs_of(600, SETTINGS), SETTINGS))
    assert [each.status for each in found] == ["warn", "warn", "warn"]
    assert "a tier with 1,295" in found[0].fix
    assert [each.status for each in quota_for(needs_of(10, SETTINGS), SETTINGS)] == ["ok"] * 3


@pytest.mark.parametrize(
    ("theirs", "status"), [("1000", "ok"), ("4000", "ok"), ("999", "fail"), ("many", None)]
)
def test_a_quota_above_the_tier_is_a_failure(theirs: str, status: str | None) -> None:
    headers = {"anthropic-ratelimit-requests-limit": theirs}
    found = statuses(list(judge_headers("p", ANTHROPIC.quota, headers, time.time())))
    assert found.get("requests_per_minute") == status


def test_a_quota_that_is_not_set_is_a_warning() -> None:
    headers = {"x-ratelimit-limit-tokens": "30000"}
    (found,) = judge_headers("p", config.Quota(), headers, time.time())
    assert found.status == "warn"
    assert "quota.tokens_per_minute = 30000" in found.fix


@pytest.mark.parametrize(("apart_s", "count"), [(5, 0), (3_600, 1)])
def test_a_clock_that_differs_from_the_provider_is_a_warning(apart_s: int, count: int) -> None:
    headers = {"date": "Wed, 25 Nov 2026 12:00:00 GMT"}
    found = list(judge_headers("p", config.Quota(), headers, 1_795_608_000.0 + apart_s))
    assert [each.name for each in found] == ["clock"] * count


@pytest.mark.parametrize(
    ("http", "days", "expected"),
    [
        ("h2", 300, {"reached": "ok"}),
        ("http/1.1", 300, {"reached": "warn"}),
        ("h2", 3, {"reached": "ok", "certificate": "warn"}),
    ],
)
def test_what_a_handshake_shows(http: str, days: int, expected: dict[str, str]) -> None:
    ends_at = time.time() + days * 86_400
    handshake = Handshake(protocol="TLSv1.3", http=http, ends_at=ends_at)
    assert statuses(list(judge_handshake("p", handshake))) == expected


@pytest.mark.parametrize(
    ("facts", "keeps", "name", "status"),
    [
        ({}, {"appendfsync": "everysec"}, "persistence", "ok"),
        ({}, {"appendfsync": "no"}, "persistence", "fail"),
        ({"aof_enabled": 0}, {}, "persistence", "fail"),
        ({"aof_last_write_status": "err"}, {}, "persistence", "fail"),
        ({"maxmemory_policy": "noeviction"}, {}, "eviction", "ok"),
        ({"maxmemory_policy": "allkeys-lru"}, {}, "eviction", "fail"),
        ({"maxmemory": 100, "used_memory": 90}, {}, "memory", "warn"),
        ({"valkey_version": "7.0.15"}, {}, "version", "fail"),
        ({"role": "slave"}, {}, "role", "fail"),
        ({"cluster_enabled": 1}, {}, "role", "ok"),
    ],
)
def test_what_a_server_says_of_itself(
    facts: dict[str, object], keeps: dict[str, str], name: str, status: str
) -> None:
    assert redis_findings(facts, keeps)[name] == status


def test_a_slow_server_and_a_wrong_clock_are_warnings() -> None:
    found = statuses(redis.judge(SOUND, {}, (12.0, 30.0), 5.0))
    assert (found["latency"], found["clock"]) == ("warn", "warn")


def test_a_hard_limit_of_files_that_writers_do_not_fit_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    needs = needs_of(600, SETTINGS)
    found = {each.name: each for each in machine.examine_machine(SETTINGS, needs)}
    assert found["open files"].status == "fail"
    assert "LimitNOFILE=1648" in found["open files"].fix
    found = {each.name: each for each in machine.examine_machine(SETTINGS, None)}
    assert found["open files"].status == "warn"  # nobody has said that so many will come


@pytest.mark.parametrize(
    ("bind", "mode", "expected"),
    [
        ("127.0.0.1:8000", "open", {"who may come in": "ok", "transport": "ok"}),
        ("0.0.0.0:8000", "open", {"who may come in": "fail", "transport": "warn"}),
        ("0.0.0.0:8000", "jwt", {"who may come in": "ok", "addresses": "warn"}),
    ],
)
def test_an_open_door_to_the_network_is_a_failure(
    bind: str, mode: str, expected: dict[str, str]
) -> None:
    settings = config.Settings(
        server=config.Server(bind=bind),
        auth=config.Auth(mode=mode, secret="x" * 32),  # type: ignore[arg-type]
    )
    found = statuses(list(machine.examine_settings(settings, None)))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("after_days", "status"), [(-1, "fail"), (0, "ok"), (80, "warn"), (4_000, "fail")]
)
def test_a_certificate_that_ends_soon_is_told_before(
    tmp_path: Path, after_days: int, status: str
) -> None:
    now = datetime.now(UTC)
    certificates = Certificates(tmp_path).write(until=now + timedelta(days=90))
    server = certificates.server
    Path(str(server.tls_key)).chmod(0o644)
    later = now + timedelta(days=after_days)
    if after_days < 0:
        later = datetime(1999, 1, 1, tzinfo=UTC)
    found = statuses(list(machine.examine_certificate(server, later)))
    assert found == {"transport": "ok", "certificate": status, "key": "warn"}
    Path(str(server.tls_key)).chmod(0o600)
    assert "key" not in statuses(list(machine.examine_certificate(server, later)))
    settings = config.Settings(server=msgspec.structs.replace(server, bind="0.0.0.0:8443"))
    assert "addresses" not in statuses(list(machine.examine_settings(settings, None)))
    Path(str(server.tls_key)).write_text("no key")
    assert statuses(list(machine.examine_certificate(server, later))) == {"transport": "fail"}


def test_a_proxy_that_is_named_needs_no_warning() -> None:
    server = config.Server(bind="0.0.0.0:8000", trusted_proxies=("10.0.0.5",))
    found = machine.examine_settings(config.Settings(server=server), None)
    assert "addresses" not in statuses(list(found))


@pytest.mark.parametrize(
    ("text", "mode", "status"),
    [
        ('api_key = "sk-1"', 0o644, "warn"),
        ('api_key = "sk-1"', 0o600, "ok"),
        ('api_key = "env:KEY"', 0o644, "ok"),
        ('secret = "0123"', 0o644, "warn"),
    ],
)
def test_a_secret_that_others_can_read_is_a_warning(
    tmp_path: Path, text: str, mode: int, status: str
) -> None:
    path = tmp_path / "coach.toml"
    path.write_text(text)
    path.chmod(mode)
    assert statuses(list(machine.examine_settings(SETTINGS, path)))["secrets"] == status


async def test_without_a_provider_there_is_nothing_to_ask() -> None:
    (found,) = await providers.examine_providers(config.Settings(), None, ask=True)
    assert found.status == "fail"


def test_what_is_found_and_advised_is_printed_as_it_is() -> None:
    """`[[provider]]` is a table of the settings, and no markup."""
    page = io.StringIO()
    findings = [Finding("provider", "configured", "fail", "[none]", "add a [[provider]] to it")]
    print_report(findings, Console(file=page, width=100))
    assert "[none]" in page.getvalue()
    assert "→ add a [[provider]] to it" in page.getvalue()
