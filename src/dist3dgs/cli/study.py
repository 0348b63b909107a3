"""Verbs about the study as a whole: its points, their state, and the schemas of its files."""

import argparse
from pathlib import Path
from typing import Any

from .verb import CONFIG, CONFIGFILE, option, study_of, verb


@verb("list the config's scaling points, and those it leaves out and why", *CONFIG)
def points(args: argparse.Namespace) -> None:
    study = study_of(args)
    for spec in study.specs():
        print(f"{spec.point}\t{spec.num_steps} steps\tglobal batch {spec.global_batch}")
    for point, reason in study.exclusions():
        print(f"{point}\texcluded: {reason}")


@verb(
    "print the run spec of one point as JSON, for `launch --spec`",
    option("point", help="scene/strategy/layout[/repeat]"),
    *CONFIG,
)
def spec(args: argparse.Namespace) -> None:
    from ..config.matrix import spec_json
    from ..config.naming import Point

    print(spec_json(study_of(args).spec(Point.named(args.point))))


@verb(
    "list every point of the study: waiting, running, ok, failed and why",
    *CONFIG,
    option(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="refresh until Ctrl-C, every 10 seconds or as given",
    ),
)
def status(args: argparse.Namespace) -> None:
    from ..status.table import show

    show(study_of(args), args.watch)


@verb(
    "train again the points that failed, or those given, with the config as it is now",
    option(
        "points", nargs="*", metavar="POINT", help="scene/strategy/layout[/repeat]; default: all that failed"
    ),
    CONFIGFILE,
    option(
        "--profile",
        type=Path,
        help="Snakemake's; default: profiles/slurm for points that ran there, else profiles/local",
    ),
    option("-n", "--dry-run", action="store_true", help="only say what would be trained, and the command"),
    epilog="A point resumes from its last checkpoint if the settings of its run are the same. Runs Snakemake and"
    " ends with its exit status.",
)
def retry(args: argparse.Namespace) -> int:
    from ..config.matrix import load_study
    from .retry import retry

    study = load_study(Path("config"), args.configfile)  # Snakemake reads no other
    return retry(study, args.points, args.configfile, args.profile, args.dry_run)


@verb(
    "write the JSON schemas of the config files and of record.json",
    option("folder", type=Path, nargs="?", default=Path("workflow/schemas")),
)
def schemas(args: argparse.Namespace) -> None:
    for path in write_schemas(args.folder):
        print(path)


def models() -> dict[str, Any]:
    """Return the models of files that users and other programs read or write, by the name of their schema."""
    from ..config.models import Config, RunSpec, Scene, Strategy
    from ..runs.record import RunRecord

    return {"record": RunRecord, "config": Config, "scene": Scene, "strategy": Strategy, "run_spec": RunSpec}


def write_schemas(folder: Path) -> list[Path]:
    """Write `{name}.schema.json` for every model and return the paths; a test holds the committed ones equal."""
    from ..files import write_json

    found = {Path(folder, f"{name}.schema.json"): model for name, model in models().items()}
    for path, model in found.items():
        write_json(path, model.model_json_schema())
    return list(found)
