"""`dist3dgs VERB ...`: every rule of the workflow is one verb, and each can be run by hand.

Only what a verb needs is imported: the analysis verbs start in under a second and never import torch.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from . import __version__
from .errors import UserError
from .slurm.verbs import add_verbs

Verb = Callable[[argparse.Namespace], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 if it went well, 2 after a mistake that the message explains, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        with _logged(args.log):
            try:
                return args.verb(args) or 0
            except UserError as e:
                print(f"error: {e}", file=sys.stderr)
                return 2
            except BrokenPipeError:
                # The reader (head, less) has gone; keep Python from complaining about it at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 0
            except OSError as e:
                if e.filename is None and e.errno is None:
                    raise
                print(f"error: {e.filename or 'system'}: {e.strerror}", file=sys.stderr)
                return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


# ---------------------------------------------------------------- verbs


def _points(args: argparse.Namespace) -> None:
    study = _study(args.config)
    for spec in study.specs():
        print(f"{spec.point}\t{spec.num_steps} steps\tglobal batch {spec.global_batch}")


def _spec(args: argparse.Namespace) -> None:
    from .matrix import spec_json
    from .names import Point

    parts = args.point.strip("/").split("/")
    if len(parts) not in (3, 4):
        raise UserError(
            f"point {args.point!r}: expected scene/strategy/layout[/repeat], e.g. builtin/replicated/n1g2/r0"
        )
    print(spec_json(_study(args.config).spec(Point.parse(*parts))))


def _photographs(args: argparse.Namespace) -> None:
    from .scenes.sources import obtain

    obtain(args.name, _scene(args), args.out)


def _ingest(args: argparse.Namespace) -> None:
    from .scenes.sources import ingest_scene

    ingest_scene(args.name, _scene(args), args.source, args.pack, args.facts)


def _launch(args: argparse.Namespace) -> int:
    from .launch import launch

    return launch(args.spec, args.scene, args.out, args.weights, args.resume_from)


def _evaluate(args: argparse.Namespace) -> None:
    from .train.whole import run_evaluate

    run_evaluate(args.checkpoint, args.scene, args.json)


def _record(args: argparse.Namespace) -> None:
    from .judge import judge
    from .record import save_record

    record = judge(args.launch)
    save_record(record, args.out)
    cause = f" ({record.failure.cause}, in {record.failure.phase})" if record.failure else ""
    print(f"{args.out}: {record.status}{cause}")


def _tabulate(args: argparse.Namespace) -> None:
    from .tabulate import tabulate

    tabulate(args.records, args.runs, args.points)


def _figure(args: argparse.Namespace) -> None:
    from .figures import draw

    draw(args.name, args.runs, args.points, args.records, args.out)


def _report(args: argparse.Namespace) -> None:
    from .provenance import code_digest
    from .report import write_report

    ingests = sorted(args.data.glob("*/ingest.json"))
    now = {"code_digest": code_digest()}  # runs of other training code are called so
    write_report(args.out, args.records, args.figures, args.tables, ingests, now)
    print(f"report: {args.out}")


def _read(args: argparse.Namespace) -> int:
    from .diagnose.command import run_read

    return run_read(args.logs, args.json)


def _diagnose(args: argparse.Namespace) -> int:
    from .diagnose.command import run_diagnose

    return run_diagnose(args.logs, args.json)


def _import(args: argparse.Namespace) -> int:
    from .diagnose.command import run_import

    return run_import(
        args.logs,
        scene=args.scene,
        layout=args.layout,
        strategy=args.strategy,
        repeat=args.repeat,
        results=args.results,
    )


def _status(args: argparse.Namespace) -> None:
    from .status import show

    show(_study(args.config), args.watch)


def _fetch_weights(args: argparse.Namespace) -> None:
    from .weights import fetch_lpips

    fetch_lpips(args.out, args.lock)


def _schemas(args: argparse.Namespace) -> None:
    from .schemas import write_schemas

    for path in write_schemas(args.folder):
        print(path)


# ---------------------------------------------------------------- plumbing


def _scene(args: argparse.Namespace) -> Any:
    from .spec import Scene, validate

    try:
        return validate(Scene, json.loads(args.scene), f"--scene of {args.name}")
    except ValueError as e:
        raise UserError(f"--scene: not JSON ({e})") from None


def _study(folder: Path) -> Any:
    from .config import load_study

    return load_study(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist3dgs", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log", type=Path, help="write everything printed to this file too")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Verb, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(verb=function)
        return sub

    p = verb("points", _points, "list the config's scaling points")
    p.add_argument(
        "--config",
        type=Path,
        default=Path("config"),
        help="folder of config.yaml, scenes.yaml, strategies.yaml",
    )

    p = verb("spec", _spec, "print the run spec of one point as JSON, for `launch --spec`")
    p.add_argument("point", help="scene/strategy/layout[/repeat]")
    p.add_argument("--config", type=Path, default=Path("config"))

    p = verb("photographs", _photographs, "make, download or find a scene's photographs")
    p.add_argument("name")
    p.add_argument("--scene", required=True, help="its entry of scenes.yaml as JSON")
    p.add_argument("--out", required=True, type=Path, help="source.json to write")

    p = verb("ingest", _ingest, "structure from motion, undistortion, packing")
    p.add_argument("name")
    p.add_argument("--scene", required=True, help="its entry of scenes.yaml as JSON")
    p.add_argument("--source", required=True, type=Path, help="source.json from `photographs`")
    p.add_argument("--pack", required=True, type=Path)
    p.add_argument("--facts", required=True, type=Path)

    p = verb("launch", _launch, "train one point: start its ranks, watch them, leave evidence")
    p.add_argument("--spec", required=True, help="run spec as JSON (dist3dgs spec POINT)")
    p.add_argument("--scene", required=True, type=Path, help="packed scene")
    p.add_argument("--out", required=True, type=Path, help="the point's folder")
    p.add_argument("--weights", type=Path, help="LPIPS weights, if they are there")

    p.add_argument(
        "--resume-from", type=Path, metavar="CHECKPOINT", help="start from another layout's checkpoint"
    )

    p = verb("evaluate", _evaluate, "held-out quality of a checkpoint as a whole, in one process")
    p.add_argument("checkpoint", type=Path, help="a point's checkpoints/step-*.safetensors")
    p.add_argument("--scene", required=True, type=Path, help="the packed scene it was trained on")
    p.add_argument("--json", action="store_true", help="all numbers, each view's too")

    p = verb("record", _record, "judge a run: evidence in, record.json out")
    p.add_argument("--launch", required=True, type=Path)
    p.add_argument("--out", required=True, type=Path)

    p = verb("tabulate", _tabulate, "records to runs.csv and points.csv")
    p.add_argument("--runs", required=True, type=Path)
    p.add_argument("--points", required=True, type=Path)
    p.add_argument("--records", nargs="*", type=Path, default=[])

    p = verb("figure", _figure, "draw one figure (svg, png and the csv behind it)")
    p.add_argument("name")
    p.add_argument("--runs", required=True, type=Path)
    p.add_argument("--points", required=True, type=Path)
    p.add_argument("--records", nargs="*", type=Path, default=[])
    p.add_argument("--out", required=True, type=Path, help="path without suffix")

    p = verb("report", _report, "write the self-contained HTML report")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--figures", required=True, type=Path)
    p.add_argument("--tables", required=True, type=Path)
    p.add_argument("--data", required=True, type=Path, help="folder of the ingested scenes")
    p.add_argument("--records", nargs="*", type=Path, default=[])

    logs = "log files of one job, all together"
    p = verb("read", _read, "sum up a job from its logs: devices, phases, step times, quality")
    p.add_argument("logs", nargs="+", type=Path, help=logs)
    p.add_argument("--json", action="store_true")

    p = verb("diagnose", _diagnose, "say why a job failed, with the line that proves it and the remedy")
    p.add_argument("logs", nargs="+", type=Path, help=logs)
    p.add_argument("--json", action="store_true")

    p = verb("import", _import, "turn another program's logs into a record beside our own")
    p.add_argument("logs", nargs="+", type=Path, help=logs)
    p.add_argument("--scene", required=True)
    p.add_argument("--layout", required=True, help="e.g. n1g4: what the job was allocated")
    p.add_argument("--strategy", default="imported")
    p.add_argument("--repeat", default="r0")
    p.add_argument("--results", type=Path, default=Path("results"))

    p = verb("status", _status, "every point of the study: waiting, running, ok, failed and why")
    p.add_argument("--config", type=Path, default=Path("config"))
    p.add_argument("--watch", type=float, metavar="SECONDS", help="refresh until Ctrl-C")

    p = verb("fetch-weights", _fetch_weights, "download the LPIPS weights; needs the internet")
    p.add_argument("--out", type=Path, default=Path("data/weights/lpips-alex.safetensors"))
    p.add_argument("--lock", type=Path, default=Path("config/scenes.lock.yaml"))

    p = verb("schemas", _schemas, "write the JSON schemas of the config files and of record.json")
    p.add_argument("folder", type=Path, nargs="?", default=Path("workflow/schemas"))

    add_verbs(verb)
    return parser


class _Tee:
    """A text stream that also goes to a file; looks like the stream otherwise."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        self._copy.flush()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """Copy what is printed, and an uncaught traceback, to `path`."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as f:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(out, f), _Tee(err, f)
        try:
            yield
        except Exception:
            import traceback

            f.write(traceback.format_exc())
            raise
        finally:
            sys.stdout, sys.stderr = out, err


if __name__ == "__main__":
    sys.exit(main())
