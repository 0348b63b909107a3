"""Show how long every stage took, what the numbers were made from, and how to make them again."""

import shlex
from collections.abc import Callable
from typing import Any

from ..files import sha256
from ..runs.record import RunRecord
from . import numbers
from .content import Content
from .ingestion import number
from .markup import Html, join, table, tag

#: Tables and figures made further apart than this were not made in one go.
_ONE_GO_S = 1800.0
#: What profiles/cached sets with --config.
_CACHED = ("only_existing=true",)


def time_section(content: Content, elapsed_s: Callable[[], float]) -> Html:
    rows: list[tuple[Any, ...]] = []
    total = 0.0
    for scene, facts in content.ingests:
        timings = facts.get("timings_s")
        stages = {k: number(v) for k, v in timings.items()} if isinstance(timings, dict) else {}
        known = {k: v for k, v in stages.items() if v is not None and k != "total"}
        seconds = number(timings.get("total")) if isinstance(timings, dict) and "total" in timings else None
        seconds = seconds if seconds is not None else sum(known.values())
        total += seconds
        parts = ", ".join(f"{k.replace('_', ' ')} {numbers.seconds(v)}" for k, v in known.items())
        rows.append(
            (f"photographs to scene: {scene}", numbers.seconds(seconds) if known else None, parts or None)
        )
    own = [r for r in content.records if r.provenance.source == "dist3dgs"]
    trained = [r.metrics.total_s for r in own if r.metrics.total_s is not None]
    total += sum(trained)
    rows.append(
        ("training", numbers.seconds(sum(trained)), f"{len(trained)} runs, launch to end, one after another")
    )
    drawn, note = _drawing_s(content)
    reporting = elapsed_s()
    total += (drawn or 0.0) + reporting
    rows.append(("tables and figures", numbers.seconds(drawn), note))
    rows.append(("this report", numbers.seconds(reporting), None))
    rows.append((tag("b", "sum"), tag("b", numbers.seconds(total) or ""), None))
    return table(("stage", "time", ""), rows)


def _drawing_s(content: Content) -> tuple[float | None, str]:
    """Return seconds between the first table and the last figure, by the files' times."""
    files = [
        content.tables_dir / "runs.csv",
        *content.figures_dir.glob("*.svg"),
        *content.figures_dir.glob("*.csv"),
    ]
    written = [f.stat().st_mtime for f in files if f.is_file()]
    if len(written) < 2:
        return None, "no figures were drawn"
    between = max(written) - min(written)
    if between > _ONE_GO_S:
        return None, "not made in one go"
    return between, "from the first table to the last figure"


def provenance_section(content: Content) -> Html:
    if not content.records:
        return tag("p", "No run has left a record yet.", class_="missing")
    return join(
        [
            tag("h3", "Make it again"),
            tag("pre", "\n".join(_commands(content))),
            *_stale(content),
            tag("h3", "Software and machines"),
            table(
                ("runs", "commit", "training code", "Python", "versions", "devices", "hosts"),
                [_software(same) for same in _same_software(content.records)],
            ),
            tag(
                "details",
                tag("summary", f"The {len(content.records)} records this page was made from"),
                table(
                    ("record", "sha256", "scene digest"),
                    [_record(content, i) for i in range(len(content.records))],
                ),
            ),
        ]
    )


def _commands(content: Content) -> list[str]:
    """Commands that make these runs, those of one commit together; imported logs cannot be run again from here."""
    own: dict[str | None, list[int]] = {}
    for i, record in enumerate(content.records):
        if record.provenance.source == "dist3dgs":
            own.setdefault(record.provenance.git_sha, []).append(i)
    lines = []
    for sha, indices in sorted(own.items(), key=lambda item: item[1]):
        dirty = any(content.records[i].provenance.git_dirty for i in indices)
        note = "   # and changes that were not committed" if dirty else ""
        lines.append("# commit unknown" if sha is None else f"git checkout {sha}{note}")
        lines.append(_command("profiles/local", content, *(str(content.paths[i]) for i in indices)))
    lines.append("# tables, figures and this page again, without training")
    lines.append(_command("profiles/cached", content, "report", more=_CACHED))
    imported = sum(r.provenance.source != "dist3dgs" for r in content.records)
    if imported:
        lines.append(f"# {imported} runs were imported: dist3dgs import LOG... --scene NAME --layout n1g4")
    return lines


def _command(profile: str, content: Content, *targets: str, more: tuple[str, ...] = ()) -> str:
    """Return `more`: the profile's own --config, which one on the command line would replace."""
    given = content.study.flags
    flags = [shlex.quote(flag) for flag in (*given, *(more if "--config" in given else ()))]
    words = ["snakemake", "--profile", profile, *flags, *(["--"] if flags else [])]
    quoted = [shlex.quote(target) for target in targets]
    if len(targets) == 1:
        return " ".join([*words, *quoted])
    return " \\\n  ".join([" ".join(words), *quoted])


def _stale(content: Content) -> list[Html]:
    warnings = []
    digests = {r.provenance.code_digest for r in content.records if r.provenance.code_digest}
    if len(digests) > 1:
        warnings.append(f"These runs were trained by {len(digests)} different versions of the training code.")
    now = content.study.code_digest
    if now and digests - {now}:
        warnings.append(
            "Some runs were trained by a version of the training code that is not the present one."
        )
    if any(r.provenance.git_dirty for r in content.records):
        warnings.append("Some runs were made with uncommitted changes.")
    return [tag("p", text, class_="bad") for text in warnings]


def _same_software(records: list[RunRecord]) -> list[list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for r in records:
        p, e = r.provenance, r.environment
        key = repr(
            (
                p.git_sha,
                p.git_dirty,
                p.code_digest,
                e.python,
                sorted(e.versions.items()),
                sorted(set(e.hosts)),
                e.cpu,
            )
        )
        groups.setdefault(key, []).append(r)
    return list(groups.values())


def _software(same: list[RunRecord]) -> tuple[Any, ...]:
    provenance, environment = same[0].provenance, same[0].environment
    sha = provenance.git_sha
    return (
        str(len(same)),
        None if sha is None else tag("code", sha[:12] + (" + changes" if provenance.git_dirty else "")),
        None if provenance.code_digest is None else tag("code", provenance.code_digest[:12]),
        environment.python,
        ", ".join(f"{k} {v}" for k, v in sorted(environment.versions.items())) or None,
        ", ".join(sorted({d for r in same for d in r.environment.devices})) or None,
        ", ".join(sorted({h for r in same for h in r.environment.hosts})) or None,
    )


def _record(content: Content, i: int) -> tuple[Any, ...]:
    digest = content.records[i].provenance.scene_digest
    return (
        str(content.paths[i]),
        tag("code", sha256(content.paths[i])),
        None if digest is None else tag("code", digest[:16]),
    )
