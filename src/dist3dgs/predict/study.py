"""Predict the points of a study: its settings as workloads, its records as calibration."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..analysis.points import conditions
from ..config.matrix import Study
from ..config.naming import Layout, Point
from ..errors import UserError
from ..runs.record import RunRecord, load_record
from .calibration import calibrate
from .machine import Machine, load_machine, machine_names
from .model import Forecast, Predictor, fitted, predictor
from .workload import Workload, workload_of

#: Photographs of a scene whose size is not known before it is ingested: Mip-NeRF 360 as it is trained.
USUAL_SIZE_PX = (1297, 840)


@dataclass(frozen=True, kw_only=True)
class SceneFacts:
    """A scene as far as predictions depend on it."""

    name: str
    size_px: tuple[int, int]
    size_known: bool
    held_out: int | None
    pack_bytes: int | None
    """Size of the packed scene, which every node reads; None before ingestion."""
    gaussians: int | None = None
    """Final number in the records, else in published runs of the scene; None: only the settings' bound is known."""
    density: float = 1.0
    """Work per pixel over the mean of Mip-NeRF 360, where published runs tell."""


def scene_facts(study: Study, name: str) -> SceneFacts:
    """Read a scene's image size and held-out views from its ingest.json, else from its settings.

    What published runs tell of a published scene is used until there are records.
    """
    scene, folder = study.scene(name), Path(study.config.data, name)
    size: tuple[int, int] | None = None
    held_out = pack_bytes = None
    try:
        facts: dict[str, Any] = json.loads((folder / "ingest.json").read_text(encoding="utf-8"))
        most = max(facts["resolutions"], key=lambda r: r["num_images"])
        size, held_out = (int(most["width_px"]), int(most["height_px"])), int(facts["num_test"])
        pack_bytes = (folder / "scene.safetensors").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if size is None and scene.builtin is not None:
        size, held_out = (scene.builtin.width_px, scene.builtin.height_px), -(-scene.builtin.num_images // 8)
    published: dict[str, Any] = {}
    if scene.download is not None and scene.download.startswith("mipnerf360/"):
        published = fitted()["scenes"].get(scene.download.removeprefix("mipnerf360/"), {})
    width, height = published.get("size_px", USUAL_SIZE_PX)
    if size is None and scene.max_width_px and scene.max_width_px < width:
        width, height = scene.max_width_px, round(height * scene.max_width_px / width)
    recorded = [r.metrics.num_gaussians for r in records_of(study, name) if r.metrics.num_gaussians]
    return SceneFacts(
        name=name,
        size_px=size or (width, height),
        size_known=size is not None,
        held_out=held_out,
        pack_bytes=pack_bytes,
        gaussians=max(recorded, default=published.get("gaussians")),
        density=published.get("density", 1.0),
    )


def records_of(study: Study, scene: str) -> list[RunRecord]:
    """Read the successful runs of one scene; records that cannot be read are left out."""
    found = []
    for path in sorted(Path(study.config.results, scene).glob("*/*/r*/record.json")):
        try:
            found.append(load_record(path))
        except UserError:
            continue
    return [r for r in found if r.status == "ok" and r.provenance.source == "dist3dgs"]


def of_type(gpu_type: str, names: Iterable[str]) -> list[str]:
    """Choose machine files (`a100-40-pcie`) by a GPU type as sites name them (`a100`, `a100-sxm4-40gb`, `A100_40`)."""
    words = [word.removesuffix("gb") for word in re.split(r"[^a-z0-9]+", gpu_type.lower())]
    found = [name for name in names if name.split("-")[0] in words]
    return [name for name in found if name.split("-")[1] in words] or found


def machine_of(
    study: Study, config: Path, name: str | None, network: str | None = None, gpu_type: str | None = None
) -> Machine:
    """Find the machine to predict for: as named, else by the config's device, the GPU type, or the records' devices.

    Raises:
        UserError: none of them says which it is.
    """
    if name is not None:
        return load_machine(name, config, network)
    if study.config.hardware.device == "cpu":
        return load_machine("cpu", config, network)
    devices = {
        d.lower() for s in study.config.scenes for r in records_of(study, s) for d in r.environment.devices
    }
    known = {n: load_machine(n, config, network) for n in machine_names(config)}
    of_records = [n for n, m in known.items() if m.accelerator.lower() in devices]
    if gpu_type:
        of_records = of_type(gpu_type, known) or of_records
    if len(of_records) == 1:
        return known[of_records[0]]
    raise UserError(
        "which machine to predict for is not known"
        + (f" ({' or '.join(of_records)})" if of_records else "")
        + f": give --machine NAME, one of {', '.join(known)}, or the path of a file like those in {config}/machines"
    )


def predictor_of(
    study: Study, machine: Machine, scene: SceneFacts, records: Sequence[RunRecord] | None = None
) -> Predictor:
    """Make the predictor of a scene: from its records on this machine, else from published points."""
    fallback = predictor(machine)
    groups: dict[Any, list[RunRecord]] = {}
    for record in records_of(study, scene.name) if records is None else records:
        if {d.lower() for d in record.environment.devices} == {machine.accelerator.lower()}:
            hardware, code, data, _ = conditions(record)
            groups.setdefault((hardware, code, data), []).append(record)
    if not groups:
        return fallback
    newest = max(groups.values(), key=lambda g: (len(g), max(r.provenance.finished_at or 0.0 for r in g)))
    return calibrate(newest, machine, scene.size_px, fallback) or fallback


def workload_at(
    study: Study,
    scene: SceneFacts,
    strategy: str,
    layout: Layout,
    changes: Mapping[str, Any] | None = None,
    batch_per_rank: int | None = None,
) -> Workload:
    """Make the workload of a point; `changes` replaces fields of it, `batch_per_rank` the batch (of blocks: per block).

    Raises:
        UserError: the config's batch is not one that these ranks can share.
    """
    spec = study.train_spec(Point(scene.name, strategy, layout))
    made = workload_of(spec.train, spec.parallel, spec.started, scene.size_px)
    if scene.held_out and spec.train.eval_views is None:
        made = replace(made, held_out=scene.held_out)
    made = replace(made, density=scene.density)
    if scene.gaussians and spec.train.densify.kind == "default":  # mcmc goes to its bound
        made = replace(made, gaussians=min(made.gaussians, float(scene.gaussians)))
    if batch_per_rank:
        made = replace(made, batch=batch_per_rank * made.cells(layout))
    return replace(made, **(changes or {}))


def forecasts(
    study: Study,
    made: Predictor,
    scene: SceneFacts,
    strategies: Sequence[str],
    layouts: Sequence[Layout],
    changes: Mapping[str, Any] | None = None,
    batch_per_rank: int | None = None,
) -> tuple[list[tuple[str, Forecast]], list[str]]:
    """Predict each strategy on each layout; return (strategy, forecast) pairs and why some have none."""
    found, problems = [], []
    for name in strategies:
        for layout in layouts:
            try:
                workload = workload_at(study, scene, name, layout, changes, batch_per_rank)
                found.append((name, made.forecast(workload, layout)))
            except UserError as e:
                problems.append(f"{name} on {layout}: {e}")
    return found, problems
