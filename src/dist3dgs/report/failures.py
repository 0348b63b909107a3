"""Runs that did not succeed: cause, evidence, remedy."""

from pathlib import PurePosixPath

from ..runs.record import Failure, RunRecord
from .content import Content
from .markup import Html, join, tag, with_code
from .study import left_out


def section(content: Content) -> Html:
    lost = [r for r in content.records if r.status in ("failed", "degraded", "unknown")]
    text = "Every run succeeded." if content.records else "No run has left a record yet."
    parts = [_box(same) for same in group(lost)] or [tag("p", text)]
    return join([*parts, left_out(content.study)])


def group(lost: list[RunRecord]) -> list[list[RunRecord]]:
    """Group runs of one point with the same status and cause."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for r in lost:
        cause = r.failure.cause if r.failure else "unknown"
        groups.setdefault((r.run.scene, r.run.strategy, r.run.layout, r.status, cause), []).append(r)
    return list(groups.values())


def name(record: RunRecord) -> str:
    run = record.run
    return str(PurePosixPath(run.scene, run.strategy, run.layout, f"r{run.repeat}"))


def _box(same: list[RunRecord]) -> Html:
    record = same[0]
    failure = record.failure or Failure(cause="unknown")
    where = "; ".join(dict.fromkeys(_where(r.failure) for r in same if r.failure))
    evidence = [line for r in same if r.failure for line in evidence_lines(r.failure)]
    shown = list(dict.fromkeys(evidence))[:6]
    return tag(
        "div",
        tag(
            "p",
            tag("span", f"{record.status}: {failure.cause}", class_="bad"),
            f" – {', '.join(name(r) for r in same)}",
        ),
        tag("p", where) if where else None,
        tag("pre", "\n".join(shown))
        if shown
        else tag("p", "No line of evidence was found.", class_="missing"),
        tag("p", tag("b", "Remedy: "), with_code(failure.remedy)) if failure.remedy else None,
        class_="failure",
    )


def _where(failure: Failure) -> str:
    parts = [
        f"in phase {failure.phase}" if failure.phase else None,
        f"at step {failure.step}" if failure.step is not None else None,
        f"first on rank {failure.rank}" if failure.rank is not None else None,
        f"node {failure.node}" if failure.node else None,
    ]
    return ", ".join(p for p in parts if p)


def evidence_lines(failure: Failure) -> list[str]:
    """Return `train.log:42: text`, long lines cut."""
    lines = []
    for e in failure.evidence:
        text = e.text if len(e.text) <= 400 else f"{e.text[:400]} …"
        lines.append(f"{e.file}{'' if e.line is None else f':{e.line}'}: {text}")
    return lines
