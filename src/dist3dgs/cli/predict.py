"""Verbs that predict: `predict`, `recommend`, `project`; the models' part of `preflight`."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .verb import CONFIG, JSON, one_of, option, study_of, verb

MACHINE = (
    option("--machine", metavar="NAME", help="a file of config/machines, or a path; default: the records'"),
    option("--network", metavar="NAME", help="between nodes, of config/machines/networks.yaml"),
)
#: Options of the models behind `preflight`.
PREFLIGHT = (
    *MACHINE,
    option(
        "--workers",
        type=int,
        metavar="N",
        help="data-loading processes of each rank; default: none, of a workload its loader_workers",
    ),
    option(
        "--worker-gib",
        type=float,
        metavar="GIB",
        help="resident size of one; default: a workload's loader_gib",
    ),
    option(
        "--process-gib",
        type=float,
        metavar="GIB",
        help="resident size of a rank; default: a workload's process_gib, its records'",
    ),
    option("--explain", action="store_true", help="the arithmetic behind each finding"),
    option("--no-slurm", action="store_true", help="the models alone, against whole nodes; runs anywhere"),
)


def print_findings(args: argparse.Namespace, study: Any, site: Any, layouts: Sequence[Any]) -> bool:
    """Print what the models find about each layout; return True if they refuse one."""
    from ..predict.preflight import Limits, check_study, worst
    from ..predict.study import machine_of

    machine, unknown = None, ""
    try:
        gpu_type = None if site.gpu_request == "none" else site.gpu_type
        named = args.machine or ("cpu" if site.gpu_request == "none" else None)
        machine = machine_of(study, args.config, named, args.network, gpu_type)
    except UserError as e:
        if args.machine:
            raise
        unknown = str(e)
    limits = Limits(
        runtime_s=site.runtime_min * 60.0,
        longest_s=site.max_runtime_min * 60.0,
        runtime_margin=site.runtime_margin,
        mem_gib_per_rank=None if args.no_slurm else site.mem_gib_per_gpu,
        most_mem_gib=site.max_mem_gib,
        process_gib=args.process_gib,
        workers=args.workers,
        worker_gib=args.worker_gib,
    )
    found = check_study(study, layouts, limits, machine)
    for layout, findings in found.items():
        for finding in findings:
            print("\n".join(f"{layout}: {line}" for line in finding.lines(explain=args.explain)))
    if machine is not None:
        print(f"machine: {machine.accelerator}; another: --machine NAME")
    if unknown:
        print(f"GPU memory, time limit, allocation: not checked: {unknown}")
    return any(worst(findings) == "refuse" for findings in found.values())


@verb(
    "predict step time, memory, run time and GPU-hours of layouts before anything is submitted",
    option("layouts", nargs="*", metavar="LAYOUT", help="e.g. n1g4 n2g8; default: those of the config"),
    *MACHINE,
    *CONFIG,
    option("--scene", action="append", help="default: those of the config"),
    option("--strategy", action="append", help="default: those of the config"),
    option(
        "--gaussians",
        type=float,
        metavar="N",
        help="final number; default: of the scene's records or published runs, else max_gaussians",
    ),
    option("--size", metavar="WxH", help="pixels of a photograph; default: as ingested"),
    option("--images", type=int, metavar="N", help="images of the whole run; default: train.steps"),
    one_of(
        option("--batch-per-rank", type=int, metavar="N", help="images per step on each rank"),
        option("--global-batch", type=int, metavar="N", help="images per step over all ranks"),
    ),
    option("--visible", type=float, metavar="SHARE", help="of the Gaussians in a view; default: 0.3"),
    option("--explain", action="store_true", help="the terms of a step and its collectives"),
    option(
        "--compare",
        action="store_true",
        help="the steps of the study's records beside what its smallest predicts",
    ),
    JSON,
    epilog="Numbers have intervals. Rates come from the study's own records on the machine where there are any, else "
    "from published points (docs/benchmarks/prediction.md).",
)
def predict(args: argparse.Namespace) -> None:
    from ..config.naming import Layout
    from ..predict.model import describe
    from ..predict.study import forecasts, machine_of, predictor_of

    study = study_of(args)
    if args.compare:
        _compare(args, study)
        return
    machine = machine_of(study, args.config, args.machine, args.network)
    names = list(dict.fromkeys(args.layouts or study.config.layouts))
    strategies = args.strategy or study.config.strategies
    answer: dict[str, Any] = {
        "machine": machine.accelerator,
        "assumed": machine.assumptions(),
        "predictions": [],
        "left_out": [],
    }
    blocks = []
    for name in args.scene or study.config.scenes:
        scene = _sized(study, name, args.size)
        made = predictor_of(study, machine, scene)
        shown: list[tuple[str, Any]] = []
        for layout in map(Layout.parse, names):
            changes = _changes(args)
            found, problems = forecasts(
                study, made, scene, strategies, [layout], changes, args.batch_per_rank
            )
            shown += found
            answer["left_out"] += problems
        answer["predictions"] += [
            {"scene": name, "strategy_name": strategy, "source": made.source, **describe(f)}
            for strategy, f in shown
        ]
        blocks.append(_block(scene, made, shown, explain=args.explain))
    if not answer["predictions"]:
        raise UserError("\n".join(answer["left_out"]) or "no layout to predict")
    if args.json:
        print(json.dumps(answer, indent=1))
        return
    print("\n\n".join(blocks))
    for problem in answer["left_out"]:
        print(f"left out: {problem}")
    if answer["assumed"]:
        print(f"assumed of {machine.accelerator}: {', '.join(answer['assumed'])}")


def _compare(args: argparse.Namespace, study: Any) -> None:
    """Print predicted beside measured steps of all records."""
    from ..predict.compare import compare_runs
    from ..predict.study import records_of

    records = [r for name in args.scene or study.config.scenes for r in records_of(study, name)]
    found = compare_runs(records, args.config)
    rows: list[dict[str, Any]] = [
        {
            "point": f"{c.record.run.scene}/{c.record.run.strategy}/{c.record.run.layout}/r{c.record.run.repeat}",
            "measured_step_s": c.measured_s,
            "predicted_step_s": c.predicted_s,
            "interval": c.width,
            "error": c.ratio - 1,
            "fitted": c.fitted,
        }
        for c in found
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        raise UserError(
            f"{len(records)} records in {study.config.results}, none that the model can predict: it is fitted to the "
            "steps between evaluations, and the smallest layout has fewer than two; set train.eval_every lower"
        )
    for r in rows:
        measured, predicted = (f"{1e3 * r[name]:8.2f} ms" for name in ("measured_step_s", "predicted_step_s"))
        print(
            f"{r['point']:<36} measured {measured}  predicted {predicted}"
            f"  {100 * r['error']:+5.1f} %{'  (fitted to)' if r['fitted'] else ''}"
        )


def _sized(study: Any, name: str, size: str | None) -> Any:
    from dataclasses import replace

    from ..predict.study import scene_facts

    scene = scene_facts(study, name)
    if size is None:
        return scene
    width, _, height = size.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--size {size}: expected WIDTHxHEIGHT in pixels, e.g. 1297x840")
    return replace(scene, size_px=(int(width), int(height)), size_known=True)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return fields of the workload that the options replace, all but the batch per rank."""
    given = {"gaussians": args.gaussians, "images": args.images, "visible": args.visible}
    batches = {"global-batch": args.global_batch, "batch-per-rank": args.batch_per_rank}
    for name, value in (given | batches).items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}: expected a number above 0, found {value:g}")
    if args.global_batch and not args.batch_per_rank:
        given["batch"] = args.global_batch
    return {name: value for name, value in given.items() if value is not None}


def _block(scene: Any, made: Any, shown: Sequence[tuple[str, Any]], *, explain: bool) -> str:
    """Return one scene's table, with where its numbers come from."""
    unknown = "" if scene.size_known else " (assumed: not ingested yet; --size)"
    width, height = scene.size_px
    lines = [f"{scene.name}, {width} x {height} px{unknown}, on {made.machine.accelerator}: {made.source}"]
    unit = "rank" if made.machine.accelerator == "cpu" else "GPU"
    header = (
        *(
            "layout",
            "strategy",
            "Gaussians",
            "batch",
            "step, ms",
            "images/s",
            "speedup",
            "eff.",
            "R",
            "comm.",
        ),
        *(f"GB/{unit}", "time", f"{unit}-hours"),
    )
    rows: list[tuple[str, ...]] = [header]
    for name, f in shown:
        step, total = f.step_s, f.total_s
        rows.append(
            (
                str(f.layout),
                name,
                f"{f.workload.gaussians:,.0f}",
                str(f.batch),
                f"{1e3 * step.value:.3g} ({1e3 * step.low:.3g}-{1e3 * step.high:.3g})",
                f"{f.images_per_s.value:.3g}",
                f"{f.speedup:.2f}",
                f"{100 * f.efficiency:.0f} %",
                "-" if f.ratio is None else f"{f.ratio:.1f}",
                f"{100 * (f.step.seconds - f.step.compute_s) / f.step.seconds:.0f} %",
                f"{f.memory_gb.value:.1f}{'' if f.fits else f' > {f.memory_limit_gb:g}!'}",
                f"{_time(total.value)} ({_time(total.low)}-{_time(total.high)})",
                f"{f.rank_hours.value:.2f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    for note in dict.fromkeys(note for _, f in shown for note in f.notes):
        lines.append(f"* {note}")
    if any(not f.fits for _, f in shown):
        lines.append("! does not fit: fewer Gaussians, a sharded strategy, or more ranks of one")
    if explain:
        for name, f in shown:
            terms = ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in f.step.terms().items())
            lines.append(f"{f.layout} {name}: {terms}; interval +- {100 * f.width:.0f} %")
            for c in f.step.collectives:
                lines.append(
                    f"  {c.op}: {c.calls} x, {c.bytes / 1e6:.3g} MB, {1e3 * c.seconds:.3g} ms ({c.algorithm})"
                )
            phases = ", ".join(f"{k} {v:.3g} s" for k, v in f.phases_s.items())
            lines.append(f"  {f.num_steps} steps; {phases}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    from ..predict.recommend import duration

    return duration(seconds)


@verb(
    "say what to use and what not, and why, from the study's records: time against cost, the next doubling, and "
    "predicted alternatives",
    option("--records", nargs="*", type=Path, help="default: all in the results folder"),
    *MACHINE,
    *CONFIG,
    JSON,
)
def recommend(args: argparse.Namespace) -> None:
    from ..analysis.points import point_rows
    from ..analysis.tables import load_records
    from ..config.naming import Layout
    from ..predict.recommend import alternatives, comparisons, costs, describe_alternatives, front, sentences
    from ..predict.study import machine_of, predictor_of, scene_facts, workload_at

    study = study_of(args)
    paths = args.records or sorted(Path(study.config.results).glob("*/*/*/r*/record.json"))
    points = point_rows(load_records(paths), study.config.baseline)
    if not points:
        raise UserError(f"no records in {study.config.results}; before any: dist3dgs predict --machine NAME")
    try:
        machine = machine_of(study, args.config, args.machine, args.network)
    except UserError as e:
        machine, unknown = None, str(e)
    answer: list[dict[str, Any]] = []
    for comparison in comparisons(points):
        name = comparison.scene
        made = scene = None
        if machine is not None and name in study.scenes:
            scene = scene_facts(study, name)
            made = predictor_of(study, machine, scene)

        def predicted(strategy: str, layout: Any, made: Any = made, scene: Any = scene) -> Any:
            try:
                return made.forecast(workload_at(study, scene, strategy, layout), layout)
            except UserError:
                return None

        said = sentences(comparison, predicted if made is not None else None)
        kept = front(comparison.points)
        if machine is not None and made is not None and scene is not None and kept:
            row = min(kept, key=lambda c: c.time_s).row
            layout = Layout.parse(row["layout"])
            tried = {
                (study.strategies[p["strategy"]].kind, Layout.parse(p["layout"]))
                for p in comparison.points
                if p["strategy"] in study.strategies
            }
            try:
                others = alternatives(made, workload_at(study, scene, row["strategy"], layout), layout, tried)
            except UserError:  # a strategy that the config does not have, or without a model
                others = []
            said.append(describe_alternatives(others, "rank" if machine.accelerator == "cpu" else "GPU"))
        elif machine is None:
            said.append(f"Nothing is predicted: {unknown}.")
        answer.append(
            {
                "scene": name,
                "name": comparison.name,
                "sentences": [s for s in said if s],
                "front": [_cost(c) for c in kept],
                "costs": [_cost(c) for c in costs(comparison.points)],
            }
        )
    if args.json:
        print(json.dumps(answer, indent=1))
    else:
        print("\n\n".join("\n".join(a["sentences"]) for a in answer))


def _cost(c: Any) -> dict[str, Any]:
    row = c.row
    return {
        "strategy": row["strategy"],
        "layout": row["layout"],
        "outcome": row["outcome"],
        "time_s": c.time_s,
        "rank_hours": c.rank_hours,
    }


@verb(
    "project time to finish and GPU-hours: of points that run, from their first steps, or of epoch times",
    option("what", nargs="+", metavar="POINT|RANKS=TIME", help="builtin/replicated/n1g2, or 1=2.0h 8=15min"),
    option("--epochs", type=int, metavar="N", help="epochs of the whole training, with RANKS=TIME"),
    *CONFIG,
    JSON,
)
def project(args: argparse.Namespace) -> None:
    from ..predict.projection import parse_epoch, project_epochs

    epochs = [word for word in args.what if "=" in word]
    if epochs and len(epochs) < len(args.what):
        raise UserError("give either points or epoch times (RANKS=TIME), not both")
    if epochs:
        if not args.epochs or args.epochs < 1:
            raise UserError("--epochs N: how many epochs the whole training has")
        rows = project_epochs([parse_epoch(word) for word in epochs], args.epochs)
        if args.json:
            print(json.dumps([vars(r) | {"rank_hours": r.rank_hours} for r in rows], indent=1))
            return
        print(f"{'ranks':>5}  {'an epoch':>9}  {args.epochs} epochs  rank-hours  speedup  efficiency")
        for r in rows:
            print(
                f"{r.ranks:>5}  {_time(r.epoch_s):>9}  {r.total_s / 3600:>7.1f} h  {r.rank_hours:>10.1f}"
                f"  {r.speedup:>7.2f}  {100 * r.efficiency:>8.0f} %"
            )
        return
    print(_projected(args))


def _projected(args: argparse.Namespace) -> str:
    from ..config.naming import Point
    from ..predict.projection import project_run, steps_seen
    from ..runs.attempts import attempts

    study = study_of(args)
    found, lines = [], []
    for name in args.what:
        point = Point.named(name)
        every = attempts(point.folder(Path(study.config.results)))
        events = list(every[-1].events()) if every else []
        seen = steps_seen(events)
        times = [e["t"] for e in events if isinstance(e.get("t"), int | float)]
        projection = project_run(seen, study.train_spec(point), max(times) - min(times)) if times else None
        if projection is None:
            lines.append(f"{point}: too few steps to project from")
            continue
        p = projection
        found.append(
            {"point": str(point), **{k: v if not hasattr(v, "low") else vars(v) for k, v in vars(p).items()}}
        )
        lines.append(
            f"{point}: step {p.step} of {p.num_steps}, {_time(p.left_s.value)} left ({_time(p.left_s.low)} to "
            f"{_time(p.left_s.high)}); whole run {_time(p.total_s.value)}, {p.rank_hours.value:.3g} rank-hours "
            f"({p.rank_hours.low:.3g} to {p.rank_hours.high:.3g}); from {p.basis}"
        )
    return json.dumps(found, indent=1) if args.json else "\n".join(lines)
