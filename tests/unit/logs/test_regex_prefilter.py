"""Words that every match of a pattern contains: none may be demanded that a match can do without."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.logs.regex_prefilter import WordIndex, needed_words


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(?:CUDA|HIP) out of memory", {" out of memory"}),
        (r"\b[Ee]poch\b", {"epoch"}),
        (r"steps?:", {"step"}),
        (r"no+ space", {" space"}),
        (r"colou?r", {"colo"}),
        (r"x{0,3}abc", {"abc"}),
        (r"ab{2}", {"ab"}),
        (r"a{}b", {"a{}b"}),
        (r"first|second", {"first", "second"}),
        (r"(?i)Killed(?! by)", {"killed"}),
        (r"(?=.*reason)\w", {"reason"}),
        (r"(?:optional)?needed", {"needed"}),
        (r"(?P<name>abc)-", {"abc"}),
        (r"\x41\.\tb", {"a.\tb"}),
        (r"[.]so(?#comment)x", {".sox"}),
        (r"(\d)\1abc", {"abc"}),
        (r"[^a]bc", {"bc"}),
        (r"^$", None),
        (r"abc|\d", None),
        (r"\d*", None),
        (r"[\]a]", None),
    ],
)
def test_words(pattern: str, words: set[str] | None) -> None:
    assert needed_words(re.compile(pattern)) == words


@pytest.mark.parametrize("pattern", ["(?x) a", r"(a)(?(1)b|c)", "(?P<n>a)(?P=n)", r"\N{DIGIT ONE}"])
def test_syntax_that_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|VERBOSE"):
        needed_words(re.compile(pattern))


def test_a_pattern_without_words_cannot_be_prefiltered() -> None:
    with pytest.raises(ValueError, match="no word"):
        WordIndex([re.compile(r"\d+")])


def test_candidates_of_lines() -> None:
    index = WordIndex([re.compile(p) for p in ("Killed", "[Oo]ut of memory|OOM", "memory")])
    assert index.candidates_of(["oom", "nothing", "Out of memory, killed"]) == [[1], [], [0, 1, 2]]


#: Pairs of a pattern and a text that it matches as a whole.
_LETTERS = st.text("abcXYZ .:", min_size=1, max_size=5).map(lambda text: (re.escape(text), text))
_PARTS = st.sampled_from(
    [
        (r"\d", "7"),
        (r"\w", "a"),
        (".", "?"),
        ("[Aa]", "A"),
        ("[^a]", "b"),
        (r"[\]x-z]", "]"),
        (r"\b", ""),
        ("a?", ""),
        ("b*", "bb"),
        ("c+?", "cc"),
        ("d{2,3}", "dd"),
        ("e{,2}", ""),
        (r"\x41", "A"),
        (r"\n", "\n"),
        ("(?!~)", ""),
    ]
)


def _joined(parts: list[tuple[str, str]]) -> tuple[str, str]:
    return "".join(pattern for pattern, _ in parts), "".join(text for _, text in parts)


def _grouped(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(_joined),
        st.tuples(inner, inner).map(lambda two: (f"(?:{two[0][0]}|{two[1][0]})", two[1][1])),
        inner.map(lambda one: (f"({one[0]})", one[1])),
        inner.map(lambda one: (f"(?:{one[0]})?", "")),
        inner.map(lambda one: (f"(?:{one[0]})+", one[1] * 2)),
        inner.map(lambda one: (f"(?={one[0]})(?:{one[0]})", one[1])),
    )


@given(st.recursive(st.one_of(_LETTERS, _PARTS), _grouped, max_leaves=8))
def test_every_match_contains_one_of_the_words(pair: tuple[str, str]) -> None:
    pattern, text = pair
    compiled = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    words = needed_words(compiled)
    for m in [compiled.fullmatch(text), compiled.search(text)]:
        if m is not None:
            assert words is None or any(word in text.lower() for word in words)
