"""Identity of a checkpoint: the settings that must agree for it to be resumed. Without torch, for the launcher."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..config.matrix import spec_json
from ..config.models import RunSpec, TrainSettings
from ..errors import UserError
from ..scenes.pack import PackedScene

#: Raised when what a checkpoint holds changes: older ones are then not resumed.
FORMAT = 3
#: Settings that leave the mathematics alone. The layout does too, but for the images per step (`global_batch`).
_FREE = {
    "eval_every", "eval_views", "lpips", "checkpoint_every", "keep_checkpoints", "digest_every", "log_every",
    "tensorboard", "batch_per_rank", "global_batch",
}  # fmt: skip
_REMEDIES = {
    "global_batch": "other ranks need the same images per step: set train.global_batch to {there}",
    "scene digest": "it was trained on another packed scene",
}


def identity(spec: RunSpec, scene_digest: str) -> dict[str, str]:
    """Return a checkpoint's metadata about its run: settings that must agree, by dotted name, and the spec; JSON."""
    settings: dict[str, Any] = {
        "format": FORMAT, "scene": spec.scene, "scene digest": scene_digest, "seed": spec.seed,
        "global_batch": spec.global_batch,
    }  # fmt: skip
    settings |= _flat("train", spec.train.model_dump(mode="json", exclude=_FREE))
    if spec.block is not None:  # a piece of the model, which nothing but this block goes on from
        settings |= {"part": spec.part}
    return {"settings": json.dumps(settings, sort_keys=True), "spec": spec_json(spec)}


def short_digest(metadata: dict[str, str]) -> str:
    """Return a short digest of the settings of an `identity`."""
    return hashlib.sha256(metadata.get("settings", "").encode()).hexdigest()[:8]


def differences(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Say where two `identity`s differ, one line each; [] where one may be resumed as the other."""
    there, here = (_settings(metadata) for metadata in (theirs, ours))
    if there.get("format") != here["format"]:
        return ["another version of dist3dgs wrote it"]
    # A setting that is younger than the checkpoint has its default there: runs were as they are with that.
    defaults = _flat("train", TrainSettings().model_dump(mode="json"))
    lines = []
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name, defaults.get(name)), here.get(name)
        if a != b:
            remedy = _REMEDIES.get(name, "").format(there=a)
            lines.append(f"{name} is {a} there and {b} here" + (f" ({remedy})" if remedy else ""))
    return lines


def read_metadata(path: Path) -> dict[str, str]:
    """Read a checkpoint's metadata, its tensors unread. Raises ValueError, with the reason, if it is damaged."""
    try:
        with safe_open(path, framework="np") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError) as e:
        raise ValueError(f"it cannot be read ({type(e).__name__}: {e})") from None


def check(path: Path, spec: RunSpec, scene: Path) -> None:
    """Raise `UserError`, naming what differs, unless the run may start from this checkpoint."""
    try:
        different = differences(read_metadata(path), identity(spec, PackedScene.open(scene).digest))
    except ValueError as e:
        raise UserError(f"{path}: no checkpoint to resume from: {e}") from None
    if different:
        lines = "\n".join(f"  {line}" for line in different)
        raise UserError(
            f"{path}: {spec.point} cannot be resumed from it; only layout and strategy may differ:\n{lines}\n"
            "give --spec the settings that it was made with"
        )


def _settings(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(metadata["settings"])
    except (KeyError, ValueError):
        value = None
    return value if isinstance(value, dict) else {}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: v for k, part in value.items() for name, v in _flat(f"{prefix}.{k}", part).items()}
