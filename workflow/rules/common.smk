import gc
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from dist3dgs import figures as figures_module
from dist3dgs.status import follow
from dist3dgs.errors import UserError
from dist3dgs.config.naming import NAME_PATTERN, Point
from snakemake.exceptions import WorkflowError
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
    from dist3dgs.config.load import Layers
    from dist3dgs.files import sha256
    from dist3dgs.config.matrix import Study, exported_folder, spec_json
    from dist3dgs.runs.provenance import (
        JUDGING_CODE,
        code_digest,
        content_digest,
        imported_code_digest,
        scene_digest,
    )
    from dist3dgs.scenes.listing import not_a_folder, scene_files
    from dist3dgs.slurm.client import wait_for_slurm
    from dist3dgs.slurm.planner import Planner, TrainJobs
    from dist3dgs.slurm.resources import (
        MemoryCheck,
        contradiction,
        ingest_resources,
        rule_resources,
        sfm_limits,
    )
    from dist3dgs.slurm.site import current_site, former_place, on_cluster
    from dist3dgs.slurm.submission import check_partitions
    from dist3dgs.workloads.process import EXPORT_FILE, inputs_digest, setup_digest

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


def nearest_existing(folder):
    """Return the folder, or what there is of the path to it."""
    return next(f for f in (Path(folder), *Path(folder).absolute().parents) if f.exists())


for _name, _folder in (("results", RESULTS), ("data", DATA)):
    if not (_there := nearest_existing(_folder)).is_dir():
        stop(
            f"{STUDY.layers.where(_name)}: `{_name}: {_folder}`: {_there} is a file; give a folder: --config {_name}=FOLDER"
        )
WEIGHTS = f"{DATA}/weights/lpips-alex.safetensors"
try:
    FIGURES = figures_module.names()
except UserError as error:
    stop(error)
FIGURE_KINDS = ("svg", "png", "pdf", "csv")
FIGURE_FILES = [f"{RESULTS}/figures/{name}.{kind}" for name in FIGURES for kind in FIGURE_KINDS]


CHECK_MEMORY = MemoryCheck(STUDY, SITE)


def refusal_of(point):
    """Return the reason that memory cannot hold the point's job, or None."""
    try:
        return CHECK_MEMORY(point)
    except UserError as error:
        stop(error)


PLANNER = Planner(
    Path(RESULTS), SITE, on_cluster=ON_CLUSTER, in_job=not workflow.is_main_process, refusal=refusal_of
)


wildcard_constraints:
    scene=NAME_PATTERN,
    strategy=NAME_PATTERN,
    # Wider than what `point_named` accepts: a misspelt name gets its message instead of "no rule".
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
    w = wildcards
    return point_named(w.scene, w.strategy, w.layout, w.repeat, w.get("part", ""))


@cache
def spec_text(point):
    """The run of a point as one line of JSON."""
    try:
        return spec_json(STUDY.spec(point))
    except UserError as error:
        stop(error)


def spec_of(wildcards, output=None):
    """The run of a point as one line of JSON."""
    return spec_text(point_of(wildcards))


# Content decides what is made again, not file times: touching, copying or checking out files again makes nothing again.
# Rules have digests among their parameters, which Snakemake compares with those of the last time, and photographs and
# scenes are `ancient` inputs. An ancient input hides from Snakemake that what makes it is about to run, and it then
# passes over every job downstream, even one without outputs: where that is so the input is a plain one.


def decides(wildcards):
    """Digests of what decides the result of a point: settings of the run, what its scene is made from, the scene."""
    point = point_of(wildcards)
    try:
        run = STUDY.run_key(point)
    except UserError as error:
        stop(error)
    scene = scene_read(point)
    parts = [f"run {run}"]
    if STUDY.is_workload(point):
        parts += [f"inputs {workload_inputs(point.scene)}"]
    if scene is not None:
        parts += [
            f"made from {scene_settings(scene)}",
            f"scene {packed_digest(scene) or trained_scene(point)}",
        ]
    # One string for all repeats of a big study.
    return sys.intern(", ".join(parts))


def scene_read(point):
    """The scene that a point trains on; None for a workload that has none."""
    if not STUDY.is_workload(point):
        return point.scene
    try:
        return STUDY.spec(point).train.scene
    except UserError as error:
        stop(error)


@cache
def workload_inputs(name):
    """Digest of the content of a workload's input files."""
    try:
        return inputs_digest(STUDY.workload(name).inputs, Path(DATA, f"{name}.inputs.json"))[:16]
    except UserError as error:
        stop(error)


@cache
def workload_criteria(name):
    """What the output of a workload is read for, as one line of JSON."""
    return json.dumps(STUDY.workload(name).criteria.model_dump(mode="json"), sort_keys=True)


def criteria_of(wildcards):
    """Of a workload; "" for a scene."""
    return workload_criteria(wildcards.scene) if wildcards.scene in STUDY.workloads else ""


def parts_input(wildcards):
    """Outcomes of the jobs that a job of a point goes on from, where blocks train in jobs of their own."""
    if wildcards.scene in STUDY.workloads:
        return []
    point = point_of(wildcards)
    try:
        if STUDY.strategy(point.strategy).blocks is None:
            return []
        needed = STUDY.spec(point).needs
    except UserError as error:
        stop(error)
    return [f"{replace(point, part=part).folder(RESULTS)}/launch.json" for part in needed]


def scene_input(wildcards):
    """The packed scene of a point; nothing for a workload, which has its data in its settings."""
    return [] if wildcards.scene in STUDY.workloads else packed_input(wildcards)


def exported_input(wildcards):
    """The COLMAP folder of a workload's scene; counts as new only where it is about to be made again."""
    if wildcards.scene not in STUDY.workloads:
        return []
    scene = scene_read(point_of(wildcards))
    return [] if scene is None else exported(scene)


def setup_input(wildcards):
    """Marker files of a workload's set-up; `ancient` unless the set-up is about to run again."""
    if wildcards.scene not in STUDY.workloads or STUDY.workload(wildcards.scene).setup is None:
        return []
    return ready(wildcards.scene)


@cache
def ready(workload):
    path = f"{DATA}/setup/{workload}.json"
    setup = STUDY.workload(workload)
    try:
        current = json.loads(Path(path).read_text(encoding="utf-8"))["digest"] == setup_digest(setup)
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    forced = "setup_workload" in (workflow.dag_settings.forcerun or ())
    return ancient(path) if current and not forced else path


@cache
def workload_setup(name):
    """The settings that a workload's set-up needs, as one line of JSON: no other change runs it again."""
    try:
        workload = STUDY.workload(name)
        if workload.setup is None:
            raise UserError(f"the workload {name} has no `setup`")
    except UserError as error:
        stop(error)
    used = workload.setup_variables()
    settings = {"application": "-", "setup": workload.setup.model_dump(mode="json"), "variables": used}
    return json.dumps(settings, sort_keys=True)


@cache
def exported(scene):
    path = f"{exported_folder(DATA, scene)}/{EXPORT_FILE}"
    try:
        current = json.loads(Path(path).read_text(encoding="utf-8"))["digest"][:16] == packed_digest(scene)
    except (OSError, ValueError, KeyError, TypeError):
        current = False
    forced = "export_scene" in (workflow.dag_settings.forcerun or ())
    return ancient(path) if current and is_ingested(scene) and not forced else path


@cache
def scene_settings(scene):
    """Digest of what a scene is made from: its settings and the content of its photographs."""
    made_from = f"{scene_named(scene).ingest_json()} {photographs_digest(scene)}"
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def scene_settings_of(wildcards):
    return scene_settings(wildcards.scene)


@cache
def is_ingested(scene):
    """Return True if a scene has been ingested from its current sources, so that nothing will ingest it again."""
    forced = workflow.dag_settings.forcerun or ()
    try:
        facts = json.loads(Path(DATA, scene, "ingest.json").read_text(encoding="utf-8"))
        # A scene that was packed by hand is as it is; what an earlier version ingested is ingested again.
        made_from = facts.get("made_from", None if "versions" in facts else scene_settings(scene))
    except (OSError, ValueError, AttributeError):
        return False
    there = all(Path(DATA, scene, name).is_file() for name in ("source.json", "scene.safetensors"))
    return there and made_from == scene_settings(scene) and not {"photographs", "ingest"} & set(forced)


def unless_remade(name):
    """Input function: a file of a scene that counts as new only where it is about to be made again."""

    @cache
    def path(scene):
        path = f"{DATA}/{scene}/{name}"
        return ancient(path) if is_ingested(scene) else path

    return lambda wildcards: path(wildcards.scene)


packed_input = unless_remade("scene.safetensors")


@cache
def photographs_digest(scene):
    """Digest of the photographs of a scene; "" where the workflow makes or downloads them."""
    files = photograph_files(scene)
    return content_digest(files, Path(DATA, scene, "photographs.json")) if files else ""


def photographs_of(wildcards):
    return photographs_digest(wildcards.scene)


_packed = {}


def packed_digest(scene):
    """Digest of a packed scene; "" where there is none."""
    path = f"{DATA}/{scene}/scene.safetensors"
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return ""
    key = (path, stat.st_size, stat.st_mtime_ns)
    if key not in _packed:
        _packed[key] = (scene_digest(path) or "unreadable")[:16]
    return _packed[key]


def trained_scene(point):
    """Digest of the scene that a point was trained on, for where the packed scene is gone."""
    try:
        record = json.loads(Path(record_path(point)).read_text(encoding="utf-8"))
        return (record["provenance"]["scene_digest"] or "")[:16]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@cache
def code_of(*modules):
    """Digest of modules of the package and of what they import: an edit makes again what they make."""
    return imported_code_digest(*modules)


def code_of_figure(wildcards):
    """Digest of a figure's code, ours or another distribution's."""
    path = figures_module.code_file(wildcards.figure)
    return (
        code_of("figures.study") + files_digest(str(path)) if path else code_of(f"figures.{wildcards.figure}")
    )


@cache
def files_digest(*paths):
    """Digest of the content of small files that are no inputs, as they are never made again."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path} {sha256(path)} ".encode())
    return digest.hexdigest()[:16]


def train_request(wildcards, attempt):
    """What the job of a point asks Slurm for; grows with the reasons of earlier failures."""
    return PLANNER.resources(point_of(wildcards), attempt, spec_of(wildcards))


if ON_CLUSTER:
    from dist3dgs.slurm import executor

    executor.register(TrainJobs(PLANNER, point_of, spec_text))


def scene_named(name):
    try:
        return STUDY.scene(name)
    except UserError as error:
        stop(error)


def scene_of(wildcards):
    return scene_named(wildcards.scene)


def photograph_files(name):
    """Files whose change makes a scene's photographs new: one's own, or none for what is made or downloaded."""
    scene = scene_named(name)
    folders = {key: Path(f) for key in ("images", "colmap") if (f := getattr(scene, key)) is not None}
    for key, folder in folders.items():
        if not folder.is_dir():
            stop(
                f"{STUDY.layers.where('scene_library', name, key)}: {name}: `{key}:` {not_a_folder(folder)}."
            )
    try:
        return [str(path) for path in scene_files(folders.get("images"), folders.get("colmap"))]
    except UserError as error:
        stop(error)


def photographs_input(wildcards):
    """Photographs as input files. Braces are wildcards to Snakemake: files with them in their names are left out."""
    return [ancient(path) for path in photograph_files(wildcards.scene) if not set(path) & set("{}")]


@cache
def ingest_job(name):
    """What the ingest job of a scene asks for, and the limits of its structure from motion."""
    scene = scene_named(name)
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
    try:
        return scene_of(wildcards).sfm.num_threads or workflow.cores
    except WorkflowError:
        stop(
            "ingest takes all cores, and Snakemake was given no number: on this machine with --cores all or"
            " --profile profiles/local, on Slurm with `executor: dist3dgs-slurm` as in profiles/slurm"
        )


def train_threads(wildcards):
    """CPU threads a run takes on its node, which the local scheduler counts."""
    return max(1, STUDY.config.hardware.threads_per_rank) * point_of(wildcards).layout.workers_per_node


# Of the code that makes records: when it changes, runs are judged again, not trained again.
JUDGE = code_digest(JUDGING_CODE)[:16]
RECORDS = [record_path(p) for p in POINTS]


@cache
def study_records():
    """Records of the matrix; where none may be made (`only_existing`, profiles/cached), those that are there."""
    allowed = workflow.dag_settings.allowed_rules
    if STUDY.config.only_existing or (allowed and "record" not in allowed):
        return [path for path in RECORDS if Path(path).is_file()]
    return RECORDS


def all_records(wildcards):
    """A function, so that the rules that take every record hold no list of them until they are asked for."""
    return study_records()


# Records outside the matrix (points asked for by name, imported logs) are shown too, but never made again.
OTHER_RECORDS = sorted({str(path) for path in Path(RESULTS).glob("*/*/*/r*/record.json")} - set(RECORDS))


def other_records(wildcards):
    """Digest of the records outside the matrix."""
    return files_digest(*OTHER_RECORDS)


def study_facts():
    """What the report says of the study that no record knows, as one line of JSON."""
    flags = []
    if workflow.overwrite_configfiles:
        flags += ["--configfile", *(os.path.relpath(f) for f in workflow.overwrite_configfiles)]
    if "results" in (workflow.config_settings.config or {}):
        flags += ["--config", f"results={RESULTS}"]
    exclusions = [e.model_dump() for e in STUDY.config.exclude]
    return json.dumps({"flags": flags, "exclusions": exclusions, "licences": STUDY.licences()})


def status_command():
    """The command that prints the status of this study; None where `--config` has changed it."""
    if set(workflow.config_settings.config or {}) - {"site"}:
        return None
    overlays = [flag for f in workflow.overwrite_configfiles for flag in ("--configfile", os.path.relpath(f))]
    return shlex.join(["dist3dgs", "status", *overlays])


# What the terminal follows: see dist3dgs.status.follow.
FOLLOWED = follow.FollowedStudy(
    Path(RESULTS),
    POINTS,
    lambda point: STUDY.spec(point).num_steps,
    queue=PLANNER.queue if ON_CLUSTER else None,
    poll_s=SITE.poll_s,
    status_command=status_command(),
    files=(*FIGURE_FILES, *RECORDS),
)
if workflow.is_main_process:
    follow.announce(FOLLOWED)
else:
    os.environ.pop(follow.FOLLOWED, None)  # a job on a node prints to its own log, which Slurm keeps


def check_start():
    """Stop where the study cannot be written, or where jobs are to be submitted and no Slurm answers."""
    needed = list(workflow.dag.needrun_jobs())
    outputs = [Path(f) for j in needed for f in j.output]
    try:
        for name, folder in (("results", Path(RESULTS)), ("data", Path(DATA))):
            if not any(folder in f.parents for f in outputs):
                continue  # e.g. packed scenes of others, which are read alone
            try:
                with tempfile.TemporaryFile(dir=nearest_existing(folder)):
                    pass
            except OSError as error:
                raise UserError(
                    f"{STUDY.layers.where(name)}: `{name}: {folder}` cannot be written ({error.strerror}); give a "
                    f"folder that can: --config {name}=FOLDER"
                ) from None
        if ON_CLUSTER and workflow.is_main_process and any(not j.is_local for j in needed):
            wait_for_slurm()
    except UserError as error:
        stop(error)


def points_of_run():
    """The points that this run of Snakemake is asked for, and those of them that it trains or judges."""
    asked, needed = {}, []
    for job in workflow.dag.jobs:
        if job.rule.name in ("train", "record"):
            asked.setdefault(point_of(job.wildcards))
            if workflow.dag.needrun(job):
                needed.append(point_of(job.wildcards))
    return sorted(asked), needed


# With `fail_on: failed` a failed point is the exit status of `all`.
CHECKED = [f"{RESULTS}/tables/no_failed_points.txt"] if STUDY.config.fail_on == "failed" else []
