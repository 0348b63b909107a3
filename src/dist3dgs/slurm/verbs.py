"""The command line's verbs about the cluster: `partitions`, `preflight`, `site init`."""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import add_config_options

PROFILE = Path("profiles/slurm/config.yaml")


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """`verb(name, function, text)` makes a verb's parser."""
    p = verb("partitions", _partitions, "say where each layout would start and end first on this cluster")
    p.add_argument("--profile", type=Path, default=PROFILE, help="profile whose site is used")
    add_config_options(p)
    p.add_argument("--layouts", nargs="*", help="default: those of the config")
    p.add_argument(
        "--minutes",
        type=float,
        help="run time on the fastest GPUs; default: from records, else site.runtime_min",
    )
    p.add_argument("--json", action="store_true")

    p = verb(
        "preflight", _preflight, "ask Slurm whether it would take the job of each layout; submits nothing"
    )
    p.add_argument("--profile", type=Path, default=PROFILE)
    add_config_options(p)
    p.add_argument("--layouts", nargs="*", help="default: those of the config")

    p = verb("site", _site, "write a Snakemake profile for the cluster this is called on")
    p.add_argument("what", choices=["init"])
    p.add_argument("--out", type=Path, default=PROFILE, help="the profile to write")
    p.add_argument("--force", action="store_true", help="write over an existing file")


def site_of(profile: Path) -> Any:
    """The site that a profile names; the defaults where the profile does not exist."""
    from .settings import site_of_profile

    return site_of_profile(profile)


def _layouts(args: argparse.Namespace) -> list[Any]:
    from ..matrix import load_study
    from ..names import Layout

    layouts = args.layouts or load_study(args.config, args.configfile).config.layouts
    return [Layout.parse(text) for text in layouts]


def _partitions(args: argparse.Namespace) -> None:
    from ..errors import UserError
    from ..matrix import load_study
    from . import chooser
    from .predict import Prediction, predict, read_records

    study, site, layouts = load_study(args.config, args.configfile), site_of(args.profile), _layouts(args)
    records = read_records(Path(study.config.results))
    points = {(p.scene, p.strategy): p for p in study.points()}.values()
    predictions = {}
    for layout in layouts:
        specs = []
        for point in points:
            with contextlib.suppress(UserError):  # a batch that these ranks cannot share, say
                specs.append(study.spec(replace(point, layout=layout, repeat=0)))
        predictions[layout] = predict(specs, records, site.gpu_speed, site.runtime_min * 60.0)
        if args.minutes:
            predictions[layout] = Prediction(seconds=args.minutes * 60, source="--minutes")
    print(chooser.run(layouts, site, predictions, as_json=args.json))


def _preflight(args: argparse.Namespace) -> int:
    from .commands import require
    from .resources import layout_resources
    from .submission import preflight

    require()
    site, layouts = site_of(args.profile), _layouts(args)
    problems = preflight({str(la): layout_resources(la, site) for la in layouts}, site.account)
    for layout in map(str, layouts):
        print(f"{layout}: {problems.get(layout, 'Slurm takes it')}")
    return 2 if problems else 0


def _site(args: argparse.Namespace) -> None:
    from .site import run_init

    print("\n".join(run_init(args.out, force=args.force)))
