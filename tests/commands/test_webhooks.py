"""`coach webhooks` against a real Valkey."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from coach import config
from coach.errors import CoachError
from coach.grading import Claim, Submission, delivery_desk
from coach.store import open_embedded, open_redis

from . import inside

pytestmark = pytest.mark.real_time


async def test_an_operator_sees_what_was_given_up_sends_it_again_and_drops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COACH_DATA_DIR", str(tmp_path))
    says = partial(inside.says, "webhooks")
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        await redis.execute_command("CONFIG SET", "appendfsync", "always")
        deliveries = delivery_desk(redis, config.Settings()).queue
        await deliveries.submit(
            Submission(id="msg_1", user="", org="school", assignment="s", text="{}", kind="webhook")
        )
        claim = await deliveries.claim(0, ("submission",))
        assert isinstance(claim, Claim)
        await deliveries.fail(claim, reason="answered 500", final=True)
        assert await says("show") == "0 ready, 0 put off, 0 under way, 1 given up\n"
        (dead,) = json.loads(await says("show", "--state", "dead", "--json"))
        assert (dead["id"], dead["reason"]) == ("msg_1", "answered 500")
        assert await says("retry", "--all") == "1 ready now\n"
        assert await says("drop", "msg_1", "--yes") == "1 dropped\n"
        assert json.loads(await says("show", "--json"))["dead"] == 0
    with pytest.raises(CoachError, match="name them, or say --all"):
        await says("retry")
