"""Register the command line's verbs, and the options that several of them have.

A verb is a function with `@verb(...)` before it, in one of the modules that `cli.MODULES` names; it imports what it
needs when it runs, so that `dist3dgs --help` imports nothing.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

Run = Callable[[argparse.Namespace], int | None]
#: Adds arguments to a parser or to a group of one.
Option = Callable[[Any], object]


@dataclass(frozen=True)
class Verb:
    """One verb. Its `run` returns the exit status, None for 0."""

    name: str
    run: Run
    text: str
    options: tuple[Option, ...]
    epilog: str | None


VERBS: dict[str, Verb] = {}


def verb(text: str, *options: Option, name: str = "", epilog: str | None = None) -> Callable[[Run], Run]:
    """Register the decorated function as a verb.

    Args:
        text: what it does, for `dist3dgs --help`.
        options: its arguments, made by `option` and `one_of`.
        name: of the verb, where it differs from the function's.
        epilog: last paragraph of its own help.
    """

    def register(run: Run) -> Run:
        known = name or run.__name__.replace("_", "-")
        VERBS[known] = Verb(known, run, text, options, epilog)
        return run

    return register


def option(*names: str, **settings: Any) -> Option:
    """Return an option with the arguments of `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


def one_of(*options: Option) -> Option:
    """Return options of which at most one may be given."""

    def add(parser: Any) -> None:
        group = parser.add_mutually_exclusive_group()
        for each in options:
            each(group)

    return add


CONFIGFILE = option(
    "--configfile",
    type=Path,
    action="append",
    default=[],
    metavar="FILE",
    help="a file to lay on top, as Snakemake's --configfile does; may be given again",
)
#: Options of a verb that reads a study; see `study_of`.
CONFIG = (
    option(
        "--config",
        type=Path,
        default=Path("config"),
        help="folder of config.yaml, scenes.yaml, strategies.yaml",
    ),
    CONFIGFILE,
)
PROFILE_FILE = Path("profiles/slurm/config.yaml")
PROFILE = option("--profile", type=Path, default=PROFILE_FILE, help="profile whose site is used")
LAYOUTS = option("--layouts", nargs="*", help="default: those of the config")
JSON = option("--json", action="store_true", help="print JSON, for programs")
RECORDS = option("--records", nargs="*", type=Path, default=[], help="record.json of every point")
TABLES = (
    option("--runs", required=True, type=Path, help="runs.csv"),
    option("--points", required=True, type=Path, help="points.csv"),
)
SCENE_SETTINGS = (
    option("name", help="of the scene"),
    option("--scene", required=True, help="its entry of scenes.yaml as JSON"),
)
LOGS = "log files of one job, all together"


def study_of(args: argparse.Namespace) -> Any:
    """Load the study that `CONFIG` names."""
    from ..config.matrix import load_study

    return load_study(args.config, args.configfile)


def scene_of(args: argparse.Namespace) -> Any:
    """Validate the scene that `SCENE_SETTINGS` give."""
    from ..config.models import Scene, validate

    return validate(Scene, json_of(args.scene, "--scene"), f"--scene of {args.name}")


def json_of(text: str, option: str) -> dict[str, Any]:
    """Read a JSON object given on the command line. Raises `UserError`."""
    try:
        value = json.loads(text)
    except ValueError as e:
        raise UserError(f"{option}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise UserError(f"{option}: expected a JSON object, found {text[:80]}")
    return value
