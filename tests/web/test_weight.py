"""What a page weighs, and that it needs nothing from anywhere else."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

WEB = Path(__file__).parents[2] / "coach" / "web"
GZIPPED_BYTES_MAX = 150_000


def parts(page: str) -> set[Path]:
    """A page, what it names, and what that imports, as files."""
    found: set[Path] = set()
    open_ = [WEB / page]
    while open_:
        path = open_.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix not in {".html", ".js"}:
            continue
        text = path.read_text(encoding="utf-8")
        named = re.findall(r'(?:src|href)="([^"#]+)"|\bfrom "([^"]+)"|\bimport "([^"]+)"', text)
        for name in filter(None, (name for names in named for name in names)):
            if name.startswith("/static/"):
                open_.append(WEB / name.removeprefix("/static/"))
            elif name.startswith("./"):
                open_.append(path.parent / name)
            else:
                assert not urlsplit(name).scheme, f"{path.name} asks another server: {name}"
    return found


@pytest.mark.parametrize("page", ["index.html", "ops.html", "review.html"])
def test_a_page_is_light_and_whole(page: str) -> None:
    """At most 150 KB as it travels, with all its scripts and styles, each of which is there."""
    files = parts(page)
    assert len(files) > 3
    weight = sum(len(gzip.compress(path.read_bytes())) for path in files)
    assert weight <= GZIPPED_BYTES_MAX


def test_no_page_has_script_or_style_of_its_own() -> None:
    """The policy of every page forbids both; what stood there would not run."""
    for path in WEB.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", text), path.name
