"""Parse times of day in logs into seconds on one time line per file, time zones ignored."""

# ruff: noqa: E501 (a pattern is read best on one line)

import calendar
import re

MONTHS = {
    m: i
    for i, m in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1
    )
}

ISO = re.compile(r"\b(20\d\d)[-/](\d\d)[-/](\d\d)[T _](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?")
#: `date`'s default output: Thu Dec 11 05:13:21 AM CST 2025 (also without AM/PM, zone or with the year first).
DATE = re.compile(
    r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? ([A-Z][a-z]{2}) +(\d{1,2}) (\d\d?):(\d\d):(\d\d)(?: ([AP]M))?(?: [A-Z]{2,5})? (20\d\d)"
)
#: glog: I20260621 12:18:58.277217, and torch's: W1212 19:00:22.560000
GLOG = re.compile(r"(?:^|\s|\[)[IWEF](?:(20\d\d))?(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{3,9})")
RICH = re.compile(r"^\s*\[(\d\d):(\d\d):(\d\d)\]")

HALF_DAY_S = 43200
DAY_S = 86400


class Clock:
    """Parses times; one without a date belongs to the day of the last one with a date, or the day after."""

    def __init__(self, year: int | None = None) -> None:
        self.now: float | None = None
        self.year = year or 2000
        self.dated = False  # `now` is of a known year

    def read(self, text: str) -> float | None:
        """Parse the first time in `text` into seconds, or None. Later times are relative to it."""
        t = self._parse(text)
        if t is not None:
            self.now = t
        return t

    def _parse(self, text: str) -> float | None:
        try:
            if m := ISO.search(text):
                self.year, self.dated = int(m[1]), True
                return _seconds(*(int(x) for x in m.groups()[:6])) + _fraction(m[7])
            if m := DATE.search(text):
                hour = int(m[3]) % 12 + (12 if m[6] == "PM" else 0) if m[6] else int(m[3])
                self.year, self.dated = int(m[7]), True
                return _seconds(self.year, MONTHS.get(m[1], 0), int(m[2]), hour, int(m[4]), int(m[5]))
            if m := GLOG.search(text):
                self.year = int(m[1] or self.year)
                day = (self.year, int(m[2]), int(m[3]), int(m[4]), int(m[5]), int(m[6]))
                return _seconds(*day) + _fraction(m[7])
            if m := RICH.search(text):
                return self._on_known_day(int(m[1]) * 3600 + int(m[2]) * 60 + int(m[3]))
        except ValueError:  # 31 February and the like
            return None
        return None

    def _on_known_day(self, of_day: float) -> float:
        now = self.now or 0.0
        t = now - now % DAY_S + of_day
        return t + DAY_S if t < now - HALF_DAY_S else t


def _seconds(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 62):
        raise ValueError("no such time")
    return float(calendar.timegm((year, month, day, hour, minute, second)))


def _fraction(digits: str | None) -> float:
    return float(f"0.{digits}") if digits else 0.0
