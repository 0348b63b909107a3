"""`dist3dgs VERB ...`: every rule of the workflow is one verb, and each can be run by hand.

The analysis verbs start in under a second and never import torch.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .. import __version__
from ..config.load import add_config_options, add_configfile_option
from ..console import logged
from ..errors import UserError
from . import verbs
from .cluster import PROFILE, add_verbs

#: Adds a verb: its name, what it does, what it is for, and what its help ends with.
AddVerb = Callable[..., argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 if it went well, 2 after a mistake that the message explains, 130 after Ctrl-C."""
    # Evidence has characters that not every terminal's encoding has.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        with _unwinding(), logged(args.log):
            return _run(args)
    except UserError as e:  # the log's own
        return _mistake(str(e))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, so that temporary files are removed; twice, at once."""

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    # What is ignored (nohup) stays ignored.
    mine = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []
    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _run(args: argparse.Namespace) -> int:
    try:
        return args.verb(args) or 0
    except UserError as e:
        return _mistake(str(e))
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.filename is None and e.errno is None:
            raise
        return _mistake(f"{e.filename or 'system'}: {e.strerror}")


def _mistake(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dist3dgs", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log", type=Path, help="write everything printed to this file too")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: verbs.Verb, text: str, end: str = "") -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text, epilog=end or None)
        sub.set_defaults(verb=function)
        return sub

    _add_study(verb)
    _add_scenes(verb)
    _add_runs(verb)
    _add_pages(verb)
    _add_logs(verb)
    add_verbs(verb)
    return parser


def _add_study(verb: AddVerb) -> None:
    p = verb("points", verbs.points, "list the config's scaling points, and those it leaves out and why")
    add_config_options(p)

    p = verb("spec", verbs.spec, "print the run spec of one point as JSON, for `launch --spec`")
    p.add_argument("point", help="scene/strategy/layout[/repeat]")
    add_config_options(p)

    p = verb("status", verbs.status, "every point of the study: waiting, running, ok, failed and why")
    add_config_options(p)
    p.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="refresh until Ctrl-C, every 10 seconds or as given",
    )

    p = verb(
        "retry",
        verbs.retry,
        "train again the points that failed, or those given, with the config as it is now",
        "A point resumes from its last checkpoint if the settings of its run are the same. Runs Snakemake and ends with"
        " its exit status.",
    )
    p.add_argument(
        "points", nargs="*", metavar="POINT", help="scene/strategy/layout[/repeat]; default: all that failed"
    )
    p.set_defaults(config=Path("config"))  # Snakemake reads no other
    add_configfile_option(p)
    p.add_argument(
        "--profile",
        type=Path,
        help="Snakemake's; default: profiles/slurm for points that ran there, else profiles/local",
    )
    p.add_argument(
        "-n", "--dry-run", action="store_true", help="only say what would be trained, and the command"
    )

    p = verb(
        "verify",
        verbs.verify,
        "check that this machine, or a node of the cluster, is ready for the study; downloads nothing",
        "Exit status: 0 unless a check failed. Each line is ok, warn or fail, with what to do below it.",
    )
    add_config_options(p)
    p.add_argument("--profile", type=Path, default=PROFILE, help="profile whose site is used")
    p.add_argument(
        "--full", action="store_true", help="read packed scenes and archives whole to check their digests"
    )
    p.add_argument(
        "--on-node", nargs="?", const="", metavar="PARTITION",
        help="check in a Slurm job, on a node of the training partition or of this one",
    )  # fmt: skip
    p.add_argument("--json", action="store_true")

    p = verb("schemas", verbs.schemas, "write the JSON schemas of the config files and of record.json")
    p.add_argument("folder", type=Path, nargs="?", default=Path("workflow/schemas"))


def _add_scenes(verb: AddVerb) -> None:
    p = verb("photographs", verbs.photographs, "make, download or find a scene's photographs")
    p.add_argument("name")
    p.add_argument("--scene", required=True, help="its entry of scenes.yaml as JSON")
    p.add_argument("--out", required=True, type=Path, help="source.json to write")

    p = verb("ingest", verbs.ingest, "structure from motion, undistortion, packing")
    p.add_argument("name")
    p.add_argument("--scene", required=True, help="its entry of scenes.yaml as JSON")
    p.add_argument("--source", required=True, type=Path, help="source.json from `photographs`")
    p.add_argument("--pack", required=True, type=Path)
    p.add_argument("--facts", required=True, type=Path)
    p.add_argument("--made-from", metavar="DIGEST", help="of settings and photographs, noted in the facts")
    limit = "of structure from motion, in place of the entry's sfm."
    p.add_argument("--threads", type=int, help=f"{limit}num_threads")
    p.add_argument("--memory-mb", type=float, help=f"{limit}memory_gib, in MiB")
    p.add_argument("--timeout-s", type=float, help=f"{limit}timeout_s")

    p = verb("fetch-weights", verbs.fetch_weights, "download the LPIPS weights; needs the internet")
    p.add_argument("--out", type=Path, default=Path("data/weights/lpips-alex.safetensors"))
    p.add_argument("--lock", type=Path, default=Path("config/scenes.lock.yaml"))


def _add_runs(verb: AddVerb) -> None:
    p = verb("launch", verbs.launch, "train one point: start its ranks, watch them, leave evidence")
    p.add_argument("--spec", required=True, help="run spec as JSON (dist3dgs spec POINT)")
    p.add_argument("--scene", required=True, type=Path, help="packed scene")
    p.add_argument("--out", required=True, type=Path, help="the point's folder")
    p.add_argument("--weights", type=Path, help="LPIPS weights, if they are there")
    p.add_argument(
        "--resume-from", type=Path, metavar="CHECKPOINT", help="start from another layout's checkpoint"
    )

    p = verb("evaluate", verbs.evaluate, "held-out quality of a checkpoint as a whole, in one process")
    p.add_argument("checkpoint", type=Path, help="a point's checkpoints/step-*.safetensors")
    p.add_argument("--scene", required=True, type=Path, help="the packed scene it was trained on")
    p.add_argument("--json", action="store_true", help="all numbers, each view's too")

    p = verb("record", verbs.record, "judge a run: evidence in, record.json out")
    p.add_argument("--launch", required=True, type=Path)
    p.add_argument("--out", required=True, type=Path)


def _add_pages(verb: AddVerb) -> None:
    p = verb("tabulate", verbs.tabulate, "records to runs.csv and points.csv")
    p.add_argument("--runs", required=True, type=Path)
    p.add_argument("--points", required=True, type=Path)
    p.add_argument(
        "--baseline", metavar="STRATEGY/LAYOUT", help="compare with it instead of the smallest layout"
    )
    p.add_argument("--records", nargs="*", type=Path, default=[])

    p = verb("check", verbs.check, "fail where a point has failed; the rule behind `fail_on: failed`")
    p.add_argument("--records", nargs="*", type=Path, default=[])
    p.add_argument("--out", required=True, type=Path, help="file to write where none has failed")

    p = verb("figure", verbs.figure, "draw one figure (svg, png, pdf and the csv behind it)")
    p.add_argument("name")
    p.add_argument("--runs", required=True, type=Path)
    p.add_argument("--points", required=True, type=Path)
    p.add_argument("--records", nargs="*", type=Path, default=[])
    p.add_argument("--out", required=True, type=Path, help="path without suffix")

    p = verb("report", verbs.report, "write the self-contained HTML report")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--figures", required=True, type=Path)
    p.add_argument("--tables", required=True, type=Path)
    p.add_argument("--data", required=True, type=Path, help="folder of the ingested scenes")
    p.add_argument("--study", default="{}", help="flags, exclusions and licences of the study as JSON")
    p.add_argument("--records", nargs="*", type=Path, default=[])


def _add_logs(verb: AddVerb) -> None:
    logs = "log files of one job, all together"
    p = verb("read", verbs.read, "sum up a job from its logs: devices, phases, step times, quality")
    p.add_argument("logs", nargs="+", type=Path, help=logs)
    p.add_argument("--json", action="store_true")

    p = verb(
        "diagnose",
        verbs.diagnose,
        "say why a job failed, with the line that proves it and the remedy",
        "Exit status: 0 the job went well, 1 it failed or is degraded, 2 a file is missing or cannot be read, 3 the"
        " logs do not say.",
    )
    p.add_argument(
        "logs",
        nargs="+",
        type=Path,
        help=f"{logs}; also .gz, -, a folder, or a run's launch.json or record.json",
    )
    p.add_argument("--json", action="store_true")
    p.add_argument("--verbose", action="store_true", help="with what was looked for, where nothing was found")

    p = verb("import", verbs.import_logs, "turn another program's logs into a record beside our own")
    p.add_argument("logs", nargs="+", type=Path, help=logs)
    p.add_argument("--scene", required=True)
    p.add_argument("--layout", required=True, help="e.g. n1g4: what the job was allocated")
    p.add_argument("--strategy", default="imported")
    p.add_argument("--repeat", default="r0")
    p.add_argument("--results", type=Path, default=Path("results"))
    p.add_argument(
        "--force",
        action="store_true",
        help="although the log contradicts the layout, or other logs' record is there",
    )
    p.add_argument(
        "--epochs",
        choices=("last", "mean", "median"),
        default="last",
        help="which epochs the seconds per epoch and the throughput are of; default: the last",
    )
    batch = p.add_mutually_exclusive_group()
    batch.add_argument("--batch-per-rank", type=int, metavar="N", help="images per step on each rank")
    batch.add_argument("--global-batch", type=int, metavar="N", help="images per step over all ranks")
    p.add_argument("--device", metavar="NAME", help="the GPUs' name, where the log has none: 'NVIDIA A100'")
    p.add_argument(
        "--warmup-steps", type=int, default=0, metavar="N", help="leave the first N steps out of step times"
    )
    p.add_argument(
        "--warmup-epochs",
        type=int,
        default=0,
        metavar="N",
        help="leave the first N epochs out of epoch times and throughput",
    )


if __name__ == "__main__":
    sys.exit(main())
