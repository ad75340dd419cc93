"""What a coach would say about a measured essay: praise, and spots to work on; pure.

Each finding belongs to one spot of the text and says one thing in one or two sentences. Which ones
are said, and in which order, is for `feedback` and `grades` to decide.
"""

from __future__ import annotations

import itertools
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from .essay import (
    FACETS,
    LONG_SENTENCE_WORDS,
    SHORT_WORDS,
    Essay,
    Facet,
    Sentence,
    Slip,
    SlipKind,
    content_words,
    scores,
)
from .words import CLAIMS, VAGUE

SHOWN_CHARACTERS_MAX: Final = 40
"""Of a word that a comment names."""
ESSAY_WORDS: Final = 140
"""Fewer words than this want to be more before anything else."""
NEARLY: Final = 0.2
"""Facets whose scores differ by less than this are equally good."""


@attrs.frozen
class Finding:
    """Something to work on."""

    facet: Facet
    topic: str
    """What students call it, for matching what they ask about: words separated by spaces."""
    weight: float
    """How much it matters, 0 to 1."""
    quote: str
    """Verbatim, at most 12 words; empty where it is about the text as a whole."""
    comment: str
    """What is said about the spot."""
    step: str
    """The same as one thing to do next."""


@attrs.frozen
class Praise:
    """Something that works."""

    facet: Facet
    quote: str
    comment: str


def findings(essay: Essay) -> list[Finding]:
    """Everything to work on, the weightiest first; at least one for a text with words."""
    if not essay.sentences:
        return []
    found = [finding for find in _FINDERS for finding in find(essay)]
    return sorted(found, key=lambda finding: -finding.weight)


def praises(essay: Essay) -> list[Praise]:
    """Something that works for every facet, one of the best facets first; empty without words.

    Which of those that are nearly as good comes first depends on how the essay begins, so that
    essays differ, and one essay keeps its praise while it grows.
    """
    if not essay.words:
        return []
    grades = scores(essay.text)
    beginning = zlib.crc32(essay.opening.encode("utf-8", "replace"))
    top = max(grades.values()) - NEARLY
    best = sorted(
        FACETS,
        key=lambda facet: (
            -min(top, grades[facet]),
            (FACETS.index(facet) + beginning) % len(FACETS),
        ),
    )
    return [_PRAISE[facet](essay) for facet in best]


def shown(word: str) -> str:
    """A word of the essay inside a comment."""
    clean = word.translate({ord(sign): None for sign in "«»[]"})
    return clean if len(clean) <= SHOWN_CHARACTERS_MAX else f"{clean[:SHOWN_CHARACTERS_MAX]}…"


# --- content ----------------------------------------------------------------------------------


def _length(essay: Essay) -> Iterator[Finding]:
    count = len(essay.words)
    if count < ESSAY_WORDS:
        last = essay.sentences[-1]
        yield Finding(
            "content",
            "length short longer more idea",
            0.9 if count < SHORT_WORDS * 2 else 0.75,
            essay.opening_of(last),
            f"You have {count} words here. A reader still wants to know what follows from this.",
            "write two or three more sentences that tell the reader why this is so.",
        )


def _support(essay: Essay) -> Iterator[Finding]:
    """The claim that stands furthest from any reason, example, quotation or figure."""
    density = len(essay.evidence) / max(1.0, len(essay.words) / 100)
    claims = [
        sentence
        for sentence in essay.sentences
        if any(word.low in CLAIMS for word in sentence.words)
        and not sentence.start <= _nearest(essay.evidence, sentence.start) < sentence.end
    ]
    if not claims or density > 4:
        return
    places = essay.evidence
    bare = max(claims, key=lambda each: abs(_nearest(places, each.start) - each.start))
    yield Finding(
        "content",
        "evidence example examples reason reasons proof argument arguments convincing quote facts",
        0.35 + 0.35 * max(0.0, 1 - density / 3),
        essay.opening_of(bare),
        "What makes you sure of this? One example, or a detail to picture, would win over a "
        "doubting reader.",
        "show why this is so, with one example that the reader can picture or check.",
    )


def _nearest(places: Sequence[int], start: int) -> int:
    """The first place from `start` on, else the last before it; without any, one far before."""
    if not places:
        return -1
    return places[min(bisect_left(places, start), len(places) - 1)]


# --- structure --------------------------------------------------------------------------------


def _paragraphs(essay: Essay) -> Iterator[Finding]:
    count = len(essay.words)
    if count < ESSAY_WORDS / 2 or len(essay.sentences) < 4:
        return
    sizes = Counter(sentence.paragraph for sentence in essay.sentences)
    largest, sentences = sizes.most_common(1)[0]
    if len(sizes) > 1 and sentences < 0.55 * len(essay.sentences):
        return
    group = [sentence for sentence in essay.sentences if sentence.paragraph == largest]
    # A new thought begins best where little is shared with the sentence before.
    middle = range(max(1, len(group) // 3), max(2, len(group) * 2 // 3 + 1))
    break_at = min(middle, key=lambda at: (len(_shared(group[at - 1], group[at])), at))
    yield Finding(
        "structure",
        "paragraph paragraphs structure order organisation organization",
        0.85 if len(sizes) == 1 else 0.55,
        essay.opening_of(group[break_at]),
        "A new thought begins here, in the middle of a long paragraph.",
        "start a new paragraph here, and give each paragraph one idea.",
    )


def _links(essay: Essay) -> Iterator[Finding]:
    count = len(essay.words)
    topic = "transition transitions linking link connect connection flow words"
    uses = Counter(word for word, _, _ in essay.transitions)
    if uses:
        word, times = uses.most_common(1)[0]
        if times >= 4 and times / len(essay.transitions) > 0.3:
            place = [at for each, _, at in essay.transitions if each == word][2]
            yield Finding(
                "structure",
                topic,
                0.5,
                essay.quote(place),
                f"You link with “{word}” {times} times. Say what kind of step this is: a reason, "
                "a contrast, an example?",
                f"swap two of your {times} uses of “{word}” for words that say how things hang "
                "together.",
            )
            return
    if count >= ESSAY_WORDS / 2 and len(uses) < count / 60:
        loose = _loose(essay) or essay.sentences[len(essay.sentences) // 2]
        yield Finding(
            "structure",
            topic,
            0.55,
            essay.opening_of(loose),
            "How does this follow from the sentence before? A linking word would show it.",
            "join this to the sentence before with a word such as “because” or “however”.",
        )


def _loose(essay: Essay) -> Sentence | None:
    """The longest sentence that shares nothing with the one before, in the same paragraph."""
    loose = [
        two
        for one, two in itertools.pairwise(essay.sentences)
        if one.paragraph == two.paragraph and not _shared(one, two)
    ]
    return max(loose, key=lambda sentence: len(sentence.words), default=None)


def _shared(one: Sentence, two: Sentence) -> set[str]:
    return set(content_words(one.words)) & set(content_words(two.words))


def _opening(essay: Essay) -> Iterator[Finding]:
    first = essay.sentences[0]
    plain = first.words[0].low in ("i", "my", "the", "there", "this", "in")
    yield Finding(
        "structure",
        "opening introduction intro beginning start hook first",
        0.3 if plain and len(first.words) < 14 else 0.2,
        essay.opening_of(first),
        "This is the first thing a reader meets. Does it make them want the next sentence?",
        "try a first sentence that shows the reader something: a moment, a question, a figure.",
    )


def _ending(essay: Essay) -> Iterator[Finding]:
    if len(essay.words) < ESSAY_WORDS:
        return
    # Without a full stop it is a signature, or not yet written to its end.
    last = next((each for each in reversed(essay.sentences) if each.stopped), essay.sentences[-1])
    first = essay.sentences[0].paragraph
    opening = [word for each in essay.sentences if each.paragraph == first for word in each.words]
    returns = set(content_words(opening)) & set(content_words(last.words))
    concluded = any(kind == "conclusion" for _, kind, _ in essay.transitions)
    yield Finding(
        "structure",
        "ending conclusion end last finish close",
        0.25 if returns or concluded else 0.45,
        essay.opening_of(last),
        "Your text ends here. What should stay with the reader when it is over?",
        "let the last sentence answer the first, so that the text closes like a circle.",
    )


# --- language ---------------------------------------------------------------------------------


def _repeats(essay: Essay) -> Iterator[Finding]:
    for word, times in essay.repeated[:1]:
        share = times / len(essay.words)
        places = [each.start for each in essay.words if each.low == word]
        yield Finding(
            "language",
            "repeat repeats repetition word words vocabulary",
            min(0.75, 0.25 + 12 * share),
            essay.quote(places[len(places) // 2]),
            f"“{shown(word)}” comes {times} times in {len(essay.words)} words. Where would another "
            "word, or none, do?",
            f"find two places where “{shown(word)}” can go without losing anything.",
        )


def _openings(essay: Essay) -> Iterator[Finding]:
    for word, times in essay.openings[:1]:
        total = len(essay.sentences)
        those = [each for each in essay.sentences if each.words[0].low == word]
        yield Finding(
            "language",
            "sentence sentences variety beginnings style",
            min(0.7, 0.25 + times / total),
            essay.opening_of(those[2], words_max=7),
            f"{times} of your {total} sentences begin with “{shown(those[2].words[0].text)}”. "
            "Begin this one with when, where or why.",
            "turn this sentence round, so that it begins with another word.",
        )


def _long_sentences(essay: Essay) -> Iterator[Finding]:
    longest = max(essay.sentences, key=lambda sentence: len(sentence.words))
    count = len(longest.words)
    if count > LONG_SENTENCE_WORDS:
        middle = longest.words[count // 2]
        yield Finding(
            "language",
            "sentence sentences long length run-on punctuation comma commas",
            min(0.8, 0.3 + count / 200),
            essay.quote(middle.start),
            f"This sentence has {count} words, and the reader runs out of breath about here.",
            "put a full stop here and make two sentences of this one.",
        )


def _rhythm(essay: Essay) -> Iterator[Finding]:
    lengths = essay.lengths
    if len(lengths) < 5:
        return
    mean = sum(lengths) / len(lengths)
    spread = (sum((length - mean) ** 2 for length in lengths) / len(lengths)) ** 0.5 / mean
    if spread < 0.38 or mean < 8:
        shortest = min(essay.sentences[1:], key=lambda sentence: len(sentence.words))
        yield Finding(
            "language",
            "sentence sentences variety rhythm style short flow",
            0.4 if spread >= 0.25 else 0.55,
            essay.opening_of(shortest),
            f"Most of your sentences have about {round(mean)} words. Mixing long and short ones "
            "gives a text its rhythm.",
            "join this sentence to its neighbour, so that a longer one stands among the short.",
        )


def _vague(essay: Essay) -> Iterator[Finding]:
    words = [word for word in essay.words if word.low in VAGUE]
    if words and len(words) >= max(1, len(essay.words) // 120):
        word = words[len(words) // 2]
        yield Finding(
            "language",
            "vocabulary word words choice style description exact",
            min(0.6, 0.2 + 8 * len(words) / len(essay.words)),
            essay.quote(word.start, words_max=7),
            f"“{shown(word.text)}” could mean many things. What exactly would the reader see, "
            "hear or feel?",
            f"replace “{shown(word.text)}” by the exact word, or by a detail that shows it.",
        )


# --- correctness ------------------------------------------------------------------------------


def _slips(essay: Essay) -> Iterator[Finding]:
    """For each kind of slip the first one, with how many more there are."""
    kinds: dict[SlipKind, list[Slip]] = {}
    for slip in essay.slips:
        kinds.setdefault(slip.kind, []).append(slip)
    for kind, slips in kinds.items():
        first = slips[0]
        comment = _SLIPS[kind].format(wrong=shown(first.wrong), right=shown(first.right))
        if kind == "spelling" and not first.right:
            comment = f"Check the spelling of “{shown(first.wrong)}”."
        more = len(slips) - 1
        if more:
            comment += f" There {'is' if more == 1 else 'are'} {more} more like it."
        yield Finding(
            "correctness",
            "spelling grammar punctuation mistake mistakes correct errors typos capital comma",
            min(0.8, 0.2 + 8 * len(slips) / len(essay.words)),
            essay.quote(first.start, words_max=5),
            comment,
            _SLIP_STEPS[kind],
        )


_SLIPS: Final[dict[SlipKind, str]] = {
    "spelling": "“{wrong}” is spelt “{right}”.",
    "confusion": "Two words are easily mixed up here: “{wrong}” should be “{right}”.",
    "capital": "“{wrong}” needs a capital letter.",
    "double": "A word stands here twice: “{wrong}”.",
    "article": "Before a vowel sound “a” becomes “an”: “{right}”.",
    "order": "A word is missing or misplaced near “{wrong}”.",
    "stop": "This sentence needs a full stop after “{wrong}”.",
}
_SLIP_STEPS: Final[dict[SlipKind, str]] = {
    "spelling": "read your text backwards, word by word, and look up each word you doubt.",
    "confusion": "read each sentence aloud and ask which of two similar words it needs.",
    "capital": "check that “I”, names and every new sentence have their capital letter.",
    "double": "read the text aloud slowly; words that stand twice will trip you up.",
    "article": "read the text aloud and listen for “a” before vowels.",
    "order": "read this sentence aloud and put in what your voice adds.",
    "stop": "look at the end of every paragraph: each needs its full stop.",
}

_FINDERS: Final[tuple[Callable[[Essay], Iterator[Finding]], ...]] = (
    *(_length, _support, _paragraphs, _links, _opening, _ending),
    *(_repeats, _openings, _long_sentences, _rhythm, _vague, _slips),
)
"""Each is asked only where there is at least one sentence."""


# --- praise -----------------------------------------------------------------------------------


def _praise_content(essay: Essay) -> Praise:
    if essay.evidence:
        place = essay.evidence[len(essay.evidence) // 2]
        return Praise(
            "content",
            essay.quote(place),
            "Here you give the reader something to hold on to, which makes the point believable.",
        )
    richest = max(essay.sentences, key=lambda each: len(set(content_words(each.words))))
    return Praise(
        "content", essay.quote(richest.start), "This is concrete: the reader can see what you mean."
    )


_AMBIGUOUS: Final = frozenset(("since", "still", "while", "yet"))
# these link thoughts only at times


def _praise_structure(essay: Essay) -> Praise:
    for word, kind, place in essay.transitions:
        if kind in ("contrast", "reason", "example", "conclusion") and word not in _AMBIGUOUS:
            return Praise(
                "structure",
                essay.quote(place),
                f"“{word.capitalize()}” tells the reader how this goes on. That is easy to follow.",
            )
    return Praise(
        "structure",
        essay.opening_of(essay.sentences[0]),
        "You come to your subject at once, so the reader knows where they are.",
    )


def _praise_language(essay: Essay) -> Praise:
    long = max(essay.words, key=lambda word: (len(word.low) <= 14, len(word.low), -word.start))
    return Praise(
        "language",
        essay.quote(long.start, words_max=7),
        f"“{shown(long.text)}” is a well-chosen word: it says exactly what you mean.",
    )


def _praise_correctness(essay: Essay) -> Praise:
    wrong = {_start_of(essay.sentence_at(slip.start)) for slip in essay.slips}
    clean = [sentence for sentence in essay.sentences if sentence.start not in wrong]
    best = max(clean or essay.sentences, key=lambda sentence: len(sentence.words))
    comment = (
        "A long sentence with everything in its place. Your reader is never held up."
        if clean
        else "What you want to say comes across here, even where words are hard to spell."
    )
    return Praise("correctness", essay.opening_of(best), comment)


def _start_of(sentence: Sentence | None) -> int:
    return -1 if sentence is None else sentence.start


_PRAISE: Final[dict[Facet, Callable[[Essay], Praise]]] = {
    "content": _praise_content,
    "structure": _praise_structure,
    "language": _praise_language,
    "correctness": _praise_correctness,
}
