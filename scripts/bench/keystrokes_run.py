"""What scripts/bench/keystrokes does, once it has its environment."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import trio
from _environment import ROOT

from coach.simulator.corpus import load_essays

sys.path.insert(0, str(ROOT))  # the tests' browser is this one's

from tests.support.browser import CHROMIUM, browse, close_browser, open_page
from tests.support.fake_coach import FakeCoach, open_fake_coach

NAMES = ("handlers", "work", "paint")
VIEWPORT = {"width": 1440, "height": 900}
PAUSE_MS = 60
"""Between two keys: somebody who types fast."""

WATCH = """(selector) => {
  const area = document.querySelector(selector);
  area.focus();
  const middle = area.value.indexOf(" ", area.value.length / 2);
  area.setSelectionRange(middle, middle);
  window.found = [];
  let begun = 0;
  const channel = new MessageChannel();
  let frame = 0;
  let handled = 0;
  channel.port1.onmessage = () => {
    const now = performance.now();
    window.found.push({ handlers: handled, work: handled + now - frame, paint: now - begun });
  };
  area.addEventListener("beforeinput", (event) => {
    begun = event.timeStamp;
    handled = performance.now();
  }, true);
  window.addEventListener("input", () => {
    handled = performance.now() - handled;
    requestAnimationFrame(() => { frame = performance.now(); channel.port2.postMessage(0); });
  });
}"""
BARE = """(text) => {
  const area = document.createElement("textarea");
  area.id = "bare";
  const draft = document.getElementById("draft");
  draft.value = text;
  const { font } = getComputedStyle(draft);
  const { clientWidth: width, scrollHeight: height } = draft;
  Object.assign(area.style, { width: `${width}px`, height: `${height}px`, font });
  document.body.replaceChildren(area);
  area.value = text;
}"""


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--characters", type=int, default=99_000)
    parser.add_argument("--keystrokes", type=int, default=200)
    parser.add_argument("--limit-ms", type=float, default=16.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if CHROMIUM is None:
        print("keystrokes: no chromium on the PATH: install the distribution's package")
        return 2
    try:
        found = trio.run(_measure, options.characters, options.keystrokes)
    finally:
        close_browser()
    for where, figures in found.items():
        told = [f"{name} p50 {p50:.1f} p95 {p95:.1f} ms" for name, (p50, p95) in figures.items()]
        print(f"{where:6} {', '.join(told)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    return 0 if found["page"]["work"][0] < options.limit_ms else 1


async def _measure(characters: int, keystrokes: int) -> dict[str, dict[str, tuple[float, float]]]:
    essays = "\n\n".join(essay.text for essay in load_essays())
    text = (essays * (characters // len(essays) + 1))[:characters]

    def act(url: str) -> dict[str, dict[str, tuple[float, float]]]:
        with open_page(url, viewport=VIEWPORT) as page:
            page.evaluate(BARE, text)
            bare = _type(page, "#bare", keystrokes)
        with open_page(url, viewport=VIEWPORT) as page:
            page.locator("#draft").fill(text)
            page.locator("#draft").press("Control+Enter")
            page.wait_for_selector(".note.anchored")
            page.wait_for_selector("#turn.busy", state="detached")
            return {"page": _type(page, "#draft", keystrokes), "bare": bare}

    async with open_fake_coach(FakeCoach(first_token_s=0.05, event_s=0.002)) as coach:
        return await browse(act, coach.url)


def _type(page: Any, selector: str, keystrokes: int) -> dict[str, tuple[float, float]]:
    page.evaluate(WATCH, selector)
    page.wait_for_timeout(500)
    for number in range(keystrokes):
        page.keyboard.press("e" if number % 6 else "Space")
        page.wait_for_timeout(PAUSE_MS)
    found = page.evaluate("() => window.found")
    assert len(found) >= keystrokes * 0.9
    return {name: _percentiles([each[name] for each in found]) for name in NAMES}


def _percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    p50, p95 = (round(ordered[int(share * (len(ordered) - 1))], 2) for share in (0.5, 0.95))
    return p50, p95
