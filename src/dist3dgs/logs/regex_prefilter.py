"""Prefilter regular expressions for a line by the words that each of them needs.

Of `(?:CUDA|HIP) out of memory` every match contains ` out of memory`: a line without those letters need not be tried.
Looking for some hundred words in a line takes a twentieth of the time of trying some hundred expressions on it.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

Words = frozenset[str]


def needed_words(pattern: re.Pattern[str]) -> Words | None:
    """Return lower-case words of which every match of `pattern` contains at least one; None without such words."""
    return _of_sequence(_parser.parse(pattern.pattern, pattern.flags))


def _of_sequence(items: Iterable[tuple[Any, Any]]) -> Words | None:
    """Choose the best among the words that consecutive parts need."""
    found: list[Words] = []
    run = ""
    for kind, value in items:
        if kind is op.LITERAL:
            run += chr(value).lower()
            continue
        if kind is op.AT:  # ^, $, \b take no letters
            continue
        if run:
            found.append(frozenset((run,)))
            run = ""
        if (part := _of_part(kind, value)) is not None:
            found.append(part)
    if run:
        found.append(frozenset((run,)))
    return max(found, key=lambda words: (min(map(len, words)), -len(words)), default=None)


def _of_part(kind: Any, value: Any) -> Words | None:
    if kind is op.SUBPATTERN:
        return _of_sequence(value[-1])
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return _of_sequence(value[2]) if value[0] > 0 else None
    if kind is op.BRANCH:
        choices = [_of_sequence(choice) for choice in value[1]]
        return None if None in choices else frozenset().union(*(c for c in choices if c is not None))
    if kind is op.ASSERT:
        return _of_sequence(value[1])
    return None


class WordIndex:
    """Finds the patterns of a sequence that may match a line."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        by_word: dict[str, list[int]] = {}
        for i, pattern in enumerate(patterns):
            words = needed_words(pattern)
            if words is None:
                raise ValueError(f"{pattern.pattern}: no word stands in every match; add one")
            for word in words:
                by_word.setdefault(word, []).append(i)
        self._by_word = list(by_word.items())

    def candidates(self, text: str) -> list[int]:
        """Return the indices of the patterns that may match `text`, ascending."""
        return self.candidates_of([text])[0]

    def candidates_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Do the same for many texts: a word is searched in all of them at once, at about the cost of one."""
        low = [text.lower() for text in texts]
        whole = "\n".join(low)
        starts = list(accumulate((len(text) + 1 for text in low), initial=0))
        found: list[set[int]] = [set() for _ in texts]
        for word, indices in self._by_word:
            at = whole.find(word)
            while at >= 0:
                i = bisect_right(starts, at) - 1
                found[i].update(indices)
                at = whole.find(word, starts[i + 1])
        return [sorted(indices) for indices in found]
