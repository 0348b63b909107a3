import gc
import json
import os
import sys
from functools import cache
from pathlib import Path

from dist3dgs import figures as figures_module
from dist3dgs.errors import UserError
from dist3dgs.names import NAME_PATTERN, Point
from snakemake.resources import Resources

# A big study is millions of objects that stay: looking through them for garbage less often saves a tenth of the time.
gc.set_threshold(20_000, 10, 10)


def stop(error):
    """End with one clear message instead of a traceback."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def config_layers():
    """What `config` was merged from, for messages: the Snakefile's files, those of --configfile, --config."""
    overlays = list(workflow.overwrite_configfiles)
    files = [f for f in workflow.configfiles if f not in overlays]
    layers = Layers.read([*files, *overlays])
    return Layers((*layers.layers, ("--config", workflow.config_settings.config or {})))


def default_resources():
    """Name and value of each default resource that is not Snakemake's own."""
    usual = set(Resources.default("full").args)
    given = workflow.resource_settings.default_resources
    return dict(arg.split("=", 1) for arg in (given.args if given else []) if arg not in usual)


try:
    from dist3dgs.config import Layers
    from dist3dgs.matrix import Study, spec_json
    from dist3dgs.slurm.planner import Planner, TrainJobs
    from dist3dgs.slurm.resources import contradiction, ingest_resources, rule_resources, sfm_limits
    from dist3dgs.slurm.settings import current_site, former_place, on_cluster
    from dist3dgs.slurm.submission import check_partitions

    # The cluster, from a file that the profile names: no part of the study, so that moving to another one trains
    # nothing again. The executor's settings have read it.
    if "site" in config:
        raise UserError(former_place("the profile, or --config"))
    SITE, ON_CLUSTER = current_site(), on_cluster()
    if ON_CLUSTER and workflow.is_main_process:
        if problem := contradiction(default_resources(), SITE):
            raise UserError(problem)
        check_partitions(SITE)
    STUDY = Study.from_config(config, config_layers())
    POINTS = STUDY.points()
except UserError as error:
    stop(error)

RESULTS = STUDY.config.results
DATA = STUDY.config.data
FIGURES = figures_module.NAMES
FIGURE_KINDS = ("svg", "png", "pdf", "csv")
FIGURE_FILES = [f"{RESULTS}/figures/{name}.{kind}" for name in FIGURES for kind in FIGURE_KINDS]


PLANNER = Planner(Path(RESULTS), SITE, on_cluster=ON_CLUSTER, in_job=not workflow.is_main_process)


wildcard_constraints:
    scene=NAME_PATTERN,
    strategy=NAME_PATTERN,
    # Wider than what is right, which `point_named` knows: a misspelt one is answered in words, not by "no rule".
    layout="[A-Za-z0-9]+",
    repeat="[A-Za-z0-9]+",


def record_path(point):
    return f"{point.folder(RESULTS)}/record.json"


@cache
def point_named(*names):
    try:
        return Point.parse(*names)
    except UserError as error:
        stop(error)


def point_of(wildcards):
    """Asked for many times per point, as its spec is: parsed once."""
    return point_named(wildcards.scene, wildcards.strategy, wildcards.layout, wildcards.repeat)


@cache
def spec_text(point):
    """The run of a point as one line of JSON."""
    try:
        return spec_json(STUDY.spec(point))
    except UserError as error:
        stop(error)


def spec_of(wildcards):
    """The run of a point as one line of JSON; a change of it, and of nothing else in the config, trains again."""
    return spec_text(point_of(wildcards))


def train_request(wildcards, attempt):
    """What the job of a point asks Slurm for; grows with the reasons of earlier failures."""
    return PLANNER.resources(point_of(wildcards), attempt, spec_of(wildcards))


if ON_CLUSTER:
    from dist3dgs.slurm import executor

    executor.register(TrainJobs(PLANNER, point_of, spec_text))


def newest_judge_file():
    """The newest file of the code that makes records: when one changes, runs are judged again, not trained again.

    One file says as much as all of them, which as inputs of every record were half of a big study's graph.
    """
    package = Path(figures_module.__file__).parent.parent
    parts = [*(package / "judge").glob("*.py"), *(package / "diagnose").rglob("*.py"), package / "record.py"]
    return str(max(parts, key=lambda path: (path.stat().st_mtime, str(path))))


def scene_of(wildcards):
    try:
        return STUDY.scene(wildcards.scene)
    except UserError as error:
        stop(error)


def photograph_files(scene):
    """Files whose change makes a scene's photographs new: one's own, or none for what is made or downloaded."""
    folders = [f for f in (scene.images, scene.colmap) if f is not None]
    for folder in folders:
        if not Path(folder).is_dir():
            stop(
                f"config/scenes.yaml: folder {folder!r} does not exist; expected photographs (images) or a COLMAP"
                " model (colmap) there. Relative paths start where snakemake runs."
            )
    return sorted(str(p) for f in folders for p in Path(f).rglob("*") if p.is_file())


@cache
def ingest_job(name):
    """What the ingest job of a scene asks for, and the limits of its structure from motion."""
    try:
        scene = STUDY.scene(name)
    except UserError as error:
        stop(error)
    request = ingest_resources(scene, SITE) if ON_CLUSTER else None
    return (request or {}) | sfm_limits(scene, request)


def ingest_request(wildcards, attempt):
    return ingest_job(wildcards.scene)


INGEST_KEYS = ("sfm_mem_mb", "sfm_timeout_s")
if ON_CLUSTER:
    INGEST_KEYS += ("nodes", "tasks", "cpus_per_task", "mem_mb", "runtime")


def ingest_threads(wildcards):
    """Threads of structure from motion: those of its job, or of the whole machine. Within a job Snakemake lowers them to
    the cores that the job was given."""
    if ON_CLUSTER:
        return ingest_job(wildcards.scene)["cpus_per_task"]
    return scene_of(wildcards).sfm.num_threads or workflow.cores


def train_threads(wildcards):
    """CPU threads a run takes on its node, which the local scheduler counts."""
    return max(1, STUDY.config.hardware.threads_per_rank) * point_of(wildcards).layout.workers_per_node


JUDGE_FILE = newest_judge_file()
RECORDS = [record_path(p) for p in POINTS]
if STUDY.config.only_existing:
    RECORDS = [path for path in RECORDS if Path(path).is_file()]


def all_records(wildcards):
    """A function, so that the rules that take every record hold no list of them until they are asked for."""
    return RECORDS


# Records outside the matrix (points asked for by name, imported logs) are shown too, but never made again.
OTHER_RECORDS = sorted({str(path) for path in Path(RESULTS).glob("*/*/*/r*/record.json")} - set(RECORDS))


def study_facts():
    """What the report says of the study that no record knows, as one line of JSON."""
    flags = []
    if workflow.overwrite_configfiles:
        flags += ["--configfile", *(os.path.relpath(f) for f in workflow.overwrite_configfiles)]
    if "results" in (workflow.config_settings.config or {}):
        flags += ["--config", f"results={RESULTS}"]
    exclusions = [e.model_dump() for e in STUDY.config.exclude]
    return json.dumps({"flags": flags, "exclusions": exclusions, "licences": STUDY.licences()})
