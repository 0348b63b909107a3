"""Verbs about the machines: `verify`, `partitions`, `preflight`, `site init`."""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from .predict import PREFLIGHT, print_findings
from .verb import CONFIG, JSON, LAYOUTS, PROFILE, PROFILE_FILE, option, study_of, verb


@verb(
    "check that this machine, or a node of the cluster, is ready for the study; downloads nothing",
    *CONFIG,
    PROFILE,
    option(
        "--full", action="store_true", help="read packed scenes and archives whole to check their digests"
    ),
    option(
        "--on-node",
        nargs="?",
        const="",
        metavar="PARTITION",
        help="check in a Slurm job, on a node of the training partition or of this one",
    ),
    JSON,
    epilog="Exit status: 0 unless a check failed. Each line is ok, warn or fail, with what to do below it.",
)
def verify(args: argparse.Namespace) -> int:
    from ..slurm.allocation import node_name
    from ..slurm.site import Site, site_of_profile
    from ..verify import Result, Setup, verify
    from ..verify.on_node import on_a_node

    study, site, results = None, Site(), []
    try:
        study = study_of(args)
    except UserError as e:
        results.append(Result("config", "fail", str(e), "see config/README.md"))
    try:
        site = site_of_profile(args.profile)
    except UserError as e:
        fix = f"dist3dgs site init --out {args.profile} --force"
        results.append(Result("site", "fail", str(e), fix))
    host = node_name()
    if args.on_node is None:
        results += verify(Setup(study, site, args.full))
    else:
        given = [
            "--config",
            str(args.config),
            "--profile",
            str(args.profile),
            *(["--full"] if args.full else []),
        ]
        given += [word for path in args.configfile for word in ("--configfile", str(path))]
        host, on_node = on_a_node(site, args.on_node, given)
        results = [r for r in results if r.check not in {o.check for o in on_node}] + on_node
    if args.json:
        print(json.dumps({"host": host, "checks": [asdict(r) for r in results]}, indent=1))
    else:
        print("\n".join(_checks(results, host)))
    return int(any(r.status == "fail" for r in results))


def _checks(results: Sequence[Any], host: str) -> list[str]:
    """Format each result, with what to do below it if it is not ok, and the totals."""
    width = max(len(r.check) for r in results)
    lines = []
    for r in results:
        lines.append(f"{r.status:<4}  {r.check:<{width}}  {r.text}")
        if r.status != "ok" and r.fix:
            lines.append(f"{'':<{width + 8}}fix: {r.fix}")
    counts = Counter(r.status for r in results)
    lines.append(f"{host}: {counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    return lines


def _layouts(args: argparse.Namespace, study: Any) -> list[Any]:
    from ..config.naming import Layout

    return [Layout.parse(text) for text in dict.fromkeys(args.layouts or study.config.layouts)]


def _predictions(study: Any, layouts: list[Any], site: Any, minutes: float | None = None) -> dict[Any, Any]:
    """Predict each layout's run time: `minutes`, else from the study's records, else the site's time limit."""
    from ..slurm.runtime_prediction import Prediction, predict, read_records

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


@verb(
    "say where each layout would start and end first on this cluster",
    PROFILE,
    *CONFIG,
    LAYOUTS,
    option(
        "--minutes",
        type=float,
        help="run time on the fastest GPUs; default: from records, else site.runtime_min",
    ),
    JSON,
    epilog="Exit status: 0 each layout is taken somewhere, 2 one is taken by no partition.",
)
def partitions(args: argparse.Namespace) -> int:
    from ..slurm import partition_choice
    from ..slurm.site import site_of_profile
    from ..slurm.submission import missing_partitions

    study, site = study_of(args), site_of_profile(args.profile)
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


@verb(
    "check the study's jobs before they are submitted: memory, time, allocation, batch and disk by the models, then "
    "whether Slurm would take them: ingestion of each scene that is not packed yet, training of each layout",
    PROFILE,
    *CONFIG,
    LAYOUTS,
    *PREFLIGHT,
    epilog="Exit status: 0 all can be submitted, 2 a check or Slurm refuses one.",
)
def preflight(args: argparse.Namespace) -> int:
    from ..slurm.client import require
    from ..slurm.site import site_of_profile
    from ..slurm.submission import check_partitions, preflight

    if not args.no_slurm:
        require()
    study, site = study_of(args), site_of_profile(args.profile)
    if not args.no_slurm:
        check_partitions(site, args.profile)
    refused = print_findings(args, study, site, _layouts(args, study))
    if args.no_slurm:
        return 2 if refused else 0
    ingest, train = _ingest_requests(study, site), _train_requests(study, _layouts(args, study), site)
    problems = preflight(ingest, site.account, for_ingest=True) | preflight(train, site.account)
    for name, request in (ingest | train).items():
        print(f"{name}: {problems.get(name) or _taken(request)}")
    return 2 if problems or refused else 0


def _ingest_requests(study: Any, site: Any) -> dict[str, Any]:
    """Return the resources of the ingest job of each scene that is not packed yet."""
    from ..slurm.resources import ingest_resources

    return {
        f"ingest {name}": ingest_resources(study.scene(name), site)
        for name in dict.fromkeys(study.config.scenes)
        if not Path(study.config.data, name, "scene.safetensors").is_file()
    }


def _train_requests(study: Any, layouts: list[Any], site: Any) -> dict[str, Any]:
    """Return the resources of the job of each layout, in the partition that a submission would choose."""
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


@verb(
    "write a Snakemake profile for the cluster this is called on",
    option("what", choices=["init"]),
    option("--out", type=Path, default=PROFILE_FILE, help="the profile to write"),
    option("--force", action="store_true", help="write over an existing file"),
)
def site(args: argparse.Namespace) -> None:
    from ..slurm.site_init import run_init

    print("\n".join(run_init(args.out, force=args.force)))
