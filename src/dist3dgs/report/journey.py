"""The study's attempts in order, the failures met, expected and measured performance."""

from ..analysis import rank_unit
from ..analysis.journey import Attempt, Challenge, attempts, technical_challenges
from . import numbers
from .content import Content
from .failures import name
from .markup import Html, join, table, tag, with_code
from .results import figure

_MAX_ATTEMPTS = 200


def section(content: Content) -> Html:
    journey = attempts(content.records)
    if not journey:
        return tag("p", "No attempt yet.", class_="missing")
    return join(
        [figure(content, "journey"), _attempts(journey), _challenges(content, journey), _performance(content)]
    )


def _attempts(journey: list[Attempt]) -> Html:
    rows = [
        (
            f"#{a.number}",
            name(a.record),
            a.record.status
            if a.record.status == "ok"
            else tag(
                "span",
                f"{a.record.status}: {a.record.failure.cause if a.record.failure else 'unknown'}",
                class_="bad",
            ),
            "; ".join(a.changes) or None,
            numbers.decibel(a.record.metrics.psnr),
            numbers.hours(a.rank_hours, rank_unit(a.record)),
        )
        for a in journey[:_MAX_ATTEMPTS]
    ]
    more = (
        f" (first {_MAX_ATTEMPTS} of {len(journey)}; all are in runs.csv)"
        if len(journey) > _MAX_ATTEMPTS
        else ""
    )
    return tag(
        "details",
        tag("summary", f"All {len(journey)} attempts as a table{more}"),
        table(("", "run", "outcome", "changed from the attempt before", "PSNR", "cost"), rows),
    )


def _challenges(content: Content, journey: list[Attempt]) -> Html:
    challenges = technical_challenges(journey)
    if not challenges:
        return join([tag("h3", "Technical challenges"), tag("p", "None was met: every attempt succeeded.")])
    rows = [
        (
            tag("b", c.cause),
            ", ".join(f"#{n}" for n in c.attempts[:12]) + (" …" if len(c.attempts) > 12 else ""),
            tag("code", _evidence(c)),
            None if c.remedy is None else with_code(c.remedy),
            "not yet" if c.solved_by is None else f"by attempt #{c.solved_by}",
        )
        for c in challenges
    ]
    return join(
        [
            tag("h3", "Technical challenges"),
            figure(content, "technical_challenges"),
            table(("cause", "attempts", "evidence", "remedy", "overcome"), rows),
            tag(
                "p",
                "Overcome: the first later attempt of the same scene and layout that succeeded.",
                class_="note",
            ),
        ]
    )


def _evidence(challenge: Challenge) -> str:
    if not challenge.evidence:
        return "none found"
    e = challenge.evidence[0]
    return f"{e.file}{'' if e.line is None else f':{e.line}'}: {e.text[:300]}"


def _performance(content: Content) -> Html:
    rows = [
        (
            f"#{p['attempt']}",
            p["run"],
            p["baseline"],
            numbers.count(p["steps"]),
            numbers.seconds(p["expected_s"]),
            numbers.seconds(p["best_possible_s"]),
            numbers.seconds(p["measured_s"]),
            p["reason"],
        )
        for p in content.performance[:_MAX_ATTEMPTS]
    ]
    head = ("", "run", "baseline", "steps", "expected", "best possible", "measured", "")
    return join(
        [
            tag("h3", "Performance: expected, possible, measured"),
            figure(content, "performance_comparison"),
            _folded(table(head, rows), len(rows)),
            tag(
                "p",
                "Against the smallest success of the same program on the same hardware, all for the work of that "
                "baseline: stepping, densification, evaluation and checkpoints of a run that saw more or fewer "
                "images (epochs, where those are not known) are scaled to the baseline's. Expected: the baseline's "
                "wall time divided by how many times more ranks. Best possible: this run's serial phases (everything "
                "but stepping) plus the baseline's stepping divided by how many times more ranks; no number of ranks "
                "can bring it below the serial part.",
                class_="note",
            ),
        ]
    )


def _folded(content: Html, num_rows: int) -> Html:
    """Collapse a long table."""
    return content if num_rows <= 16 else tag("details", tag("summary", f"{num_rows} runs"), content)
