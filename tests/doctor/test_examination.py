"""The whole examination, with a real server and a simulated provider on real TLS."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from coach import config
from coach.doctor import as_json, examine
from coach.doctor.providers import examine_providers
from coach.doctor.redis import examine_redis
from coach.doctor.traces import examine_traces
from coach.ops import traces
from coach.simulator.authority import CA_NAME
from coach.simulator.messages import Messages
from coach.simulator.provider import Provider as Simulator
from coach.simulator.provider import open_provider as open_simulator
from coach.simulator.settings import Settings
from coach.store import open_embedded

pytestmark = pytest.mark.real_time

QUICK = Settings(ttft_ms=10, judge_ms=10, ttft_jitter_ms=0, requests_per_minute=50, api_key="right")


async def test_a_sound_place_and_what_it_cost(tmp_path: Path) -> None:
    async with (
        open_embedded(tmp_path / "valkey", appendonly=True) as server,
        open_simulator(QUICK, {}, data_dir=tmp_path, dialect=Messages()) as simulator,
    ):
        settings = config.Settings(
            data_dir=str(tmp_path),
            redis=config.Redis(url=server.url),
            provider=(provider(simulator.url, tmp_path, requests=40),),
        )
        found = await examine(settings, path=None, writers=10, ask=True)
        asked = await requests_heard(simulator, tmp_path)
    assert [each for each in found if each.status == "fail"] == []
    by_name = {(each.area, each.name): each for each in found}
    assert "h2" in by_name["provider p", "reached"].found
    assert "40 of the tier's 50" in by_name["provider p", "requests_per_minute"].found
    assert "appendfsync everysec" in by_name["redis", "persistence"].found
    assert asked == 1
    assert len(msgspec.json.decode(as_json(found))) == len(found)


@pytest.mark.parametrize(
    ("key", "requests", "name", "status"),
    [
        ("wrong", 40, "answers", "fail"),
        ("right", 60, "requests_per_minute", "fail"),
    ],
)
async def test_a_key_or_a_quota_that_is_wrong_is_a_failure(
    tmp_path: Path, key: str, requests: int, name: str, status: str
) -> None:
    async with open_simulator(QUICK, {}, data_dir=tmp_path, dialect=Messages()) as simulator:
        one = provider(simulator.url, tmp_path, requests=requests, key=key)
        found = await examine_providers(config.Settings(provider=(one,)), None, ask=True)
    assert {each.name: each.status for each in found}[name] == status


async def test_who_is_not_to_be_asked_is_not(tmp_path: Path) -> None:
    async with open_simulator(QUICK, {}, data_dir=tmp_path, dialect=Messages()) as simulator:
        one = provider(simulator.url, tmp_path, requests=40, key="wrong")
        found = await examine_providers(config.Settings(provider=(one,)), None, ask=False)
        assert await requests_heard(simulator, tmp_path) == 0
    assert [each.status for each in found] == ["ok"]


async def test_who_does_not_answer_is_a_failure_each() -> None:
    one = config.Provider(name="p", base_url="https://127.0.0.1:1", model="m", api_key="k")
    found = await examine_providers(config.Settings(provider=(one,)), None, ask=True)
    found += await examine_redis("redis://:secret@127.0.0.1:1", None)
    assert [each.status for each in found] == ["fail", "fail"]
    assert "secret" not in found[1].found


async def test_the_command_says_by_its_exit_code_that_something_must_be_mended(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "coach", "doctor", "--json", "--data-dir", str(tmp_path)]
    done = await trio.run_process(command, capture_stdout=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    found = msgspec.json.decode(done.stdout)
    assert [each["name"] for each in found if each["status"] == "fail"] == ["configured"]


async def requests_heard(simulator: Simulator, path: Path) -> int:
    trusted = ssl.create_default_context(cafile=str(path / CA_NAME))
    async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
        stats = (await client.get(f"{simulator.url}/stats")).json()
    return int(stats["requests"])


def provider(url: str, path: Path, *, requests: int, key: str = "right") -> config.Provider:
    return config.Provider(
        name="p",
        base_url=url,
        model="sim-1",
        api_key=key,
        ca_file=str(path / CA_NAME),
        quota=config.Quota(requests_per_minute=requests),
    )


async def test_traces_need_their_packages_and_somebody_who_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is sent; a collector that is away is no reason not to start."""
    monkeypatch.setattr(traces, "is_installed", lambda: True)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        found = [await examine_traces(f"http://127.0.0.1:{port}/v1/traces")]
    found.append(await examine_traces(f"http://127.0.0.1:{port}/v1/traces"))
    monkeypatch.setattr(traces, "is_installed", lambda: False)
    found.append(await examine_traces(f"http://127.0.0.1:{port}/v1/traces"))
    assert [each.status for each in found] == ["ok", "warn", "fail"]
    assert "coach[otel]" in found[2].fix
