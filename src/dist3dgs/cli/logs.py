"""Verbs about the logs of any job: `read`, `diagnose`, `import`."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..logs.lines import CONTROL
from .verb import JSON, LOGS, one_of, option, verb


@verb(
    "sum up a job from its logs: devices, phases, step times, quality",
    option("logs", nargs="+", type=Path, help=LOGS),
    JSON,
)
def read(args: argparse.Namespace) -> int:
    return run_read(args.logs, args.json)


@verb(
    "say why a job failed, with the line that proves it and the remedy",
    option(
        "logs",
        nargs="+",
        type=Path,
        help=f"{LOGS}; also .gz, -, a folder of logs, a results folder, a run's folder, its launch.json or record.json",
    ),
    JSON,
    option("--verbose", action="store_true", help="list what was looked for where nothing was found"),
    epilog="Exit status: 0 the job went well, 1 it failed or is degraded, 2 a file is missing or cannot be read, 3 the"
    " logs do not say.",
)
def diagnose(args: argparse.Namespace) -> int:
    from ..records.build import verdict_of_run

    return run_diagnose(args.logs, args.json, verbose=args.verbose, verdict_of_run=verdict_of_run)


@verb(
    "turn another program's logs into a record beside our own",
    option("logs", nargs="+", type=Path, help=LOGS),
    option("--scene", required=True, help="name of what was trained"),
    option("--layout", required=True, help="e.g. n1g4: what the job was allocated"),
    option("--strategy", default="imported", help="default: imported"),
    option("--repeat", default="r0", help="default: r0"),
    option("--results", type=Path, default=Path("results"), help="default: results"),
    option(
        "--force",
        action="store_true",
        help="although the log contradicts the layout, or other logs' record is there",
    ),
    option(
        "--epochs",
        choices=("last", "mean", "median"),
        default="last",
        help="which epochs the seconds per epoch and the throughput are of; default: the last",
    ),
    one_of(
        option("--batch-per-rank", type=int, metavar="N", help="images per step on each rank"),
        option("--global-batch", type=int, metavar="N", help="images per step over all ranks"),
    ),
    option("--device", metavar="NAME", help="the GPUs' name, where the log has none: 'NVIDIA A100'"),
    option(
        "--warmup-steps", type=int, default=0, metavar="N", help="leave the first N steps out of step times"
    ),
    option(
        "--warmup-epochs",
        type=int,
        default=0,
        metavar="N",
        help="leave the first N epochs out of epoch times and throughput",
    ),
    name="import",
)
def import_logs(args: argparse.Namespace) -> int:
    given = {k: v for k, v in vars(args).items() if k not in ("verb", "log", "logs")}
    return run_import(args.logs, **given)


def run_read(paths: Sequence[Path | str], as_json: bool) -> int:
    """Print a summary of each job. Returns the exit status, always 0; raises `UserError` if nothing can be read.

    As JSON one job is an object, several are a list of them.
    """
    from ..diagnosis import format_summary
    from ..diagnosis.summary import read_logs
    from ..logs.jobs import by_job

    summaries = [read_logs(job) for job in by_job(paths)]
    if as_json:
        found = [s.model_dump(mode="json") for s in summaries]
        _print(json.dumps(found if len(found) > 1 else found[0], indent=1, ensure_ascii=False))
    else:
        _print("\n\n".join("\n".join(format_summary.lines(s)) for s in summaries))
    return 0


def run_diagnose(
    paths: Sequence[Path | str],
    as_json: bool,
    verbose: bool = False,
    verdict_of_run: Callable[[Path], Any] | None = None,
) -> int:
    """Print one verdict for each job and run. Returns 0: ok, 1: failed or degraded, 2: a file is missing, 3: unknown.

    Of several verdicts the first of failed, missing, unknown, ok counts. verdict_of_run: judges a run of
    our own (`records.build.verdict_of_run`). Raises `UserError` if nothing can be read.
    """
    from ..diagnosis.input_files import open_inputs
    from ..diagnosis.verdict import diagnose
    from ..logs.jobs import by_job

    with open_inputs(paths) as found:
        if not found.logs and not found.runs:
            notes = f" ({'; '.join(found.notes)})" if found.notes else ""
            raise UserError(
                f"nothing to read{notes}; give the job's files: dist3dgs diagnose job.out job.err"
            )
        verdicts = [(str(run), verdict_of_run(run)) for run in found.runs if verdict_of_run is not None]
        verdicts += [(" ".join(map(str, job)), diagnose(job)) for job in by_job(found.logs)]
        verdicts[0][1].notes[:0] = found.notes
        if as_json:
            values = [v.model_dump(mode="json") for _, v in verdicts]
            text = json.dumps(values[0] if len(values) == 1 else values, indent=1, ensure_ascii=False)
        else:
            heads = [[] if len(verdicts) == 1 else [f"{name}:"] for name, _ in verdicts]
            blocks = [
                [*head, *_verdict_lines(v, verbose)] for head, (_, v) in zip(heads, verdicts, strict=True)
            ]
            text = "\n\n".join("\n".join(lines) for lines in blocks)
        _print(found.named(text))
    return _exit_status([v.status for _, v in verdicts], found.missing or _unread(verdicts))


def _exit_status(statuses: Sequence[str], missing: bool) -> int:
    if {"failed", "degraded"} & set(statuses):
        return 1
    return 2 if missing else 3 if "unknown" in statuses else 0


def _unread(verdicts: Sequence[tuple[str, Any]]) -> bool:
    return any(note.endswith(UNREAD) for _, v in verdicts for note in v.notes)


def run_import(
    paths: Sequence[Path | str], *, scene: str, layout: str, strategy: str = "imported", repeat: str = "r0",
    results: Path = Path("results"), force: bool = False, **reading: Any,
) -> int:  # fmt: skip
    """Turn the logs of another program's job into `results/{scene}/{strategy}/{layout}/{repeat}/record.json`.

    `reading`: fields of `records.import_record.Reading`.
    """
    from ..records.import_record import Reading, import_record
    from ..runs.record import save_record

    record, path = import_record(
        paths, scene=scene, layout=layout, strategy=strategy, repeat=repeat, results=results, force=force,
        reading=Reading(**reading),
    )  # fmt: skip
    save_record(record, path)
    cause = f" ({record.failure.cause})" if record.failure else ""
    note = f" ({record.reasons['status']})" if "status" in record.reasons else ""
    _print(f"{path}: {record.status}{cause}{note}")
    return 0


#: Ends of notes about files that could not be read.
UNREAD = (
    "no such file",
    "cannot be read",
    "Permission denied",
    "not a regular file; save its content to one",
)


def _print(text: str) -> None:
    """Print text from logs without control characters."""
    print("\n".join(CONTROL.sub("", line) for line in text.splitlines()))


def _verdict_lines(d: Any, verbose: bool) -> list[str]:
    from ..diagnosis.hang import hang_words, straggler_words

    lines = [d.status if d.cause in (None, d.status) else f"{d.status}: {d.cause}"]
    place = [
        f"{k} {v}"
        for k, v in (("phase", d.phase), ("step", d.step), ("rank", d.rank), ("node", d.node))
        if v is not None
    ]
    if place:
        lines.append("  " + ", ".join(place))
    if d.collective is not None:
        lines.append(f"  collective: {hang_words(d.collective)}")
    lines += [f"  straggler: {straggler_words(s)}" for s in d.stragglers]
    lines += [f"  {e.file}{'' if e.line is None else f':{e.line}'}: {e.text}" for e in d.evidence]
    for name, text in (("why", d.explanation), ("fix", d.remedy if d.status != "ok" else None)):
        if text:
            lines.append(f"  {name}: {text}")
    lines += [f"  note: {note}" for note in d.notes]
    lines += [f"  not {r.cause}: {r.reason}" for r in d.ruled_out]
    if d.cause == "unknown" and d.looked_for:
        causes = [text for text in d.looked_for if not text.startswith("the job's other half")]
        if verbose:
            lines += ["  looked for:", *(f"    {text}" for text in causes)]
        elif causes:
            lines.append(f"  looked for {len(causes)} causes; --verbose lists how each would look")
    return lines


def troubleshooting() -> str:
    """Generate docs/troubleshooting.md from the tables of causes and rules."""
    from ..diagnosis.rules import RULES, Tier
    from ..diagnosis.rules.remedies import REMEDIES
    from ..runs.causes import CAUSES

    causes = list(dict.fromkeys(r.cause for r in RULES))
    out = [
        "# Troubleshooting",
        "",
        "Generated from the rules that `dist3dgs diagnose` and the records use, by",
        "`python -m dist3dgs.cli.logs docs/troubleshooting.md`. Do not edit: a test holds the two equal.",
        "",
        "```",
        "dist3dgs diagnose job.out job.err        # all files of one job; --json for programs",
        "                                         # exit status: 0 ok, 1 failed or degraded, 2 missing, 3 unknown",
        "dist3dgs diagnose results/SCENE/STRATEGY/LAYOUT/r0/record.json   # a run of our own, as its record has it",
        "dist3dgs diagnose results                # all runs below a folder; of another folder the logs in it",
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
        out += [f"## {cause}", "", f"{CAUSES[cause].description} {_retries(CAUSES[cause])}", ""]
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
            for trainer, remedies in REMEDIES.items():
                if r.name in remedies:
                    out += [f"**With {trainer}.** {remedies[r.name]}", ""]
    return "\n".join(out).rstrip() + "\n"


def _retries(cause: Any) -> str:
    times = "once" if cause.retries == 1 else f"up to {cause.retries} times"
    more = [
        what for what, factor in (("memory", cause.mem_factor), ("time", cause.runtime_factor)) if factor > 1
    ]
    asks = f", each time with more {' and '.join(more)}" if more else ""
    return (
        f"A run of ours is tried again {times}{asks}."
        if cause.retries
        else "A run of ours is not tried again."
    )


if __name__ == "__main__":
    import sys

    from ..files import write_text

    write_text(Path(sys.argv[1]), troubleshooting())
