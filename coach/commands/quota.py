"""`coach quota`: what providers allow, how it stands, and an operator's word on it.

Figures go to standard output, as text or (`--json`) as one JSON value; complaints to standard
error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ..errors import ConfigurationError
from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from .. import config
    from ..store import Redis

cli = typer.Typer(
    help="Quotas of provider endpoints: how they stand, live changes.", no_args_is_help=True
)

NameArgument = Annotated[str, typer.Argument(metavar="PROVIDER", help="As in its [[provider]].")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]
LimitOption = Annotated[int | None, typer.Option(min=1, max=10**12, help="In any 60 s.")]


@cli.command()
def show(
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print every endpoint's quota, how much of it is used, and who waits."""
    settings = load(config_file, data_dir)

    async def look(redis: Redis) -> list[dict[str, Any]]:
        return [await _standing(redis, settings, provider) for provider in settings.provider]

    found = ask_redis(settings, look)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)))
        return
    for endpoint in found:
        typer.echo(_said(endpoint))


@cli.command("set")
def set_(
    name: NameArgument,
    requests: LimitOption = None,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, max=10**12, help="Uncached input and cache writes.")
    ] = None,
    output_tokens: LimitOption = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=10**12, help="Input and output together (OpenAI).")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=744, help="How long it counts.")] = 24.0,
    may_exceed: Annotated[
        bool, typer.Option("--may-exceed", help="Also where it is more than the settings say.")
    ] = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a quota be another one for a while, in all workers from the next request on."""
    from ..budget import say_quota

    settings = load(config_file, data_dir)
    provider = _provider(settings, name)
    named = {"requests": requests, "input": input_tokens, "output": output_tokens, "tokens": tokens}
    limits = {dimension: limit for dimension, limit in named.items() if limit is not None}
    if not limits:
        raise ConfigurationError("say --requests, --input-tokens, --output-tokens or --tokens")

    async def change(redis: Redis) -> dict[str, Any]:
        await say_quota(
            redis,
            provider,
            settings.budget,
            limits,
            may_exceed=may_exceed,
            lasts_s=hours * 3_600,
        )
        return await _standing(redis, settings, provider)

    typer.echo(_said(ask_redis(settings, change)))


@cli.command()
def reset(
    name: NameArgument, config_file: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Let the settings decide again."""
    from ..budget import unsay_quota

    settings = load(config_file, data_dir)
    provider = _provider(settings, name)

    async def change(redis: Redis) -> dict[str, Any]:
        await unsay_quota(redis, provider.name)
        return await _standing(redis, settings, provider)

    typer.echo(_said(ask_redis(settings, change)))


async def _standing(
    redis: Redis, settings: config.Settings, provider: config.Provider
) -> dict[str, Any]:
    """An endpoint as it is now."""
    from ..budget import DIMENSIONS, open_endpoint_budget, said_for_s

    async with open_endpoint_budget(
        redis,
        endpoint=provider.name,
        quota=provider.quota,
        settings=settings.budget,
        worker="coach-quota",
    ) as budget:
        statistics = await budget.statistics()
        capacity = budget.capacity
    quota = {name: limit for name, limit in zip(DIMENSIONS, capacity.quota, strict=True) if limit}
    left = {
        name: max(
            0,
            limit * settings.budget.hard_percent // 100 - round(statistics.used[name] * limit),
        )
        for name, limit in quota.items()
    }
    return {
        "endpoint": provider.name,
        "quota": quota,
        "used": statistics.used,
        "left": left,
        "line": statistics.line,
        "gate_s": statistics.gate_s,
        "said_for_s": await said_for_s(redis, provider.name),
    }


def _provider(settings: config.Settings, name: str) -> config.Provider:
    for provider in settings.provider:
        if provider.name == name:
            return provider
    known = ", ".join(provider.name for provider in settings.provider) or "none is configured"
    raise ConfigurationError(f"there is no provider {name!r}: {known}")


def _said(endpoint: dict[str, Any]) -> str:
    parts = [
        f"{dimension} {limit:,} a minute, {endpoint['used'].get(dimension, 0.0):.0%} used"
        f" and {endpoint['left'][dimension]:,} left"
        for dimension, limit in endpoint["quota"].items()
    ] or ["no quota"]
    waiting = sum(endpoint["line"].values())
    if waiting:
        parts.append(f"{waiting:,} in line")
    if endpoint["gate_s"]:
        parts.append(f"its gate is closed for {endpoint['gate_s']:.0f} s")
    said_for_s = endpoint["said_for_s"]
    whose = "from the settings"
    if said_for_s is not None:
        whose = f"set by coach quota, for {said_for_s / 3_600:.1f} h"
    return f"{endpoint['endpoint']}: {'; '.join(parts)} ({whose})"
