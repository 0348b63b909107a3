"""Parse numbers in CSV logs a block at a time: all rows of a column at once instead of row by row.

A cell counts as a number if it begins with one (`1024 MiB`, `90 %`, `12.5`); anything else is NaN. Rows with another
number of cells than the header, or with quotes, are torn or foreign and dropped.
"""

import csv
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .lines import clean

COMMA, NEWLINE, BLANK, DOT = b",\n ."
#: A number with more digits is no measurement.
MAX_DIGITS = 15
#: Cells whose digits end otherwise (`1e-05`, `nan`) are parsed one by one.
PLAIN_END = np.isin(np.arange(256), np.frombuffer(b', \n\r%MWG"', np.uint8))


def cells(raw: bytes) -> list[str]:
    """Split one line of a CSV into stripped cells; [] for a line that is none."""
    text = clean(raw)
    if '"' in text:
        try:
            return [cell.strip() for cell in next(csv.reader([text]))]
        except (csv.Error, StopIteration):
            return []
    return [cell.strip() for cell in text.split(",")] if text else []


@dataclass(frozen=True)
class Table:
    """Rows of one block with `num_columns` cells each; `rows` are their line indices in the block."""

    data: bytes
    bytes_: NDArray[np.uint8]
    rows: NDArray[np.int64]
    line_starts: NDArray[np.int64]
    line_ends: NDArray[np.int64]
    commas: NDArray[np.int64]
    first: NDArray[np.int64]  # of each row, in `commas`
    num_columns: int

    @classmethod
    def of(cls, data: bytes, num_columns: int) -> "Table":
        data = data + b"\n"
        a = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(a == NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        commas = np.flatnonzero(a == COMMA)
        first = np.searchsorted(commas, starts)
        fits = np.diff(np.append(first, len(commas))) == num_columns - 1
        rows = np.flatnonzero(fits & (ends > starts))
        return cls(data, a, rows, starts[rows], ends[rows], commas, first[rows], num_columns)

    def span(self, column: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the offsets of the begin and the end of a column's cells."""
        start = self.line_starts if column == 0 else self.commas[self.first + column - 1] + 1
        last = column == self.num_columns - 1
        return start, self.line_ends if last else self.commas[self.first + column]

    def texts(self, column: int) -> list[str]:
        """Return the cells of a column as text."""
        spans = zip(*(x.tolist() for x in self.span(column)), strict=True)
        known: dict[bytes, str] = {}
        found = []
        for a, b in spans:
            raw = self.data[a:b]
            text = known.get(raw)
            if text is None:
                text = known[raw] = clean(raw).strip().strip('"')
            found.append(text)
        return found

    def numbers(self, column: int) -> NDArray[np.float64]:
        """Parse the numbers that the cells of a column begin with; NaN where there is none."""
        a = self.bytes_
        start, end = self.span(column)
        at = start.copy()
        while (blank := (a[at] == BLANK) & (at < end)).any():
            at += blank
        value, num_digits, at = _digits(a, at)
        if (dot := a[at] == DOT).any():
            fraction, num_fraction, after = _digits(a, at + 1, dot)
            value += fraction * 10.0**-num_fraction
            num_digits, at = num_digits + num_fraction, np.where(dot, after, at)
        plain = PLAIN_END[a[at]] & (num_digits > 0) & (num_digits <= MAX_DIGITS) & (at <= end)
        value = np.where(plain, value, np.nan)
        for i in np.flatnonzero(~plain & (end > start)).tolist():
            value[i] = number(self.data[start[i] : end[i]])
        return value

    def clock(self, column: int) -> NDArray[np.float64]:
        """Parse `YYYY/MM/DD HH:MM:SS.mmm` into seconds since 1970 (as UTC); NaN where a cell is no such time."""
        a = self.bytes_
        start, end = self.span(column)
        fits = end - start >= len("YYYY/MM/DD HH:MM:SS")
        start = np.where(fits, start, 0)
        if not fits.any() or len(a) < 20:
            return np.full(len(start), np.nan)

        def two(offset: int) -> NDArray[np.int64]:
            tens, ones = (a[start + offset + i].astype(np.int64) - 48 for i in (0, 1))
            return tens * 10 + ones

        fits &= (a[start + 13] == ord(":")) & (a[start + 16] == ord(":"))
        of_day = two(11) * 3600 + two(14) * 60 + two(17)
        milli, digits, _ = _digits(a, np.minimum(start + 20, len(a) - 1), fits & (a[start + 19] == DOT))
        # The date is read once per run of equal ones.
        date = np.stack([a[start + i] for i in (0, 1, 2, 3, 5, 6, 8, 9)])
        new = np.flatnonzero(np.any(date[:, 1:] != date[:, :-1], axis=0)) + 1
        days = np.empty(len(start))
        for i, j in zip([0, *new.tolist()], [*new.tolist(), len(start)], strict=True):
            days[i:j] = _day(self.data[start[i] : start[i] + 10])
        return np.where(fits, days * 86400 + of_day + milli * 10.0**-digits, np.nan)


def _digits(
    a: NDArray[np.uint8], at: NDArray[np.int64], alive: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return value and number of the digits from `at` on, and where they end."""
    value = np.zeros(len(at))
    at = at.copy()
    begin = at.copy()
    alive = np.ones(len(at), bool) if alive is None else alive.copy()
    for _ in range(MAX_DIGITS + 1):
        digit = a[np.minimum(at, len(a) - 1)] - 48  # wraps below "0"
        alive &= digit < 10
        if not alive.any():
            break
        value = np.where(alive, value * 10 + digit, value)
        at += alive
    return value, at - begin, at


def _day(text: bytes) -> float:
    try:
        return float(np.datetime64(text.decode("ascii").replace("/", "-"), "D").astype(int))
    except (ValueError, UnicodeDecodeError):
        return float("nan")


def number(text: bytes | str) -> float:
    """Parse a finite number, optionally with `%`; NaN for anything else."""
    try:
        value = float(text.strip().rstrip(b"%" if isinstance(text, bytes) else "%"))  # type: ignore[arg-type]
    except ValueError:
        return float("nan")
    return value if abs(value) < 1e300 else float("nan")
