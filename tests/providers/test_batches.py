"""Both providers' batches against the simulator, on real TLS connections."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import attrs
import msgspec
import pytest
import trio

from coach import config
from coach.providers import BatchApi, BatchRequest, ProviderError, open_batch_api

from .test_simulated import JUDGED, Place, place

pytestmark = pytest.mark.real_time

KINDS: tuple[Literal["anthropic", "openai"], ...] = ("anthropic", "openai")
each_kind = pytest.mark.parametrize("kind", KINDS)


def api_of(here: Place, kind: Literal["anthropic", "openai"]) -> BatchApi:
    settings = config.Provider(
        name="p", kind=kind, base_url=here.simulator.url, model="sim-1", api_key="k"
    )
    found = open_batch_api(settings, here.pool)
    assert found is not None
    return found


@each_kind
async def test_a_batch_is_asked_found_and_answered(
    tmp_path: Path, kind: Literal["anthropic", "openai"]
) -> None:
    asked = [BatchRequest(f"c-{number}", JUDGED) for number in range(5)]
    wrong = attrs.evolve(JUDGED, schema={"type": "object", "properties": {"a": {"type": "object"}}})
    async with place(tmp_path, kind, batch_s=0.2) as here:
        api = api_of(here, kind)
        before = time.time()
        batch = await api.ask([*asked, BatchRequest("wrong", wrong)], label="job 1")
        (found,) = await api.find("job 1", since_s=before)
        assert found.batch == batch
        if found.is_ours:
            assert await api.find("job 2", since_s=before) == []
        else:
            assert await api.find("job 1", since_s=before + 1_000) == []
        with trio.fail_after(10):
            while not await api.is_ended(batch):  # noqa: ASYNC110
                await trio.sleep(0.05)
        results = {result.id: result for result in await api.results(batch)}
    assert results.keys() == {each.id for each in asked} | {"wrong"}
    assert results["wrong"].outcome == "refused"
    completion = results["c-0"].completion
    assert completion is not None
    assert msgspec.json.decode(completion.text).keys() == {"content"}
    assert completion.usage.input > 1_000
    assert completion.usage.output > 0


@each_kind
async def test_what_expires_is_told_and_a_full_quota_is_a_refusal(
    tmp_path: Path, kind: Literal["anthropic", "openai"]
) -> None:
    async with place(
        tmp_path, kind, batch_s=0.01, batch_expired_percent=100, batch_requests_max=1
    ) as here:
        api = api_of(here, kind)
        with pytest.raises(ProviderError) as caught:
            await api.ask([BatchRequest("a", JUDGED), BatchRequest("b", JUDGED)], label="x")
        assert caught.value.status == 429
        batch = await api.ask([BatchRequest("a", JUDGED)], label="x")
        await trio.sleep(0.1)
        assert await api.is_ended(batch)
        (result,) = await api.results(batch)
        assert (result.outcome, result.completion) == ("expired", None)
        with pytest.raises(ProviderError):
            await api.results("none")


def test_servers_that_only_speak_like_openai_are_asked_live() -> None:
    settings = config.Provider(
        name="p", kind="openai-compatible", base_url="https://x.test", model="m", api_key="k"
    )
    assert open_batch_api(settings, None) is None  # type: ignore[arg-type]
