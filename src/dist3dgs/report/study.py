"""Facts of the study that no record knows: how it was asked for, what it leaves out, licences."""

from collections.abc import Sequence

from pydantic import Field

from ..config.models import Exclusion, Settings
from ..runs.record import RunRecord
from .markup import Html, tag


class StudyFacts(Settings):
    """flags: of the Snakemake command that made the page, before the targets. licences: by scene.
    code_digest: of the present training code; runs of another are marked."""

    flags: tuple[str, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    licences: dict[str, str] = Field({})
    code_digest: str | None = None


SPLATTING = "3D Gaussian Splatting"


def program(record: RunRecord) -> str:
    """Name what a record's program does; for an import of another kind, name the program."""
    settings, run = record.run.settings, record.run
    splats = settings.get("trainer") == "gsplat" or str(settings.get("method") or "").startswith("splat")
    if is_workload(record) and record.metrics.num_gaussians is None:
        return run.scene
    if record.provenance.source == "dist3dgs" or splats or record.metrics.num_gaussians is not None:
        return SPLATTING
    trainer = settings.get("trainer")
    return run.strategy if run.strategy != "imported" else str(trainer or "an imported program")


def is_workload(record: RunRecord) -> bool:
    return isinstance(record.run.settings.get("criteria"), dict)


def subject(records: Sequence[RunRecord]) -> str:
    """Say what was studied: each program, and the scenes it ran on where it is not named like them."""
    scenes: dict[str, dict[str, None]] = {}
    for record in records:
        name = record.run.scene if is_workload(record) else program(record)
        scenes.setdefault(name, {})[record.run.scene] = None
    alike: dict[str, list[str]] = {}
    for name, on in scenes.items():
        alike.setdefault("" if list(on) == [name] else f" on {', '.join(on)}", []).append(name)
    parts = [f"{', '.join(names)}{on}" for on, names in alike.items()]
    return "; ".join(parts) or f"{SPLATTING} on no runs yet"


def programs(records: Sequence[RunRecord]) -> list[str]:
    """Name each program once, in the order of the records; ours where there is none."""
    return list(dict.fromkeys(map(program, records))) or [SPLATTING]


def left_out(facts: StudyFacts) -> Html | None:
    """Return points that the config excludes, and why."""
    if not facts.exclusions:
        return None
    return tag(
        "div",
        tag("p", "Left out by the config:"),
        tag("ul", *(tag("li", f"{_points(e)}: {e.reason}") for e in facts.exclusions)),
    )


def _points(exclusion: Exclusion) -> str:
    named = [name for name in (exclusion.scene, exclusion.strategy, exclusion.layout) if name is not None]
    return " ".join(named) or "everything"
