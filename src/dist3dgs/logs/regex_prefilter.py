"""Prefilter regular expressions for a line by the words that each of them needs.

Of `(?:CUDA|HIP) out of memory` every match contains ` out of memory`: a line without those letters need not be tried.
Looking for some hundred words in a line takes a twentieth of the time of trying some hundred expressions on it.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

Words = frozenset[str]

#: The beginning of a group. Its first named part: comment, flags alone, conditional or reference, look-around.
_GROUP = re.compile(
    r"\((?:(?P<comment>\?\#[^)]*\))|(?P<flags>\?[aiLmsu]+\))|(?P<other>\?\(|\?P=|\?[aiLmsu-]*x)|(?P<look>\?<?[=!])"
    r"|\?P<\w+>|\?>|\?[aiLmsu-]*:|(?!\?))"
)
_QUANTIFIER = re.compile(r"(?:([*?])|\+|\{(?!\})(\d*)(?:,\d*)?\})[?+]?")
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2}|0[0-7]?|[1-9]\d?)|([^N]))",
    re.DOTALL,
)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_CONTROL = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def needed_words(pattern: re.Pattern[str]) -> Words | None:
    """Return lower-case words of which every match of `pattern` contains at least one; None without such words.

    Raises ValueError for verbose patterns, conditionals and references to named groups.
    """
    if pattern.flags & re.VERBOSE:
        raise ValueError(f"{pattern.pattern}: write it without re.VERBOSE")
    return _Parser(pattern.pattern).alternatives()


class _Parser:
    """Reads a pattern that `re` has compiled, so that its syntax is known to be valid."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def alternatives(self) -> Words | None:
        """Read up to the end of the group: the words of all alternatives; None if one of them needs none."""
        choices = [self._sequence()]
        while self.text.startswith("|", self.at):
            self.at += 1
            choices.append(self._sequence())
        self.at += 1  # the group's bracket
        known = [words for words in choices if words is not None]
        return frozenset().union(*known) if len(known) == len(choices) else None

    def _sequence(self) -> Words | None:
        """Choose the best among the words that consecutive parts need."""
        found: list[Words] = []
        run = ""
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            part, least = self._part(), self._least()
            if part == "":
                continue
            if isinstance(part, str) and least is None:
                run += part
                continue
            if isinstance(part, str) and least:
                run += part
            if run:
                found.append(frozenset((run,)))
                run = ""
            if isinstance(part, frozenset) and least != 0:
                found.append(part)
        if run:
            found.append(frozenset((run,)))
        return max(found, key=lambda words: (min(map(len, words)), -len(words)), default=None)

    def _part(self) -> str | Words | None:
        """Read one part: its only letter, the words that it needs, "" where it takes no letters, or None."""
        char = self.text[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            members = self._take(_CLASS)[0][1:-1]
            same = set(members.lower())
            return same.pop() if len(same) == 1 and members[0] not in "^\\" else None
        if char == "\\":
            m = self._take(_ESCAPE)
            if code := m[1] or m[2] or m[3]:
                return chr(int(code, 16)).lower()
            if m[4]:
                return chr(int(m[4], 8)).lower() if m[4][0] == "0" or len(m[4]) == 3 else None
            if m[5] in "bBAZ":
                return ""
            return _CONTROL.get(m[5]) or (None if m[5].isalnum() else m[5])
        self.at += 1
        return "" if char in "^$" else None if char == "." else char.lower()

    def _group(self) -> str | Words | None:
        m = self._take(_GROUP)
        if m["other"]:
            raise ValueError(f"{self.text}: {m[0]!r} is not understood here; write it without")
        if m["comment"] or m["flags"]:
            return ""
        words = self.alternatives()
        return "" if (m["look"] or "").endswith("!") else words

    def _least(self) -> int | None:
        """Read a quantifier: the least number of times; None where there is no quantifier."""
        m = _QUANTIFIER.match(self.text, self.at)
        if m is None:
            return None
        self.at = m.end()
        return 0 if m[1] else 1 if m[0].startswith("+") else int(m[2] or 0)

    def _take(self, expression: re.Pattern[str]) -> re.Match[str]:
        m = expression.match(self.text, self.at)
        if m is None:
            raise ValueError(
                f"{self.text}: {self.text[self.at :][:9]!r} is not understood here; write it without"
            )
        self.at = m.end()
        return m


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
