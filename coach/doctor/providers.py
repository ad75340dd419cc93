"""The providers: whether they are reached, by which HTTP, whether they know the key, and quotas."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import attrs
import trio

from .. import config
from ..providers import (
    Block,
    Completion,
    Message,
    Pool,
    Prompt,
    ProviderError,
    open_pool,
    open_provider,
    origin_of,
)
from .needs import Needs
from .report import Finding, Status

REACH_S_MAX: Final = 5.0
ASK_S_MAX: Final = 20.0
SKEW_S_MAX: Final = 30.0
CERTIFICATE_DAYS_MIN: Final = 14
PROMPT: Final = Prompt(
    system=(), messages=(Message("user", (Block("Say yes."),)),), output_tokens_max=16
)
"""The least that a model can be asked for."""

LIMITS: Final[Mapping[str, str]] = {
    "anthropic-ratelimit-requests-limit": "requests_per_minute",
    "anthropic-ratelimit-input-tokens-limit": "input_tokens_per_minute",
    "anthropic-ratelimit-output-tokens-limit": "output_tokens_per_minute",
    "x-ratelimit-limit-requests": "requests_per_minute",
    "x-ratelimit-limit-tokens": "tokens_per_minute",
}
"""Response header -> the setting in `quota` that must not be above it. Sources: budget/quota.py."""

FIXES: Final = {
    "auth": "mend api_key: it is refused, or may not use this model, or its bill is open",
    "refused": "mend model, or base_url: the provider does not take the simplest request",
    "rate_limited": "the quota is used up at this moment: try again, or ask for a higher tier",
    "overloaded": "the provider has no room now: try again",
    "unreachable": "mend base_url, the network, or ca_file",
}


@attrs.frozen(kw_only=True)
class Handshake:
    """What the TLS handshake has shown."""

    protocol: str
    http: str
    ends_at: float | None
    """When the certificate ends, seconds since 1970."""


async def examine_providers(
    settings: config.Settings, needs: Needs | None, *, ask: bool
) -> list[Finding]:
    """Look at every configured provider.

    Args:
      settings: with them.
      needs: what is to be asked of them; None where nobody has said.
      ask: whether each may be asked for one token, which costs as much. Without it neither key
        nor quota can be checked.
    """
    if not settings.provider:
        fix = "add a [[provider]] to coach.toml, or try coach demo"
        return [Finding("provider", "configured", "fail", "none", fix)]
    found: dict[str, list[Finding]] = {each.name: [] for each in settings.provider}
    async with open_pool(settings) as pool, trio.open_nursery() as nursery:
        for each in settings.provider:
            nursery.start_soon(_examine, each, pool, found[each.name], ask)
    findings = [finding for each in found.values() for finding in each]
    if needs is not None:
        findings += quota_for(needs, settings)
    return findings


async def _examine(
    settings: config.Provider, pool: Pool, findings: list[Finding], ask: bool
) -> None:
    area = f"provider {settings.name}"
    try:
        with trio.fail_after(REACH_S_MAX):
            handshake = await _shake_hands(settings)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
        reason = str(error) or f"no answer within {REACH_S_MAX:g} s"
        findings.append(Finding(area, "reached", "fail", reason, FIXES["unreachable"]))
        return
    findings += judge_handshake(area, handshake)
    if not ask:
        return
    headers: dict[str, str] = {}
    begun = trio.current_time()
    try:
        with trio.fail_after(ASK_S_MAX):
            completion = await open_provider(settings, pool).complete(
                PROMPT, on_headers=headers.update
            )
    except ProviderError as error:
        status: Status = "warn" if error.kind in {"rate_limited", "overloaded"} else "fail"
        fix = FIXES.get(error.kind, "see what the provider says")
        findings.append(Finding(area, "answers", status, str(error), fix))
    except trio.TooSlowError:
        findings.append(
            Finding(area, "answers", "warn", f"nothing within {ASK_S_MAX:g} s", "try again")
        )
    else:
        findings.append(_answered(area, completion, trio.current_time() - begun))
    findings += judge_headers(area, settings.quota, headers, time.time())


async def _shake_hands(settings: config.Provider) -> Handshake | None:
    """Connect as the pool does. None: without TLS."""
    origin = origin_of(settings.base_url)
    if not origin.secure:
        stream = await trio.open_tcp_stream(origin.host, origin.port)
        await stream.aclose()
        return None
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    secure = await trio.open_ssl_over_tcp_stream(origin.host, origin.port, ssl_context=context)
    try:
        await secure.do_handshake()
        ends = (secure.getpeercert() or {}).get("notAfter")
        return Handshake(
            protocol=secure.version() or "",
            http=secure.selected_alpn_protocol() or "http/1.1",
            ends_at=ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None,
        )
    finally:
        await trio.aclose_forcefully(secure)


def judge_handshake(area: str, handshake: Handshake | None) -> Iterator[Finding]:
    """Whether hundreds of streams fit one connection, and how long the certificate lasts."""
    if handshake is None:
        yield Finding(area, "reached", "ok", "in the clear, on this machine, HTTP/1.1")
        return
    found = f"{handshake.protocol}, {handshake.http}"
    if handshake.http == "h2":
        yield Finding(area, "reached", "ok", found)
    else:
        fix = "a proxy in between speaks no HTTP/2: each request takes a connection of its own"
        yield Finding(area, "reached", "warn", found, fix)
    if handshake.ends_at is not None:
        days = (handshake.ends_at - time.time()) / 86_400
        if days < CERTIFICATE_DAYS_MIN:
            yield Finding(
                area, "certificate", "warn", f"ends in {days:.0f} days", "have it renewed"
            )


def judge_headers(
    area: str, quota: config.Quota, headers: Mapping[str, str], now: float
) -> Iterator[Finding]:
    """Whether the settings promise more than the provider's tier gives, and the clocks agree."""
    for header, name in LIMITS.items():
        text = headers.get(header, "")
        if not (text.isascii() and text.isdigit()):
            continue
        theirs, ours = int(text), getattr(quota, name)
        if ours is None:
            fix = f"set quota.{name} = {theirs}: without it nothing keeps coach from a 429"
            yield Finding(area, name, "warn", f"the tier has {theirs:,}, no quota is set", fix)
        elif ours > theirs:
            fix = f"set quota.{name} = {theirs}: 429s are sure to come"
            yield Finding(area, name, "fail", f"set to {ours:,}, the tier has {theirs:,}", fix)
        else:
            yield Finding(area, name, "ok", f"{ours:,} of the tier's {theirs:,}")
    try:
        skew_s = abs(parsedate_to_datetime(headers["date"]).timestamp() - now)
    except (KeyError, ValueError):
        return
    if skew_s > SKEW_S_MAX:
        fix = "run NTP on this machine"
        yield Finding(area, "clock", "warn", f"{skew_s:.0f} s apart from this machine's", fix)


def quota_for(needs: Needs, settings: config.Settings) -> Iterator[Finding]:
    """Whether the first provider's quota carries these writers."""
    first = settings.provider[0]
    share = settings.budget.hard_percent / 100
    wanted = {
        "requests_per_minute": needs.requests_per_minute,
        "input_tokens_per_minute": needs.input_tokens_per_minute,
        "output_tokens_per_minute": needs.output_tokens_per_minute,
        "tokens_per_minute": needs.input_tokens_per_minute + needs.output_tokens_per_minute,
    }
    for name, most in wanted.items():
        have = getattr(first.quota, name)
        if have is None:
            continue
        found = f"{most:,} of {have:,} {name.replace('_', ' ')}"
        if most > have * share:
            fix = f"a tier with {most / share:,.0f}, or more providers; else writers wait in line"
            yield Finding("writers", f"{first.name}'s quota", "warn", found, fix)
        else:
            yield Finding("writers", f"{first.name}'s quota", "ok", found)


def _answered(area: str, completion: Completion, took_s: float) -> Finding:
    return Finding(
        area, "answers", "ok", f"{completion.model} after {took_s * 1000:.0f} ms; the key is good"
    )
