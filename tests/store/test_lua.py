"""Every script keeps to the rules, and compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach.store.scripts import FOLDER, script
from tests.store.lua_rules import chain, problems
from tests.support.valkey import open_test_redis

SOURCES = {path.stem: path.read_text() for path in Path(str(FOLDER)).glob("*.lua")}

GOOD = """--[[
good.lua: an example.

KEYS[1]  a  STRING
ARGV[1]  n  integer

Returns  n
Clock    TIME of Redis
]]
local a = KEYS[1]
local now = redis.call("TIME")
redis.call("SET", a, ARGV[1] .. now[1])
redis.call("DEL", KEYS[#KEYS - 1])
return ARGV[1]
"""


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_script_keeps_to_the_rules(name: str) -> None:
    assert problems(name, SOURCES) == []


@pytest.mark.real_time
async def test_every_script_compiles(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        for name in SOURCES:
            whole = "\n".join(SOURCES[each] for each in chain(name, SOURCES))
            assert await redis.script_load(whole), name


def test_a_script_is_sent_behind_its_libraries() -> None:
    """In the order in which their headers name them, each once, also where a line ends between."""
    for name, libraries in {
        "queue_mail": [],
        "limit_reserve": ["arguments", "budget_window", "limit_window"],
        "budget_admit": ["arguments", "budget_window", "budget_quota", "budget_line"],
        "queue_cancel": ["arguments", "queue_jobs"],
        "circuit_report": ["arguments"],
    }.items():
        whole = script(name).source
        assert whole == "\n".join(SOURCES[each] for each in [*libraries, name])
        assert chain(name, SOURCES) == [*libraries, name]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("", "", ""),
        ("--[[", "", "no header"),
        ("good.lua:", "other.lua:", "file's name"),
        ("KEYS[1]  a  STRING\n", "", "no section KEYS"),
        ("ARGV[1]  n  integer\n", "", "no section ARGV"),
        ("Returns  n\n", "", "no section Returns"),
        ("Clock    TIME of Redis\n", "", "whose clock"),
        ('redis.call("TIME")', "os.time()", "other than TIME"),
        ("local a = KEYS[1]", 'local a = "a:" .. KEYS[1]', "builds a key"),
        ("local a = KEYS[1]", 'local b, a = KEYS[1], "a"', "builds a key"),
        ("local a = KEYS[1]", 'local a\na = string.format("a:%d", 1)', "builds a key"),
        ('"SET", a,', '"SET", "a",', "builds a key"),
        ('"SET", a,', '"SET", a .. 1,', "builds a key"),
        ('redis.call("SET", a,', "redis.pcall('SET', KEYS[1] .. ':x',", "builds a key"),
    ],
)
def test_each_rule_finds_what_breaks_it(old: str, new: str, problem: str) -> None:
    found = problems("good", {"good": GOOD.replace(old, new, 1) if old else GOOD})
    assert len(found) == bool(problem)
    assert problem in "".join(found)


def test_shared_data_may_be_described_in_one_place() -> None:
    data = GOOD.replace("good.lua", "data.lua")
    other = GOOD.replace("Clock    TIME of Redis", "Data and invariants: data.lua")
    assert problems("good", {"good": other, "data": data}) == []
    assert "whose clock" in "".join(problems("good", {"good": other}))


def test_what_stands_behind_another_script_shares_its_header() -> None:
    base = GOOD.replace("good.lua", "base.lua")
    behind = '--[[\nrest.lua: more. Behind base.lua.\n]]\nredis.call("DEL", KEYS[1])\nreturn a\n'
    sources = {"base": base, "rest": behind}
    assert chain("rest", sources) == ["base", "rest"]
    assert problems("rest", sources) == []
    assert problems("rest", {"rest": behind}) == [
        "the header has no section KEYS",
        "the header has no section Returns",
    ]
