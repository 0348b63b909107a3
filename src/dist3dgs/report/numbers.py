"""Numbers as people read them, with a non-breaking space before the unit."""


def seconds(value: float | None) -> str | None:
    """Return `0.27 s`, `41.3 s`, `8 min 42 s`, `3 h 07 min`."""
    if value is None:
        return None
    if value < 1:
        return f"{value:.2g}\u00a0s"
    if value < 120:
        return f"{value:.1f}\u00a0s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{1000 * value:.3g}\u00a0ms" if value < 1 else f"{value:.3g}\u00a0s"


def megabytes(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}\u00a0MB"


def times(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}×"


def percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.0f}\u00a0%"


def decibel(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}\u00a0dB"


def plain(value: float | None, digits: int = 3) -> str | None:
    return None if value is None else f"{value:.{digits}g}"


def count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}".replace(",", "\u202f")


def hours(value: float | None, unit: str = "rank") -> str | None:
    """Return rank-hours, or rank-minutes where that is less than one."""
    if value is None:
        return None
    return f"{value:.2f} {unit}-hours" if value >= 1 else f"{60 * value:.1f} {unit}-minutes"


def spread(text: str | None, low: str | None, high: str | None, n: int | None) -> str | None:
    """Return `1.87× (1.85× to 1.88×)` where there are repeats that differ."""
    if text is None or not n or n < 2 or low is None or high is None or low == high:
        return text
    return f"{text} ({low} to {high})"
