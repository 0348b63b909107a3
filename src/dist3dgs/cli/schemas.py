"""JSON schemas, generated from the models; a test holds the committed ones equal to these."""

from pathlib import Path
from typing import Any

from ..config.models import Config, RunSpec, Scene, Strategy
from ..config.workloads import Workload
from ..files import write_json
from ..runs.record import RunRecord

MODELS: dict[str, Any] = {
    "record": RunRecord,
    "config": Config,
    "scene": Scene,
    "strategy": Strategy,
    "run_spec": RunSpec,
    "workload": Workload,
}


def write_schemas(folder: Path) -> list[Path]:
    """Write `{name}.schema.json` for every model; the paths."""
    paths = [Path(folder, f"{name}.schema.json") for name in MODELS]
    for path, model in zip(paths, MODELS.values(), strict=True):
        write_json(path, model.model_json_schema())
    return paths
