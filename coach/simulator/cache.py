"""The provider's prompt cache: which part of a prompt is read, written or neither; pure.

A prompt is a row of blocks, some of which end with a breakpoint. An entry is the hash of
everything up to a breakpoint. A request reads the longest entry that ends at one of its block
boundaries, at most 20 blocks before a breakpoint, and writes the entries at its later breakpoints.

Source: Anthropic, "Prompt caching": minimum length, life of 5 minutes (or an hour) refreshed by
every read, at most four breakpoints, and an entry "only becomes available after the first response
begins". A request that reads an entry uses what stands before it as well, so that entries at its
earlier breakpoints are taken to be refreshed too; the documentation does not say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import attrs

LOOKBACK_BLOCKS: Final = 20
HOUR_S: Final = 3_600.0


@attrs.frozen
class CacheBlock:
    """A piece of a prompt."""

    text: str
    """With whatever else distinguishes the block: role, kind."""
    tokens: int
    breakpoint: bool = False
    hour: bool = False
    """The breakpoint asks for a life of an hour in place of the usual one."""


@attrs.frozen
class CachePlan:
    """What one request would read and write; `read + write + uncached` is the whole prompt."""

    read: int
    write: int
    write_hour: int
    """The part of `write` that is to live for an hour."""
    uncached: int
    touched: tuple[bytes, ...]
    """The entry that is read, and those within it at which the request has breakpoints."""
    entries: tuple[tuple[bytes, bool], ...]
    """What `commit` will write: hash, and whether for an hour."""


class PromptCache:
    """Entries by prefix hash. Memory: some 150 bytes an entry, at most `entries_max` of them."""

    def __init__(
        self,
        *,
        ttl_s: float,
        tokens_min: int,
        entries_max: int = 100_000,
        lookback_blocks: int = LOOKBACK_BLOCKS,
    ) -> None:
        self.ttl_s = ttl_s
        self.tokens_min = tokens_min
        self._lookback_blocks = lookback_blocks
        self._entries_max = entries_max
        self._entries: dict[bytes, tuple[float, float]] = {}
        # prefix hash -> (when it dies unless read, its life in seconds); oldest use first

    def plan(self, model: str, blocks: Sequence[CacheBlock], now: float) -> CachePlan:
        """Decide what a request reads and would write; changes nothing."""
        digest = hashlib.blake2b(model.encode("utf-8", "surrogatepass"), digest_size=16)
        ends: list[tuple[bytes, int]] = []
        total = 0
        for block in blocks:
            data = block.text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data))
            digest.update(data)
            total += block.tokens
            ends.append((digest.digest(), total))
        breakpoints = [index for index, block in enumerate(blocks) if block.breakpoint]
        hit = self._longest(ends, breakpoints, now)
        read = ends[hit][1] if hit is not None else 0
        used = [] if hit is None else sorted({hit, *(at for at in breakpoints if at < hit)})
        written, written_hour, entries = read, 0, []
        for index in breakpoints:
            key, tokens = ends[index]
            if tokens > read and tokens >= self.tokens_min:
                if blocks[index].hour:
                    written_hour += tokens - written
                written = tokens
                entries.append((key, blocks[index].hour))
        return CachePlan(
            read=read,
            write=written - read,
            write_hour=written_hour,
            uncached=total - written,
            touched=tuple(ends[index][0] for index in used),
            entries=tuple(entries),
        )

    def touch(self, plan: CachePlan, now: float) -> None:
        """Refresh what is read; called when the request is admitted."""
        for key in plan.touched:
            if key in self._entries:
                _, life = self._entries.pop(key)
                self._entries[key] = (now + life, life)

    def commit(self, plan: CachePlan, now: float) -> None:
        """Make what was written readable; called when the response begins."""
        for key, hour in plan.entries:
            life = HOUR_S if hour else self.ttl_s
            self._entries.pop(key, None)
            self._entries[key] = (now + life, life)
        while len(self._entries) > self._entries_max:
            del self._entries[next(iter(self._entries))]

    def _longest(
        self, ends: Sequence[tuple[bytes, int]], breakpoints: Sequence[int], now: float
    ) -> int | None:
        for at in reversed(breakpoints):
            for index in range(at, max(-1, at - self._lookback_blocks), -1):
                key, tokens = ends[index]
                if tokens < self.tokens_min:
                    break
                entry = self._entries.get(key)
                if entry is not None:
                    if entry[0] > now:
                        return index
                    del self._entries[key]
        return None

    def __len__(self) -> int:
        return len(self._entries)
