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
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import __version__
from ..console import FOLLOWED, logged
from ..errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 on success, 2 after a mistake that the message explains, 130 after Ctrl-C."""
    # Logs have characters that not every terminal's encoding has.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parser().parse_args(argv)
        with _unwinding(), logged(args.log):
            return _run(args)
    except UserError as e:  # the log's own
        return _mistake(str(e))
    except KeyboardInterrupt:
        if not os.environ.get(FOLLOWED):  # a job of a run, whose terminal says it
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
    from . import cluster, logs, predict, runs, study  # noqa: F401 (each registers its verbs)
    from .verb import VERBS

    parser = argparse.ArgumentParser(prog="dist3dgs", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log", type=Path, help="write everything printed to this file too")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS.values():
        p = subparsers.add_parser(verb.name, help=verb.text, description=verb.text, epilog=verb.epilog)
        p.set_defaults(verb=verb.run)
        for add in verb.options:
            add(p)
    return parser


if __name__ == "__main__":
    sys.exit(main())
