"""What `dist3dgs read`, `dist3dgs diagnose` and `dist3dgs import` do."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .lines import CONTROL


def run_read(paths: Sequence[Path | str], as_json: bool) -> int:
    """Print a summary of each job. Returns the exit status, always 0; raises `UserError` if nothing can be read.

    As JSON one job is an object, several are a list of them.
    """
    from . import shown
    from .jobs import by_job
    from .readers import read_logs

    summaries = [read_logs(job) for job in by_job(paths)]
    if as_json:
        found = [s.model_dump(mode="json") for s in summaries]
        _print(json.dumps(found if len(found) > 1 else found[0], indent=1, ensure_ascii=False))
    else:
        _print("\n\n".join("\n".join(shown.lines(s)) for s in summaries))
    return 0


def run_diagnose(paths: Sequence[Path | str], as_json: bool, context: Mapping[str, Any] | None = None) -> int:
    """Print the verdict. Returns 0 for ok, 1 for failed or degraded, 3 for unknown."""
    from .verdict import diagnose

    verdict = diagnose(paths, context)
    _print(_json(verdict) if as_json else "\n".join(_verdict_lines(verdict)))
    return {"ok": 0, "unknown": 3}.get(verdict.status, 1)


def run_import(
    paths: Sequence[Path | str], *, scene: str, layout: str, strategy: str = "imported", repeat: str = "r0",
    results: Path = Path("results"), force: bool = False,
) -> int:  # fmt: skip
    """Turn a foreign job's logs into `results/{scene}/{strategy}/{layout}/{repeat}/record.json`."""
    from ..record import save_record
    from .importer import import_record

    record, path = import_record(
        paths, scene=scene, layout=layout, strategy=strategy, repeat=repeat, results=results, force=force
    )
    save_record(record, path)
    cause = f" ({record.failure.cause})" if record.failure else ""
    _print(f"{path}: {record.status}{cause}")
    return 0


def _print(text: str) -> None:
    """Text from logs goes to the terminal without control characters."""
    print("\n".join(CONTROL.sub("", line) for line in text.splitlines()))


def _json(value: BaseModel) -> str:
    return json.dumps(value.model_dump(mode="json"), indent=1, ensure_ascii=False)


def _verdict_lines(d: Any) -> list[str]:
    lines = [d.status if d.cause is None else f"{d.status}: {d.cause}"]
    place = [
        f"{k} {v}"
        for k, v in (("phase", d.phase), ("step", d.step), ("rank", d.rank), ("node", d.node))
        if v is not None
    ]
    if place:
        lines.append("  " + ", ".join(place))
    lines += [f"  {e.file}:{e.line}: {e.text}" for e in d.evidence]
    for name, text in (("why", d.explanation), ("mend", d.remedy if d.status != "ok" else None)):
        if text:
            lines.append(f"  {name}: {text}")
    lines += [f"  not {r.cause}: {r.reason}" for r in d.ruled_out]
    if d.cause == "unknown" and d.looked_for:
        lines.append("  looked for:")
        lines += [f"    {text}" for text in d.looked_for]
    return lines


def troubleshooting() -> str:
    """docs/troubleshooting.md, made from the table of rules."""
    from .rules import RULES, Tier

    causes = list(dict.fromkeys(r.cause for r in RULES))
    out = [
        "# Troubleshooting",
        "",
        "Made from the rules that `dist3dgs diagnose` and the records use, by",
        "`python -m dist3dgs.diagnose.command docs/troubleshooting.md`. Do not edit: a test holds the two equal.",
        "",
        "```",
        "dist3dgs diagnose job.out job.err        # all files of one job; --json for programs",
        "                                         # exit status: 0 ok, 1 failed or degraded, 3 unknown",
        "dist3dgs read job.out                    # the job in numbers",
        "```",
        "",
        "A cause is given only where a line proves it. What ranks print that merely noticed a failure is ruled out by",
        "name. Of several causes the one nearest to the root counts: the machine's or the scheduler's own word, then",
        "an error that names its cause, then an uncaught exception, then what the other ranks saw, then how the",
        "process ended.",
        "",
    ]
    for cause in causes:
        out += [f"## {cause}", ""]
        for r in (r for r in RULES if r.cause == cause):
            nearness = {Tier.PROOF: "proof", Tier.NOTE: "a hint only", Tier.SYMPTOM: "a symptom"}.get(
                r.tier, ""
            )
            out += [f"### {r.name}" + (f" ({nearness})" if nearness else ""), ""]
            out += [
                f"**How it looks.** {r.looks}",
                "",
                f"**Why.** {r.why}",
                "",
                f"**What to do.** {r.remedy}",
                "",
            ]
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    import sys

    from ..files import write_text

    write_text(Path(sys.argv[1]), troubleshooting())
