"""Verbs of the workflow's rules, from photographs to the report; each can be called by hand."""

import argparse
from pathlib import Path

from ..errors import UserError, snakemake
from .verb import RECORDS, SCENE_SETTINGS, TABLES, json_of, option, scene_of, verb


@verb(
    "make, download or find a scene's photographs",
    *SCENE_SETTINGS,
    option("--out", required=True, type=Path, help="source.json to write"),
)
def photographs(args: argparse.Namespace) -> None:
    from ..scenes.sources import obtain

    obtain(args.name, scene_of(args), args.out)


LIMIT = "of structure from motion, in place of the entry's sfm."


@verb(
    "pack a scene: structure from motion, undistortion, resizing",
    *SCENE_SETTINGS,
    option("--source", required=True, type=Path, help="source.json from `photographs`"),
    option("--pack", required=True, type=Path, help="packed scene to write"),
    option("--facts", required=True, type=Path, help="ingest.json to write"),
    option("--made-from", metavar="DIGEST", help="of settings and photographs, noted in the facts"),
    option("--threads", type=int, help=f"{LIMIT}num_threads"),
    option("--memory-mb", type=float, help=f"{LIMIT}memory_gib, in MiB"),
    option("--timeout-s", type=float, help=f"{LIMIT}timeout_s"),
)
def ingest(args: argparse.Namespace) -> None:
    from ..scenes.sources import ingest_scene

    scene = scene_of(args)
    limits = {
        "num_threads": args.threads,
        "memory_gib": args.memory_mb and args.memory_mb / 1024,
        "timeout_s": args.timeout_s,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    scene = scene.model_copy(update={"sfm": scene.sfm.model_copy(update=given)})
    ingest_scene(args.name, scene, args.source, args.pack, args.facts, args.made_from)


@verb(
    "write a packed scene as the COLMAP folder that other trainers read",
    option("--scene", required=True, type=Path, help="packed scene"),
    option("--out", required=True, type=Path, help="export.json to write, in the folder"),
)
def export_scene(args: argparse.Namespace) -> None:
    from ..scenes.export import export_colmap

    export_colmap(args.scene, args.out)


@verb(
    "make a workload's program ready: run its `setup`",
    option("name", help="the workload"),
    option("--application", required=True, help="its settings as JSON"),
    option("--out", required=True, type=Path, help="file to write when it has succeeded"),
)
def setup_workload(args: argparse.Namespace) -> None:
    from ..config.models import validate
    from ..config.workloads import Application
    from ..workloads.process import run_setup

    app = validate(Application, json_of(args.application, "--application"), "--application")
    run_setup(args.name, app, args.out, args.log)


@verb(
    "download the LPIPS weights; needs the internet",
    option("--out", type=Path, default=Path("data/weights/lpips-alex.safetensors")),
    option("--lock", type=Path, default=Path("config/scenes.lock.yaml")),
)
def fetch_weights(args: argparse.Namespace) -> None:
    from ..scenes.download.lpips_weights import fetch_lpips

    fetch_lpips(args.out, args.lock)


@verb(
    "train one point: start its ranks, watch them, leave evidence",
    option("--spec", required=True, help="run spec as JSON (dist3dgs spec POINT)"),
    option("--scene", nargs="?", type=Path, help="packed scene; none for a workload"),
    option("--out", required=True, type=Path, help="the point's folder"),
    option("--weights", type=Path, help="LPIPS weights, if they are there"),
    option("--resume-from", type=Path, metavar="CHECKPOINT", help="start from another layout's checkpoint"),
)
def launch(args: argparse.Namespace) -> int:
    from ..launch.launcher import launch

    return launch(args.spec, args.scene, args.out, args.weights, args.resume_from)


@verb(
    "evaluate a checkpoint of all ranks on the held-out views, in one process",
    option("checkpoint", type=Path, help="a point's checkpoints/step-*.safetensors"),
    option("--scene", required=True, type=Path, help="the packed scene it was trained on"),
    option("--json", action="store_true", help="all numbers, each view's too"),
)
def evaluate(args: argparse.Namespace) -> None:
    from ..train.evaluate_checkpoint import run_evaluate

    run_evaluate(args.checkpoint, args.scene, args.json)


@verb(
    "judge a run: evidence in, record.json out",
    option("--launch", required=True, type=Path, help="the point's launch.json"),
    option("--out", required=True, type=Path, help="record.json to write"),
    option(
        "--criteria",
        nargs="?",
        metavar="JSON",
        help="of a workload: what its output is read for, as it is now",
    ),
)
def record(args: argparse.Namespace) -> None:
    from ..records.build import judge
    from ..runs.record import save_record

    record = judge(args.launch, json_of(args.criteria, "--criteria") if args.criteria else None)
    save_record(record, args.out)
    cause = f" ({record.failure.cause}, in {record.failure.phase})" if record.failure else ""
    print(f"{args.out}: {record.status}{cause}")


@verb(
    "tabulate records in runs.csv and points.csv",
    *TABLES,
    option("--baseline", metavar="STRATEGY/LAYOUT", help="compare with it instead of the smallest layout"),
    RECORDS,
)
def tabulate(args: argparse.Namespace) -> None:
    from ..analysis.tables import tabulate
    from ..predict.compare import PREDICTED, predicted_metrics

    if not args.records:
        raise UserError(
            "no records: there is nothing to tabulate, draw or report. Make one by training a point: "
            f"{snakemake('results/builtin/replicated/n1g1/r0/record.json')}, or from the logs of a job that ran "
            "elsewhere: dist3dgs import --help"
        )
    tabulate(args.records, args.runs, args.points, args.baseline, more=PREDICTED, values_of=predicted_metrics)


@verb(
    "fail if a point has failed; the rule behind `fail_on: failed`",
    RECORDS,
    option("--out", required=True, type=Path, help="file to write if none has failed"),
)
def check(args: argparse.Namespace) -> None:
    from ..files import write_text
    from ..runs.record import load_record

    failed = [path for path in args.records if load_record(path).status == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(args.records)} points failed (fail_on: failed in the config); why:"
            f" dist3dgs diagnose {failed[0]}"
        )
    write_text(args.out, f"none of {len(args.records)} points failed\n")


@verb(
    "draw one figure (svg, png, pdf and the csv behind it)",
    option("name", help="of the figure"),
    *TABLES,
    RECORDS,
    option("--out", required=True, type=Path, help="path without suffix"),
)
def figure(args: argparse.Namespace) -> None:
    from ..figures import draw

    draw(args.name, args.runs, args.points, args.records, args.out)


@verb(
    "write the self-contained HTML report",
    option("--out", required=True, type=Path, help="HTML file to write"),
    option("--figures", required=True, type=Path, help="folder of the figures"),
    option("--tables", required=True, type=Path, help="folder of runs.csv and points.csv"),
    option("--data", required=True, type=Path, help="folder of the ingested scenes"),
    option("--study", default="{}", help="flags, exclusions and licences of the study as JSON"),
    RECORDS,
)
def report(args: argparse.Namespace) -> None:
    from ..report import write_report
    from ..runs.provenance import code_digest

    ingests = sorted(args.data.glob("*/ingest.json"))
    study = json_of(args.study, "--study") | {"code_digest": code_digest()}
    write_report(args.out, args.records, args.figures, args.tables, ingests, study)
    print(f"report: {args.out}")
