"""Essays that people have scored: ASAP-AES' columns, or a simple table. Reads bytes, not files.

ASAP-AES (Kaggle): tab-separated, `essay_id essay_set essay … domain1_score`, where raters' own
scores are given also `rater1_domain1 rater2_domain1`. Simple: `essay,score[,score2][,id]`.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from ..errors import ConfigurationError
from .scale import ASAP, ASAP_RATERS, Scale
from .statistics import raters_in

ESSAYS_MAX: Final = 20_000
CHARACTERS_MAX: Final = 100_000
"""Of one essay, as of a student's."""
BYTES_MAX: Final = 500_000_000


@attrs.frozen(kw_only=True)
class ScoredEssay:
    """An essay and what people gave it."""

    key: str
    """Of its text alone."""
    id: str
    text: str = attrs.field(repr=False)
    score: float
    """The reference, as in the file."""
    raters: tuple[float, float] | None
    """Two people's own scores."""
    essay_set: int = 0
    """Of ASAP-AES; 0 where the file has none."""


@attrs.frozen(kw_only=True)
class ScoredEssays:
    """What a file holds."""

    essays: tuple[ScoredEssay, ...]
    scale: Scale
    rater_scale: Scale
    raters_in_label: int
    """How many raters' scores are in the reference."""
    skipped: int
    """Rows without a text or without a score."""


def key_of(text: str) -> str:
    """What an essay is known by, wherever it comes from."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_essays(
    data: bytes,
    *,
    essay_set: int | None = None,
    low: float | None = None,
    high: float | None = None,
    step: float = 1.0,
    count_max: int | None = None,
) -> ScoredEssays:
    """Read a file of scored essays.

    Args:
      data: UTF-8 or, as ASAP-AES is, Windows' Latin-1; with a line of headings.
      essay_set: of ASAP-AES; needed where the file has several.
      low: the lowest score; None: ASAP-AES' own, or the lowest in the file.
      high: the highest, likewise.
      step: between two scores.
      count_max: take no more than the first so many; None: all.

    Raises:
      ConfigurationError: it is no such file; one line that says what and where.
    """
    rows = list(_rows(_decoded(data), essay_set))
    skipped = sum(row is None for row in rows)
    essays = tuple(row for row in rows if row is not None)[:count_max]
    if not essays:
        raise ConfigurationError("no row has both an essay and a score")
    of_set = essays[0].essay_set
    scale = _scale([each.score for each in essays], ASAP.get(of_set), low, high, step)
    both = [(each.score, *each.raters) for each in essays if each.raters is not None]
    raters_in_label, rater_scale = 1, scale
    if len(both) == len(essays):
        labels, first, second = (list(column) for column in zip(*both, strict=True))
        raters_in_label = raters_in(labels, first, second)
        known = ASAP_RATERS.get(of_set) if low is None and high is None else None
        rater_scale = known or _scale_of_raters(scale, [*first, *second])
    for essay in essays:
        scale.place(essay.score)
        for score in essay.raters or ():
            rater_scale.place(score)
    return ScoredEssays(
        essays=essays,
        scale=scale,
        rater_scale=rater_scale,
        raters_in_label=raters_in_label,
        skipped=skipped,
    )


def _decoded(data: bytes) -> str:
    if len(data) > BYTES_MAX:
        raise ConfigurationError(f"the file is larger than {BYTES_MAX // 1_000_000} MB")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")  # which has a character for every byte


def _table(text: str) -> csv.DictReader[str]:
    csv.field_size_limit(4 * CHARACTERS_MAX)
    heading = text.partition("\n")[0]
    return csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in heading else ",")


def _rows(text: str, essay_set: int | None) -> Iterator[ScoredEssay | None]:
    table = _table(text)
    columns = [name.strip() for name in table.fieldnames or []]
    label = next((name for name in ("domain1_score", "score") if name in columns), None)
    if "essay" not in columns or label is None:
        raise ConfigurationError(
            "the first line must name the columns essay and score, or those of ASAP-AES "
            f"(essay_id, essay_set, essay, domain1_score); it says {', '.join(columns)[:120]!r}"
        )
    sets: set[str] = set()
    count = 0
    try:
        for row in table:
            if "essay_set" in columns:
                of_row = (row.get("essay_set") or "").strip()
                if essay_set is not None and of_row != str(essay_set):
                    continue
                sets.add(of_row)
                if len(sets) > 1:
                    raise ConfigurationError(
                        f"the file has several essay sets ({', '.join(sorted(sets))}, …), each "
                        "with a scale of its own: choose one by --set"
                    )
            count += 1
            if count > ESSAYS_MAX:
                raise ConfigurationError(f"more than {ESSAYS_MAX} essays: split the file")
            yield _essay(row, label, line=table.line_num, number=count)
    except csv.Error as error:
        raise ConfigurationError(f"line {table.line_num}: {error}") from error
    if essay_set is not None and not sets:
        raise ConfigurationError(f"the file has no essay set {essay_set}")


def _essay(
    row: Mapping[str, str | None], label: str, *, line: int, number: int
) -> ScoredEssay | None:
    text = _unquoted((row.get("essay") or "").strip())
    score = _number(row.get(label), label, line)
    if not text or score is None:
        return None
    if len(text) > CHARACTERS_MAX:
        raise ConfigurationError(f"line {line}: an essay of more than {CHARACTERS_MAX} characters")
    if label == "domain1_score":
        pair = tuple(_number(row.get(f"rater{n}_domain1"), label, line) for n in (1, 2))
    else:
        pair = (score, _number(row.get("score2"), "score2", line))
    first, second = pair
    return ScoredEssay(
        key=key_of(text),
        id=(row.get("essay_id") or row.get("id") or str(number)).strip()[:64],
        text=text,
        score=score,
        raters=None if first is None or second is None else (first, second),
        essay_set=int(of_set) if (of_set := row.get("essay_set") or "").strip().isdigit() else 0,
    )


def _unquoted(text: str) -> str:
    """Without the quote that coach's own tables put before what a spreadsheet would run."""
    return text[1:] if text[:1] == "'" and text[1:2] in {"=", "+", "-", "@"} else text


def _number(value: str | None, name: str, line: int) -> float | None:
    if value is None or not value.strip():
        return None
    try:
        return float(value.strip().replace(",", "."))
    except ValueError:
        raise ConfigurationError(f"line {line}: {name} {value[:40]!r} is not a number") from None


def _scale(
    scores: list[float],
    known: Scale | None,
    low: float | None,
    high: float | None,
    step: float,
) -> Scale:
    if known is not None and low is None and high is None:
        return known
    return Scale(
        min(scores) if low is None else low,
        max(scores) if high is None else high,
        step,
    )


def _scale_of_raters(scale: Scale, scores: list[float]) -> Scale:
    """The reference's, unless raters used another (the reference being their sum)."""
    if all(scale.low <= score <= scale.high for score in scores):
        return scale
    return Scale(min(scores), max(scores), scale.step)
