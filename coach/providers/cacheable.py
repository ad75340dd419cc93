"""How providers cache the beginning of a prompt: for how long, from which length, at which price.

Sources: platform.claude.com, "Prompt caching" (life of 5 minutes or an hour, refreshed by every
read; an entry "only becomes available after the first response begins"; a shorter prefix is not
cached and nobody says so; pre-warming) and "Rate limits" (what is read does not count).
developers.openai.com, "Prompt caching" (from 1,024 tokens on, without being asked; gone after 5 to
10 minutes without a request, after an hour in any case; requests that agree in `prompt_cache_key`
meet the same machines) and "Rate limits" (what is read counts as well).
"""

from __future__ import annotations

from typing import Final

import attrs

from .. import config

LIFE_S: Final = {"5m": 300.0, "1h": 3_600.0}
OPENAI_LIFE_S: Final = 300.0
TOKENS_MIN: Final = 1_024
"""Where nobody knows better."""
PING_AHEAD_SHARE: Final = 0.1
"""Of an entry's life, what is left of it when a ping is thought about."""


@attrs.frozen(kw_only=True)
class Terms:
    """An endpoint's terms of caching."""

    ttl_s: float
    """Life of an entry that nobody reads."""
    tokens_min: int
    """A shorter prefix is not cached."""
    counts_at_start: bool
    """The response begins with how much was read and written."""
    spares_quota: bool
    """What is read does not count towards the quota."""
    may_ping: bool
    """Reading an entry refreshes it, by a documented rule."""

    @property
    def ping_ahead_s(self) -> float:
        """How long before its end an entry is refreshed."""
        return self.ttl_s * PING_AHEAD_SHARE


@attrs.frozen
class CachePrice:
    """What a token costs, in any unit: only how they compare counts."""

    input: float
    write: float
    read: float
    output: float


ANTHROPIC_PRICE: Final = {
    "5m": CachePrice(1.0, 1.25, 0.1, 5.0),
    "1h": CachePrice(1.0, 2.0, 0.1, 5.0),
}
"""Where a model's price is not known: its multipliers are the same for nearly all models."""


def terms_of(
    provider: config.Provider, settings: config.Cache, *, tokens_min: int = TOKENS_MIN
) -> Terms | None:
    """An endpoint's terms; None where nobody knows whether, and for how long, it caches anything.

    Args:
      provider: its settings, which go before what is known of its kind.
      settings: the life that is asked for, where it can be.
      tokens_min: of its model, by the price list.
    """
    is_anthropic = provider.kind == "anthropic"
    if provider.kind == "openai-compatible" and provider.cache_ttl_s is None:
        return None
    life_s = LIFE_S[settings.ttl] if is_anthropic else OPENAI_LIFE_S
    return Terms(
        ttl_s=provider.cache_ttl_s or life_s,
        tokens_min=provider.cache_tokens_min or tokens_min,
        counts_at_start=is_anthropic,
        spares_quota=is_anthropic,
        may_ping=is_anthropic,
    )
