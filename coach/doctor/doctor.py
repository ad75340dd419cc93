"""The examination: the machine, the settings, Redis and the providers, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from .. import config
from ..store import find_embedded
from .machine import examine_machine, examine_settings
from .needs import Needs, needs_of
from .providers import examine_providers
from .redis import examine_redis
from .report import Finding
from .traces import examine_traces

EMBEDDED_S_MAX: Final = 0.5
"""For an embedded server that runs to say so."""


async def examine(
    settings: config.Settings, *, path: Path | None, writers: int | None, ask: bool
) -> list[Finding]:
    """Look at everything; nothing is changed, and nothing is left behind.

    Args:
      settings: as coach would run with them.
      path: the file they are from.
      writers: how many are to write at once; None: nobody has said.
      ask: whether each provider may be asked for one token.

    Returns:
      What was found, in the order in which it is to be read.
    """
    needs = needs_of(writers, settings) if writers is not None else None
    findings = [*examine_machine(settings, needs), *examine_settings(settings, path)]
    if needs is not None:
        findings.append(_workers(needs, settings))
    url = settings.redis.url
    if url is None:
        with trio.move_on_after(EMBEDDED_S_MAX):
            url = await find_embedded(settings.data_path)
        if url is None:
            found = (
                f"the embedded Valkey of {settings.data_dir} does not run: coach serve starts it"
            )
            findings.append(Finding("redis", "answers", "ok", found))
    if url is not None:
        findings += await examine_redis(url, needs)
    if settings.traces.endpoint is not None:
        findings.append(await examine_traces(settings.traces.endpoint))
    return findings + await examine_providers(settings, needs, ask=ask)


def _workers(needs: Needs, settings: config.Settings) -> Finding:
    found = f"{needs.workers} for {needs.writers:,} writers, server.workers is "
    found += str(settings.server.workers)
    is_enough = settings.server.workers >= needs.workers
    fix = "" if is_enough else f"set server.workers = {needs.workers}, on as many cores"
    return Finding("writers", "workers", "ok" if is_enough else "fail", found, fix)
