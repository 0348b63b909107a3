"""A study's failures by cause, and its performance against what could be expected, as two tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..runs.record import RunRecord
from .journey import Challenge, attempts, performance_comparison, technical_challenges

Row = dict[str, Any]

CHALLENGE_COLUMNS = (
    *("cause", "attempts", "evidence_file", "evidence_line", "evidence", "remedy", "solved_by_attempt"),
)
PERFORMANCE_COLUMNS = (
    *("attempt", "run", "status", "baseline", "steps", "normalised_steps", "expected_s", "best_possible_s"),
    *("measured_s", "reason"),
)


def journey_tables(records: Sequence[RunRecord], baseline: str | None = None) -> tuple[list[Row], list[Row]]:
    """Return rows of technical_challenges.csv and of performance_comparison.csv."""
    journey = attempts(records)
    performance = [asdict(p) for p in performance_comparison(journey, baseline)]
    return [_challenge(c) for c in technical_challenges(journey)], [
        p | {"run": p["name"]} for p in performance
    ]


def _challenge(c: Challenge) -> Row:
    first = c.evidence[0] if c.evidence else None
    return {
        "cause": c.cause,
        "attempts": " ".join(str(n) for n in c.attempts),
        "evidence_file": first.file if first else None,
        "evidence_line": first.line if first else None,
        "evidence": first.text if first else None,
        "remedy": c.remedy,
        "solved_by_attempt": c.solved_by,
    }
