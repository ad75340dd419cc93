"""Measures an essay: what a reader with a list could count. Pure, and bounded for any text.

Nothing here understands a text. It finds the spots that a teacher would underline first, and four
scores between 0 and 1 that fall when an essay is cut, shuffled or misspelt.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, Literal

import attrs

from .words import (
    CONFUSIONS,
    DETERMINERS,
    EVIDENCE,
    FUNCTION_WORDS,
    MISSPELLINGS,
    NEVER_AFTER_DETERMINER,
    TRANSITIONS,
)

CHARACTERS_MAX: Final = 40_000
"""Of an essay; what follows is not measured."""
MEASURED_MAX: Final = 32
QUOTE_WORDS_MAX: Final = 12
QUOTE_CHARACTERS_MAX: Final = 200
SHORT_WORDS: Final = 30
"""Below this many words there is a beginning, but no essay yet."""
LONG_SENTENCE_WORDS: Final = 38

Facet = Literal["content", "structure", "language", "correctness"]
FACETS: Final[tuple[Facet, ...]] = ("content", "structure", "language", "correctness")
SlipKind = Literal["spelling", "confusion", "capital", "double", "article", "order", "stop"]

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*[\"'”’»)]*")
_PARAGRAPH = re.compile(r"[^\n]+")
_QUOTED = re.compile(r"[\"“][^\"”\n]{2,300}[\"”]")
_NUMBER = re.compile(r"\d+")
_UNQUOTABLE = re.compile(r"[«»\"“”„‟‹›<>\ud800-\udfff]|[^\S \t\u00a0]")
_FIRST_WORDS = re.compile(rf"(?:\S+\s+){{0,{QUOTE_WORDS_MAX - 1}}}\S+")
_OPEN = re.compile(r"<(essay(?:-[0-9a-f]{1,32})?)>")
_VOWEL = re.compile(r"[aeiouy]")
_NO_WORD = re.compile(r"([a-z])\1\1|q[^u]|[^aeiouy]{6}")
_VOWEL_SOUND = re.compile(r"[aeiou](?!ne\b|nce\b|ni|se|ur|u)|hour|honest|heir|honou?r")


@attrs.frozen
class Word:
    """A word and where it stands."""

    text: str
    low: str
    """In lower case, with a plain apostrophe."""
    start: int
    end: int


@attrs.frozen
class Sentence:
    """A sentence and where it stands; it has at least one word."""

    start: int
    end: int
    words: tuple[Word, ...]
    paragraph: int
    stopped: bool
    """It ends with a full stop, a question mark or an exclamation mark."""


@attrs.frozen
class Slip:
    """A mistake that a rule can see."""

    kind: SlipKind
    start: int
    end: int
    wrong: str
    right: str


@attrs.frozen
class Essay:
    """An essay and what was counted in it."""

    text: str
    words: tuple[Word, ...]
    sentences: tuple[Sentence, ...]
    paragraphs: tuple[tuple[int, int], ...]
    slips: tuple[Slip, ...]
    """In the order of the text."""
    repeated: tuple[tuple[str, int], ...]
    """Content words used conspicuously often, with how often; the worst first."""
    openings: tuple[tuple[str, int], ...]
    """Words that begin at least three sentences and a fifth of them; the worst first."""
    transitions: tuple[tuple[str, str, int], ...]
    """Word, kind, place."""
    evidence: tuple[int, ...]
    """Places of quotations, figures and words that give reasons."""

    @property
    def lengths(self) -> list[int]:
        """Words of each sentence."""
        return [len(sentence.words) for sentence in self.sentences]

    @property
    def opening(self) -> str:
        """Its first words, verbatim, even where none of them is a word; empty for white space."""
        return self._verbatim(0, len(self.text))

    def sentence_at(self, at: int) -> Sentence | None:
        """The sentence around a place, or the next; after the last one, that; None without any."""
        index = bisect(self.sentences, at, key=lambda sentence: sentence.end)
        return self.sentences[min(index, len(self.sentences) - 1)] if self.sentences else None

    def quote(self, at: int, *, words_max: int = 9) -> str:
        """A verbatim passage of one sentence, at most `words_max` words, around a place.

        Empty only where the essay has no words.
        """
        sentence = self.sentence_at(at)
        if sentence is None:
            return ""
        words = sentence.words
        index = next((i for i, word in enumerate(words) if word.end > at), len(words) - 1)
        first = max(0, min(index - words_max // 2, len(words) - words_max))
        last = min(len(words), first + words_max)
        return self._verbatim(words[first].start, words[last - 1].end)

    def opening_of(self, sentence: Sentence, *, words_max: int = 9) -> str:
        """The first words of a sentence, verbatim."""
        words = sentence.words[:words_max]
        return self._verbatim(words[0].start, words[-1].end)

    def _verbatim(self, start: int, end: int) -> str:
        """The longest part without what would end the quotation or its line too early."""
        part = max(_UNQUOTABLE.split(self.text[start:end]), key=len).strip()
        found = _FIRST_WORDS.match(part)
        return found.group()[:QUOTE_CHARACTERS_MAX].rstrip() if found else ""


def essay_in(prompt: str) -> str:
    """The essay of a prompt; a prompt without tags is taken to be one.

    The essay stands between the last `<essay>` or `<essay-mark>` and the end tag of the same mark.
    """
    tags = list(_OPEN.finditer(prompt))
    if not tags:
        return prompt.strip("\n")
    return prompt[tags[-1].end() :].partition(f"</{tags[-1][1]}>")[0].strip("\n")


@lru_cache(maxsize=MEASURED_MAX)
def measure(text: str) -> Essay:
    """Measure an essay; linear in its length.

    Memory: the last MEASURED_MAX essays are kept, 0.2 MB for one of 350 words, at most 10 MB each.
    """
    text = text[:CHARACTERS_MAX]
    paragraphs = tuple(
        (found.start(), found.end()) for found in _PARAGRAPH.finditer(text) if found.group().strip()
    )
    words = tuple(_words(text))
    sentences = tuple(_sentences(text, words, paragraphs))
    return Essay(
        text=text,
        words=words,
        sentences=sentences,
        paragraphs=paragraphs,
        slips=_apart(sorted(_slips(text, sentences), key=lambda slip: slip.start)),
        repeated=_repeated(words),
        openings=_openings(sentences),
        transitions=tuple(_transitions(text)),
        evidence=tuple(_evidence(text, words)),
    )


@lru_cache(maxsize=MEASURED_MAX)
def scores(text: str) -> dict[Facet, float]:
    """How good an essay is in each facet, 0 to 1."""
    essay = measure(text)
    count = len(essay.words)
    if count == 0:
        return dict.fromkeys(FACETS, 0.0)
    size = min(1.0, count / 340)
    order = _order(essay)
    facets: dict[Facet, float] = {
        "content": size**0.7 * (0.30 + 0.35 * _richness(essay) + 0.35 * _support(essay)),
        "structure": min(1.0, count / 150)
        * (0.35 * _paragraphing(essay) + 0.30 * _linking(essay) + 0.35 * _cohesion(essay)),
        "language": min(1.0, count / 120)
        * (0.5 * _vocabulary(essay) + 0.25 * _variety(essay) + 0.25 * _beginnings(essay)),
        "correctness": min(1.0, count / 60) * math.exp(-0.30 * _slips_per_100(essay)),
    }
    return {facet: max(0.0, min(1.0, value * order)) for facet, value in facets.items()}


# --- what can be pointed at -------------------------------------------------------------------


def _words(text: str) -> Iterator[Word]:
    for found in _WORD.finditer(text):
        word = found.group()
        yield Word(word, word.lower().replace("’", "'"), found.start(), found.end())


def _sentences(
    text: str, words: Sequence[Word], paragraphs: Sequence[tuple[int, int]]
) -> Iterator[Sentence]:
    at, paragraph = 0, 0
    for found in _SENTENCE.finditer(text):
        first = at
        while at < len(words) and words[at].start < found.end():
            at += 1
        if at == first:
            continue
        while paragraph < len(paragraphs) - 1 and paragraphs[paragraph][1] <= found.start():
            paragraph += 1
        end = found.group().rstrip("\"'”’») ")[-1:]
        yield Sentence(
            found.start(), found.end(), tuple(words[first:at]), paragraph, end in (".", "!", "?")
        )


def _slips(text: str, sentences: Sequence[Sentence]) -> Iterator[Slip]:
    for index, sentence in enumerate(sentences):
        words = sentence.words
        yield from _spelling(words)
        yield from _confusions(words)
        first = words[0]
        whole = not index or sentences[index - 1].stopped or _new_line(text, sentences, index)
        if whole and first.text[0].islower() and first.low not in MISSPELLINGS:
            yield Slip("capital", first.start, first.end, first.text, first.text.capitalize())
        for one, two in itertools.pairwise(words):
            gap = text[one.end : two.start]
            if one.low == two.low and gap.isspace() and one.low not in ("had", "that", "very"):
                yield Slip("double", one.start, two.end, f"{one.text} {two.text}", one.text)
            elif one.low in DETERMINERS and two.low in NEVER_AFTER_DETERMINER and gap == " ":
                yield Slip("order", one.start, two.end, f"{one.text} {two.text}", "")
            elif one.low == "a" and gap == " " and _VOWEL_SOUND.match(two.low):
                yield Slip(
                    "article", one.start, two.end, f"{one.text} {two.text}", f"an {two.text}"
                )
    if sentences and len(sentences) > 1:
        for paragraph, group in itertools.groupby(sentences, key=lambda each: each.paragraph):
            last = list(group)[-1]
            tail = text[last.start : last.end].rstrip()
            if paragraph < sentences[-1].paragraph and not last.stopped and tail[-1] not in ":,;":
                word = last.words[-1]
                yield Slip("stop", word.start, word.end, word.text, f"{word.text}.")


def _apart(slips: Sequence[Slip]) -> tuple[Slip, ...]:
    """Without those that begin inside another: a spot is wrong once."""
    apart: list[Slip] = []
    for slip in slips:
        if not apart or slip.start >= apart[-1].end:
            apart.append(slip)
    return tuple(apart)


def _new_line(text: str, sentences: Sequence[Sentence], index: int) -> bool:
    return "\n" in text[sentences[index - 1].words[-1].end : sentences[index].words[0].start]


def _spelling(words: Sequence[Word]) -> Iterator[Slip]:
    for word in words:
        right = MISSPELLINGS.get(word.low)
        if right is not None:
            if word.text[0].isupper():
                right = right[0].upper() + right[1:]
            if right != word.text:
                yield Slip("spelling", word.start, word.end, word.text, right)
        elif word.text == "i" or word.text.startswith("i'"):
            yield Slip("capital", word.start, word.end, word.text, f"I{word.text[1:]}")
        elif _unpronounceable(word.text):
            yield Slip("spelling", word.start, word.end, word.text, "")


def _unpronounceable(word: str) -> bool:
    """What no English word looks like; capitals are names and abbreviations."""
    if not word.islower() or not word.isascii():
        return False
    if len(word) >= 4 and not _VOWEL.search(word) and word != "psst":
        return True
    return _NO_WORD.search(word) is not None


_CONFUSION_STARTS: Final[dict[str, list[tuple[tuple[str, ...], int, str]]]] = {}
for _confusion in CONFUSIONS:
    _CONFUSION_STARTS.setdefault(_confusion[0][0], []).append(_confusion)


def _confusions(words: Sequence[Word]) -> Iterator[Slip]:
    for at, word in enumerate(words):
        for pattern, wrong, right in _CONFUSION_STARTS.get(word.low, ()):
            found = words[at : at + len(pattern)]
            if len(found) == len(pattern) and all(
                part in ("*", each.low) for part, each in zip(pattern, found, strict=True)
            ):
                slip = found[wrong]
                yield Slip("confusion", slip.start, slip.end, slip.text, right)
                break


def _repeated(words: Sequence[Word]) -> tuple[tuple[str, int], ...]:
    counts = Counter(
        word.low for word in words if len(word.low) > 3 and word.low not in FUNCTION_WORDS
    )
    least = max(4, len(words) // 60)
    return tuple((word, count) for word, count in counts.most_common(4) if count >= least)


def _openings(sentences: Sequence[Sentence]) -> tuple[tuple[str, int], ...]:
    counts = Counter(sentence.words[0].low for sentence in sentences)
    least = max(3, math.ceil(len(sentences) / 5))
    return tuple((word, count) for word, count in counts.most_common(2) if count >= least)


_TRANSITION: Final = re.compile(
    r"\b(?:" + "|".join(sorted(TRANSITIONS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)


def _transitions(text: str) -> Iterator[tuple[str, str, int]]:
    for found in _TRANSITION.finditer(text):
        word = found.group().lower()
        if word in TRANSITIONS:
            yield word, TRANSITIONS[word], found.start()


def _evidence(text: str, words: Sequence[Word]) -> list[int]:
    places = [word.start for word in words if word.low in EVIDENCE]
    places += [found.start() for found in _QUOTED.finditer(text)]
    places += [found.start() for found in _NUMBER.finditer(text)]
    return sorted(places)


# --- scores: each 0 to 1 ------------------------------------------------------------------------


def content_words(words: Sequence[Word]) -> list[str]:
    """The words that carry meaning, in lower case, in their order."""
    return [word.low for word in words if len(word.low) > 2 and word.low not in FUNCTION_WORDS]


def _richness(essay: Essay) -> float:
    """Different things are named: distinct content words, of some 170 in a full essay."""
    return _between(len(set(content_words(essay.words))), 10, 170)


def _support(essay: Essay) -> float:
    """Reasons, examples, quotations and figures: about two per hundred words are plenty."""
    kinds = len({kind for _, kind, _ in essay.transitions})
    density = len(essay.evidence) / max(1.0, len(essay.words) / 100)
    return 0.6 * min(1.0, density / 2.5) + 0.4 * min(1.0, kinds / 5)


def _paragraphing(essay: Essay) -> float:
    """Four or more paragraphs in a full essay, none of them most of the text."""
    count, words = len(essay.paragraphs), len(essay.words)
    wanted = max(1.0, min(5.0, words / 75))
    amount = min(1.0, (count - 1 if wanted > 1 else count) / max(1.0, wanted - 1))
    sizes = [end - start for start, end in essay.paragraphs]
    largest = max(sizes) / max(1, sum(sizes))
    balance = 1.0 if wanted <= 1 else max(0.0, min(1.0, (1 - largest) / 0.55))
    torn = count / max(1, len(essay.sentences))
    return max(0.0, amount * balance) * (0.5 if torn > 0.8 and count > 4 else 1.0)


def _linking(essay: Essay) -> float:
    """Linking words of different kinds, not the same one again and again."""
    distinct = {word for word, _, _ in essay.transitions}
    if not distinct:
        return 0.0
    most = Counter(word for word, _, _ in essay.transitions).most_common(1)[0][1]
    same = most / len(essay.transitions)
    return min(1.0, len(distinct) / 12) * (1.0 - max(0.0, same - 0.2))


def _cohesion(essay: Essay) -> float:
    """Sentences hold on to the ones before them, in their own paragraph more than elsewhere."""
    pairs = list(itertools.pairwise(essay.sentences))
    if not pairs:
        return 0.0
    held = 0.0
    for one, two in pairs:
        shared = set(content_words(one.words)) & set(content_words(two.words))
        refers = two.words[0].low in _REFERRING or (
            len(two.words) > 1 and two.words[1].low in _REFERRING
        )
        if one.paragraph == two.paragraph:
            held += 1.0 if shared else 0.7 if refers else 0.0
        else:
            held += 0.7  # a new paragraph may begin anew
    return min(1.0, held / len(pairs) / 0.7)


_REFERRING: Final = frozenset(
    (
        *(
            "he",
            "she",
            "it",
            "they",
            "this",
            "that",
            "these",
            "those",
            "his",
            "her",
            "its",
            "their",
        ),
        *("here", "there", "then", "so", "such", "instead", "yet", "but", "however", "also"),
        *("another", "both", "him", "them"),
    )
)


def _vocabulary(essay: Essay) -> float:
    """Guiraud's index over the content words, and the share of long words."""
    content = content_words(essay.words)
    if not content:
        return 0.0
    index = len(set(content)) / math.sqrt(len(content))
    long = sum(len(word) >= 8 for word in content) / len(content)
    return 0.6 * _between(index, 5.0, 11.5) + 0.4 * _between(long, 0.06, 0.28)


def _variety(essay: Essay) -> float:
    """Sentences differ in length, and are neither all short nor endless."""
    lengths = essay.lengths
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths)) / mean
    fitting = _between(mean, 5, 13) * (1 - _between(mean, 26, 50))
    return (0.6 * _between(spread, 0.15, 0.6) + 0.4) * fitting


def _beginnings(essay: Essay) -> float:
    """Sentences begin with different words."""
    first = [sentence.words[0].low for sentence in essay.sentences]
    commonest = Counter(first).most_common(1)[0][1]
    distinct = len(set(first)) / len(first)
    return 0.5 * _between(distinct, 0.2, 0.8) + 0.5 * (
        1 - _between(commonest / len(first), 0.15, 0.6)
    )


def _slips_per_100(essay: Essay) -> float:
    """A mistake that comes again counts a third of the first; one of 200 words weighs less."""
    seen: set[tuple[str, str]] = set()
    total = 0.0
    for slip in essay.slips:
        key = (slip.kind, slip.wrong.lower())
        total += 0.34 if key in seen else 1.0
        seen.add(key)
    endless = sum(length > LONG_SENTENCE_WORDS * 1.6 for length in essay.lengths)
    return (total + endless) / max(0.6, len(essay.words) / 100)


def _order(essay: Essay) -> float:
    """Near 1 for running text; falls when words stand where they cannot ("the of", "my is")."""
    determiners = sum(word.low in DETERMINERS for word in essay.words)
    broken = sum(slip.kind == "order" for slip in essay.slips)
    return 1.0 - 0.75 * min(1.0, broken / max(4.0, determiners * 0.3))


def _between(value: float, low: float, high: float) -> float:
    return max(0.0, min(1.0, (value - low) / (high - low)))
