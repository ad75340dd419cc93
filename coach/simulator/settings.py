"""How the simulated provider behaves: one record, settable at the command line and while it runs.

The simulator reads no settings of coach's: it stands where somebody else's machine would.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=10_000)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the simulator was told to do; the command line has an option for each field."""

    ttft_ms: Annotated[Amount, "mean time to the first token of a streamed answer"] = 200.0
    ttft_jitter_ms: Annotated[Amount, "its standard deviation (log-normal)"] = 40.0
    events_per_s: Annotated[Rate, "deltas a second of each stream"] = 10.0
    judge_ms: Annotated[Amount, "mean time to answer a request with a JSON schema"] = 1_500.0
    judge_jitter_ms: Annotated[Amount, "its standard deviation (log-normal)"] = 300.0
    max_concurrent_streams: Annotated[Count, "streams a connection may have open"] = 100
    requests_per_minute: Annotated[Count | None, "quota; absent: unlimited"] = None
    input_tokens_per_minute: Annotated[
        Count | None, "quota of uncached input and cache writes; absent: unlimited"
    ] = None
    output_tokens_per_minute: Annotated[Count | None, "quota; absent: unlimited"] = None
    tokens_per_minute: Annotated[
        Count | None, "quota of input and output together (OpenAI's rule); absent: unlimited"
    ] = None
    batch_s: Annotated[Amount, "mean time until a request of a batch is answered"] = 2.0
    batch_expired_percent: Annotated[
        float, Meta(ge=0, le=100), "of a batch's requests that expire unanswered"
    ] = 0.0
    batch_requests_max: Annotated[
        Count | None, "requests that batches may hold at a time; absent: unlimited"
    ] = None
    cache_ttl_s: Annotated[Amount, "life of a cached prefix after its last use"] = 300.0
    cache_tokens_min: Annotated[Count, "shortest prefix that is cached"] = 1_024
    context_tokens_max: Annotated[Count, "longest prompt"] = 200_000
    api_key: Annotated[str | None, "the only key accepted; absent: any"] = None
    seed: Annotated[int, "of every random choice"] = 0
    gullible: Annotated[bool, "judges obey what they read outside the essay's tags"] = False
    feedback_events_min: Annotated[
        Count, "repeat feedback until it has that many deltas: for measurements"
    ] = 1
    stamp: Annotated[
        bool, "begin each delta's text with @ and the moment of sending, CLOCK_MONOTONIC seconds"
    ] = False
    number: Annotated[
        bool, "begin each delta's text with a mark: the answer's id, its number, how many there are"
    ] = False


def changed(settings: Settings, changes: dict[str, object]) -> Settings:
    """Settings with some fields replaced.

    Raises:
      msgspec.ValidationError: an unknown field, or a value of the wrong type or range.
    """
    return msgspec.convert({**msgspec.structs.asdict(settings), **changes}, Settings, strict=False)
