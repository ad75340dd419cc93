"""Rubrics: what is judged, in which bands, with which weights; a TOML file, checked when read.

Pure but for reading the one file.
"""

from __future__ import annotations

import hashlib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ..errors import ConfigurationError

WEIGHT_TOTAL: Final = 100
CRITERIA_MAX: Final = 12
BANDS_MAX: Final = 11
ASSIGNMENTS_MAX: Final = 500
FREE_TASK: Final = "No task was set: the student chose topic and form."

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}$")]
Line = Annotated[str, Meta(pattern=r"^\S[^\n]*$", max_length=200)]
"""One line of text that is not blank."""
Task = Annotated[str, Meta(pattern=r"^\S", max_length=4_000)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Criterion(_Record, frozen=True, kw_only=True):
    """One thing an essay is judged by."""

    name: Name
    """What judges and programs call it."""
    label: Line
    """What students read."""
    weight: Annotated[int, Meta(ge=1, le=WEIGHT_TOTAL)]
    """Percent of the score."""
    bands: Annotated[tuple[Line, ...], Meta(min_length=2, max_length=BANDS_MAX)]
    """The anchor of each band, lowest first: `bands[n]` describes an essay in band n."""

    @property
    def band_max(self) -> int:
        """The highest band; the lowest is 0."""
        return len(self.bands) - 1


class Assignment(_Record, frozen=True, kw_only=True):
    """A task that students may be given."""

    id: Id
    title: Line
    task: Task


class Rubric(_Record, frozen=True, kw_only=True):
    """What essays are judged by; made by `load_rubric`, which checks it."""

    title: Line
    criteria: Annotated[tuple[Criterion, ...], Meta(min_length=1, max_length=CRITERIA_MAX)] = (
        msgspec.field(name="criterion")
    )
    assignments: Annotated[tuple[Assignment, ...], Meta(max_length=ASSIGNMENTS_MAX)] = (
        msgspec.field(name="assignment", default=())
    )

    def task(self, assignment: str | None) -> str:
        """What the student was asked to write; a neutral sentence where that is not known."""
        for item in self.assignments:
            if item.id == assignment:
                return item.task
        return FREE_TASK

    def known(self, assignment: str | None) -> str:
        """The assignment's id, or nothing for one that is not in the rubric."""
        return next((item.id for item in self.assignments if item.id == assignment), "")

    def as_text(self) -> str:
        """The rubric for prompts: compact, and the same bytes in every process and run.

        It is the beginning of a prompt that providers cache, so it holds nothing that changes:
        no time, no hash order, no assignment.
        """
        lines = [f"Rubric: {self.title}"]
        for criterion in self.criteria:
            lines.append(f"{criterion.name} ({criterion.label}, {criterion.weight} %)")
            lines += [f"  {band}: {anchor}" for band, anchor in enumerate(criterion.bands)]
        return "\n".join(lines)

    def fingerprint(self) -> str:
        """The same for rubrics that judges read the same: 12 hexadecimal digits."""
        return hashlib.sha256(self.as_text().encode()).hexdigest()[:12]

    def schema(self) -> dict[str, Any]:
        """JSON schema of a judge's answer, strict: nothing more, nothing less.

        Bands are an `enum`, since providers' structured output knows no `minimum` for integers
        (platform.claude.com, "Structured outputs", "JSON Schema limitations").
        """
        return _strict(
            {
                "criteria": _strict(
                    {
                        criterion.name: _strict(
                            {
                                "evidence": {
                                    "type": "string",
                                    "description": "copied word for word from the essay",
                                },
                                "reason": {"type": "string", "description": "one sentence"},
                                "band": {
                                    "type": "integer",
                                    "enum": list(range(len(criterion.bands))),
                                },
                            }
                        )
                        for criterion in self.criteria
                    }
                ),
                "improve_first": {
                    "type": "string",
                    "description": "one or two sentences to the student: what to improve first",
                },
            }
        )


def _strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def load_rubric(path: str | Path | None = None) -> Rubric:
    """Read and check a rubric. Blocks on one small file: for start-up, not for a running server.

    Args:
      path: a TOML file; None for the rubric that comes with coach.

    Raises:
      ConfigurationError: the file cannot be read, or is not a rubric; one line that says where.
    """
    source = files(__package__) / "rubrics" / "default.toml" if path is None else Path(path)
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the rubric {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"rubric {path}: not TOML: {error}") from error
    try:
        rubric = msgspec.convert(data, Rubric)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"rubric {path}: {error}") from error
    problem = _problem(rubric)
    if problem is not None:
        raise ConfigurationError(f"rubric {path}: {problem}")
    return rubric


def _problem(rubric: Rubric) -> str | None:
    """What types and ranges cannot say."""
    names = [criterion.name for criterion in rubric.criteria]
    if (twice := _first_repeated(names)) is not None:
        return f"two criteria are called {twice!r}"
    total = sum(criterion.weight for criterion in rubric.criteria)
    if total != WEIGHT_TOTAL:
        return f"the weights add up to {total}, not {WEIGHT_TOTAL}"
    if (twice := _first_repeated([item.id for item in rubric.assignments])) is not None:
        return f"two assignments have the id {twice!r}"
    return None


def _first_repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
