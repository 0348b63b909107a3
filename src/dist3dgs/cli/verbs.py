"""Functions of the command line's verbs. Each imports only what it needs."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from ..errors import UserError, snakemake

Verb = Callable[[argparse.Namespace], int | None]


def points(args: argparse.Namespace) -> None:
    study = _study(args)
    for spec in study.specs():
        print(f"{spec.point}\t{spec.num_steps} steps\tglobal batch {spec.global_batch}")
    for point, reason in study.exclusions():
        print(f"{point}\texcluded: {reason}")


def spec(args: argparse.Namespace) -> None:
    from ..config.matrix import spec_json
    from ..config.naming import Point

    print(spec_json(_study(args).spec(Point.named(args.point))))


def photographs(args: argparse.Namespace) -> None:
    from ..scenes.sources import obtain

    obtain(args.name, _scene(args), args.out)


def ingest(args: argparse.Namespace) -> None:
    from ..scenes.sources import ingest_scene

    scene = _scene(args)
    limits = {
        "num_threads": args.threads,
        "memory_gib": args.memory_mb and args.memory_mb / 1024,
        "timeout_s": args.timeout_s,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    scene = scene.model_copy(update={"sfm": scene.sfm.model_copy(update=given)})
    ingest_scene(args.name, scene, args.source, args.pack, args.facts, args.made_from)


def launch(args: argparse.Namespace) -> int:
    from ..launch.launcher import launch

    return launch(args.spec, args.scene, args.out, args.weights, args.resume_from)


def evaluate(args: argparse.Namespace) -> None:
    from ..train.evaluate_checkpoint import run_evaluate

    run_evaluate(args.checkpoint, args.scene, args.json)


def record(args: argparse.Namespace) -> None:
    from ..records.build import judge
    from ..runs.record import save_record

    record = judge(args.launch)
    save_record(record, args.out)
    cause = f" ({record.failure.cause}, in {record.failure.phase})" if record.failure else ""
    print(f"{args.out}: {record.status}{cause}")


def tabulate(args: argparse.Namespace) -> None:
    from ..analysis.tables import tabulate

    if not args.records:
        raise UserError(
            "no records: there is nothing to tabulate, draw or report. Make one by training a point: "
            f"{snakemake('results/builtin/replicated/n1g1/r0/record.json')}, or from the logs of a job that ran "
            "elsewhere: dist3dgs import --help"
        )
    tabulate(args.records, args.runs, args.points, args.baseline)


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


def figure(args: argparse.Namespace) -> None:
    from ..figures import draw

    draw(args.name, args.runs, args.points, args.records, args.out)


def report(args: argparse.Namespace) -> None:
    from ..report import write_report
    from ..runs.provenance import code_digest

    ingests = sorted(args.data.glob("*/ingest.json"))
    study = _json_of(args.study, "--study") | {"code_digest": code_digest()}
    write_report(args.out, args.records, args.figures, args.tables, ingests, study)
    print(f"report: {args.out}")


def read(args: argparse.Namespace) -> int:
    from .logs import run_read

    return run_read(args.logs, args.json)


def diagnose(args: argparse.Namespace) -> int:
    from ..records.build import verdict_of_run
    from .logs import run_diagnose

    return run_diagnose(args.logs, args.json, verbose=args.verbose, verdict_of_run=verdict_of_run)


def import_logs(args: argparse.Namespace) -> int:
    from .logs import run_import

    return run_import(
        args.logs,
        scene=args.scene,
        layout=args.layout,
        strategy=args.strategy,
        repeat=args.repeat,
        results=args.results,
        force=args.force,
        epochs=args.epochs,
        batch_per_rank=args.batch_per_rank,
        global_batch=args.global_batch,
        warmup_steps=args.warmup_steps,
        warmup_epochs=args.warmup_epochs,
        device=args.device,
    )


def status(args: argparse.Namespace) -> None:
    from ..status.table import show

    show(_study(args), args.watch)


def retry(args: argparse.Namespace) -> int:
    from .retry import retry

    return retry(_study(args), args.points, args.configfile, args.profile, args.dry_run)


def verify(args: argparse.Namespace) -> int:
    from .verify import run_verify

    return run_verify(
        args.config, args.configfile, args.profile, full=args.full, as_json=args.json, where=args.on_node
    )


def fetch_weights(args: argparse.Namespace) -> None:
    from ..scenes.download.lpips_weights import fetch_lpips

    fetch_lpips(args.out, args.lock)


def schemas(args: argparse.Namespace) -> None:
    from .schemas import write_schemas

    for path in write_schemas(args.folder):
        print(path)


def _scene(args: argparse.Namespace) -> Any:
    from ..config.models import Scene, validate

    return validate(Scene, _json_of(args.scene, "--scene"), f"--scene of {args.name}")


def _json_of(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise UserError(f"{option}: not JSON ({e})") from None
    if not isinstance(value, dict):
        raise UserError(f"{option}: expected a JSON object, found {text[:80]}")
    return value


def _study(args: argparse.Namespace) -> Any:
    from ..config.matrix import load_study

    return load_study(args.config, args.configfile)
