"""The command line's verbs about the cluster: `partitions`, `preflight`, `site init`."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.load import add_config_options

PROFILE = Path("profiles/slurm/config.yaml")


def add_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """`verb(name, function, text)` makes a verb's parser."""
    p = verb(
        "partitions",
        _partitions,
        "say where each layout would start and end first on this cluster",
        "Exit status: 0 each layout is taken somewhere, 2 one is taken by no partition.",
    )
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
        "preflight",
        _preflight,
        "ask Slurm whether it would take the jobs of the study: ingestion of each scene that is not packed yet, "
        "training of each layout; submits nothing",
        "Exit status: 0 Slurm takes them all, 2 it refuses one.",
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
    from ..slurm.site import site_of_profile

    return site_of_profile(profile)


def _layouts(args: argparse.Namespace, study: Any) -> list[Any]:
    from ..config.naming import Layout

    return [Layout.parse(text) for text in dict.fromkeys(args.layouts or study.config.layouts)]


def _predictions(study: Any, layouts: list[Any], site: Any, minutes: float | None = None) -> dict[Any, Any]:
    """Run time of each layout: `minutes`, else from the records of the study, else the site's time limit."""
    from ..errors import UserError
    from ..slurm.partition_choice import Prediction, predict, read_records

    if minutes:
        return {layout: Prediction(seconds=minutes * 60, source="--minutes") for layout in layouts}
    records = read_records(Path(study.config.results))
    points = {(p.scene, p.strategy): p for p in study.points()}.values()
    predictions = {}
    for layout in layouts:
        specs = []
        for point in points:
            with contextlib.suppress(UserError):  # a batch that these ranks cannot share, say
                specs.append(study.spec(replace(point, layout=layout, repeat=0)))
        predictions[layout] = predict(specs, records, site.gpu_speed, site.runtime_min * 60.0)
    return predictions


def _partitions(args: argparse.Namespace) -> int:
    from ..config.matrix import load_study
    from ..slurm import partition_choice
    from ..slurm.submission import missing_partitions

    study, site = load_study(args.config, args.configfile), site_of(args.profile)
    layouts = _layouts(args, study)
    text, refused = partition_choice.run(
        layouts, site, _predictions(study, layouts, site, args.minutes), as_json=args.json
    )
    print(text)
    if missing := missing_partitions(site):
        print(
            f"{args.profile}: this cluster has no such partition: {', '.join(missing)}; jobs would be refused. Write "
            "the profile for this cluster: dist3dgs site init --force",
            file=sys.stderr,
        )
    if refused:
        names = ", ".join(map(str, refused))
        print(f"taken by no partition of this cluster: {names}", file=sys.stderr)
    return 2 if refused else 0


def _preflight(args: argparse.Namespace) -> int:
    from ..config.matrix import load_study
    from ..slurm.client import require
    from ..slurm.submission import check_partitions, preflight

    require()
    study, site = load_study(args.config, args.configfile), site_of(args.profile)
    check_partitions(site, args.profile)
    ingest, train = _ingest_requests(study, site), _train_requests(study, _layouts(args, study), site)
    problems = preflight(ingest, site.account, for_ingest=True) | preflight(train, site.account)
    for name, request in (ingest | train).items():
        print(f"{name}: {problems.get(name) or _taken(request)}")
    return 2 if problems else 0


def _ingest_requests(study: Any, site: Any) -> dict[str, Any]:
    """Resources of the job of each scene of the study that is not packed yet."""
    from ..slurm.resources import ingest_resources

    return {
        f"ingest {name}": ingest_resources(study.scene(name), site)
        for name in dict.fromkeys(study.config.scenes)
        if not Path(study.config.data, name, "scene.safetensors").is_file()
    }


def _train_requests(study: Any, layouts: list[Any], site: Any) -> dict[str, Any]:
    """Resources of the job of each layout, in the partition that a submission would choose."""
    from ..slurm.partition_choice import choose
    from ..slurm.resources import layout_resources

    requests = {}
    times = _predictions(study, layouts, site) if site.gpu_partition == "auto" else {}
    for layout in layouts:
        chosen = choose(layout, site, times[layout].seconds) if times else None
        here = site.model_copy(update=chosen.settings) if chosen else site
        requests[str(layout)] = layout_resources(layout, here)
    return requests


def _taken(request: Any) -> str:
    return f"Slurm takes it ({request['slurm_partition'] or 'default partition'})"


def _site(args: argparse.Namespace) -> None:
    from ..slurm.site_init import run_init

    print("\n".join(run_init(args.out, force=args.force)))
