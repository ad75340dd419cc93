"""What every script in `coach/store/lua` keeps to, checked on its text.

A script may stand behind another ("Behind base.lua, …" in its header): then what the base's header
says counts for it too. It may leave the description of shared data to another's header ("Data and
invariants: other.lua"): then what that says of the clock counts for it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from coach.store.scripts import library_of

_DATA = re.compile(r"\bData and invariants: (\w+)\.lua\b")
_KEY = re.compile(r"KEYS\[[\w #+*-]+\]|[A-Za-z_][\w.]*")
_CLOCKS = re.compile(r"\bos\.(?:time|clock|date)\b")


def split(source: str) -> tuple[str, str]:
    """The header and the code."""
    if not source.startswith("--[[\n") or "\n]]\n" not in source:
        return "", source
    header, _, code = source.removeprefix("--[[\n").partition("\n]]\n")
    return header, re.sub(r"--.*", "", code)


def chain(name: str, sources: Mapping[str, str]) -> list[str]:
    """The names of the files that run as one script, the base first."""
    names = [name]
    while (base := library_of(sources[names[0]])) in sources and base not in names:
        assert base is not None
        names.insert(0, base)
    return names


def problems(name: str, sources: Mapping[str, str]) -> list[str]:
    """What is wrong with one file, a line each."""
    header, code = split(sources[name])
    if not header:
        return ["has no header"]
    found = []
    if not header.startswith(f"{name}.lua: "):
        found.append("the header does not begin with the file's name")
    names = chain(name, sources)
    headers = "\n".join(split(sources[each])[0] for each in names)
    everything = "\n".join(split(sources[each])[1] for each in names)
    uses = {"KEYS": r"\bKEYS\b", "ARGV": r"\bARGV\b", "Returns": r"(?m)^return\b"}
    found += [
        f"the header has no section {section}"
        for section, used in uses.items()
        if re.search(used, code) and not re.search(rf"(?m)^{section}\b", headers)
    ]
    described = _DATA.search(headers)
    data = split(sources.get(described[1], ""))[0] if described else ""
    if re.search(r"""["']TIME["']""", everything) and not re.search(
        r"(?i)\bclock\b", headers + data
    ):
        found.append("the header does not say whose clock it uses")
    if _CLOCKS.search(code):
        found.append("uses a clock other than TIME")
    found += [f"line builds a key: {call}" for call in built_keys(code)]
    return found


def built_keys(code: str) -> Iterator[str]:
    """Calls whose key is not passed in: a literal, a concatenation, or a variable that was one."""
    for call in re.finditer(r"\bredis\.p?call\s*\(", code):
        arguments = _arguments(code, call.end())
        if len(arguments) < 2:
            continue
        key = arguments[1]
        if not _KEY.fullmatch(key) or (key.isidentifier() and _is_built(key, code)):
            yield f"{arguments[0]}, {key}"


def _is_built(variable: str, code: str) -> bool:
    for line in re.finditer(r"(?m)^\s*(?:local\s+)?([\w, ]+?)\s*=(?!=)\s*(.*)$", code):
        targets = [target.strip() for target in line[1].split(",")]
        if variable in targets:
            values = _arguments(line[2] + ")", 0)
            value = values[min(targets.index(variable), len(values) - 1)]
            if ".." in value or value[:1] in {'"', "'"} or "format" in value:
                return True
    return False


def _arguments(code: str, start: int) -> list[str]:
    """What stands between a parenthesis and its end, split at its own commas."""
    arguments, depth, quote = [""], 0, ""
    for character in code[start:]:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                break
        elif character == "," and depth == 0:
            arguments.append("")
            continue
        arguments[-1] += character
    return [argument.strip() for argument in arguments]
