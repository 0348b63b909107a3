"""The table of trainers: ours and those of others on the same scene and layout, quality beside time.

`trainers.*`: one row per point that succeeded on a scene that a workload of others was trained on too. What a row
differs in from ours is named: what its entry says (`differences`), and what the runs' settings say.
"""

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from ..config.matrix import AnySpec, read_spec
from ..config.workloads import WorkloadSpec
from ..errors import UserError
from ..runs.record import RunRecord
from .points import hardware

Row = dict[str, Any]

_MEDIANS = ("psnr", "ssim", "lpips", "num_gaussians", "images_per_s", "train_s", "total_s")
TRAINERS_COLUMNS = (
    *("scene", "layout", "trainer", "n_ok", "images", "batch", *_MEDIANS),
    *("hardware", "differs", "differences"),
)
_CAPTION = (
    "Trainers on the same scene and layout, medians over repeats: the same held-out views, from one packed scene. "
    "Images and batch are what a run was asked for; training time is what each program says of itself, total time is "
    "ours from launch to end."
)


def trainers_rows(points: Sequence[Row], records: Sequence[RunRecord]) -> list[Row]:
    """Return the rows by scene, layout and trainer, ours first; none where no program of others has a scene.

    points: rows of points.csv.
    """
    scenes = {scene for record in records if (scene := _scene(record)) and "criteria" in record.run.settings}
    first: dict[tuple[str, str, str], RunRecord] = {}
    for record in records:
        if record.status == "ok" and _scene(record) in scenes:
            first.setdefault((record.run.scene, record.run.strategy, record.run.layout), record)
    rows: list[Row] = []
    for point in points:
        if one := first.get((point["scene"], point["strategy"], point["layout"])):
            try:
                spec = read_spec(one.run.settings, "settings of a record")
            except UserError:
                continue  # of another version, whose settings are not known
            rows.append(_row(str(_scene(one)), spec, point, one))
    rows.sort(key=lambda r: (r["scene"], r["ranks"], r["layout"], not r["ours"], r["trainer"]))
    for row in rows:
        row["differences"] = "; ".join([*row["stated"], *_found(row, rows)]) or None
    marks: dict[str, str] = {}
    for row in rows:
        if row["differences"]:
            row["differs"] = marks.setdefault(row["differences"], _mark(len(marks)))
    return rows


def caption(rows: Sequence[Row]) -> str:
    """Return the table's caption with each mark's differences."""
    notes = {row["differs"]: row["differences"] for row in rows if row.get("differs")}
    return " ".join([_CAPTION, *(f"({mark}) {text}." for mark, text in notes.items())])


def _scene(record: RunRecord) -> str | None:
    """Return the scene that a run trained on; None for an imported run and a workload without one."""
    settings = record.run.settings
    if record.provenance.source != "dist3dgs" or not isinstance(train := settings.get("train"), dict):
        return None
    scene = train.get("scene") if "criteria" in settings else record.run.scene
    return scene if isinstance(scene, str) else None


def _row(scene: str, spec: AnySpec, point: Row, record: RunRecord) -> Row:
    foreign = isinstance(spec, WorkloadSpec)
    name = (
        f"{spec.scene} {spec.strategy}".removesuffix(" default") if foreign else f"dist3dgs {spec.strategy}"
    )
    return {name: point.get(name) for name in ("layout", "ranks", "n_ok", *_MEDIANS)} | {
        "scene": scene,
        "trainer": name,
        "ours": not foreign,
        "images": spec.num_steps * spec.global_batch,
        "batch": spec.global_batch,
        "hardware": hardware(record),
        "digest": record.provenance.scene_digest,
        "stated": list(spec.criteria.differences) if isinstance(spec, WorkloadSpec) else [],
        "differs": None,
    }


def _found(row: Row, rows: Sequence[Row]) -> list[str]:
    """Name what a trainer of others had otherwise than ours of the same layout, or of any where there is none."""
    ours = [r for r in rows if r["ours"] and r["scene"] == row["scene"]]
    ours = [r for r in ours if r["layout"] == row["layout"]] or ours
    if row["ours"]:
        return []
    if not ours:
        return ["no run of ours on this scene"]
    other = ours[0]
    said = [
        f"{what} {row[name]}, ours {other[name]}"
        for name, what in (("images", "images seen:"), ("batch", "images per step:"), ("layout", "layout:"))
        if row[name] != other[name]
    ]
    if row["hardware"] != other["hardware"]:
        said.append(f"on {row['hardware']}, ours on {other['hardware']}")
    if row["digest"] != other["digest"]:
        said.append("another packed scene than ours")
    return said


def _mark(number: int) -> str:
    return ascii_lowercase[number] if number < len(ascii_lowercase) else str(number)
