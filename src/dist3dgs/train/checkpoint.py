"""Checkpoints: the whole model and its optimiser in one safetensors file, independent of the number of ranks.

`checkpoints/step-00002000.safetensors` holds the six parameters, Adam's moments (`adam/means.exp_avg`, ...), the
densification statistics (`statistics/grad_sum`, `statistics/count`), the names of the Gaussians (`lineage`) and, as
metadata, the step and the digest of the settings and of the scene it belongs to. Nothing else is needed for an exact
resume: view order, noise and splits are functions of seed, step and name.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from ..spec import RunSpec

FOLDER = "checkpoints"
#: Raised when what a checkpoint holds changes: older ones are then not resumed.
FORMAT = 2
_SETTINGS, _HEADER, _SUMS = "settings", "header", "crc32"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint knows beside its tensors."""

    step: int = 0
    elapsed_s: float = 0.0
    """Training seconds so far, evaluation not counted."""
    adam_steps: dict[str, float] = field(default_factory=dict)
    """Updates of each parameter."""
    shards: list[int] = field(default_factory=list)
    """Rows per rank, in rank order, of the run that saved it."""


@dataclass(frozen=True)
class Checkpoint:
    header: Header
    rows: dict[str, Tensor]
    """Whole-model tensors by name, as in the module's docstring."""


def settings_digest(spec: RunSpec, scene_digest: str) -> str:
    """What a checkpoint must agree with to be resumed: anything that changes the mathematics, but not the layout."""
    train = spec.train.model_dump(
        exclude={"eval_every", "eval_views", "lpips", "checkpoint_every", "keep_checkpoints", "digest_every"}
        | {"log_every", "tensorboard", "batch_per_rank", "global_batch"}
    )
    value = [FORMAT, spec.scene, spec.seed, spec.global_batch, train, scene_digest]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save(folder: Path, checkpoint: Checkpoint, digest: str, keep: int) -> Path:
    """Write a checkpoint whole or not at all, then remove all but the newest `keep`."""
    header = checkpoint.header
    path = Path(folder, FOLDER, f"step-{header.step:08d}.safetensors")
    rows = {k: t.detach().cpu().contiguous() for k, t in checkpoint.rows.items()}
    sums = {k: _checksum(t) for k, t in rows.items()}
    metadata = {_SETTINGS: digest, _HEADER: json.dumps(vars(header)), _SUMS: json.dumps(sums)}
    with replacing(path) as temporary:
        save_file(rows, temporary, metadata)
    for old in candidates(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def candidates(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(Path(folder, FOLDER).glob("step-*.safetensors"), reverse=True)


def load(path: Path, digest: str) -> Checkpoint:
    """Read one checkpoint. Raises ValueError, with the reason, if it is damaged or belongs to other settings."""
    try:
        with safe_open(path, framework="pt") as f:
            metadata: dict[str, Any] = f.metadata() or {}
            if metadata[_SETTINGS] != digest:
                raise ValueError(
                    "it was made with other settings, another scene or another version of dist3dgs"
                )
            rows = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no mapping)
        if {k: _checksum(t) for k, t in rows.items()} != json.loads(metadata[_SUMS]):
            raise ValueError("its checksums do not match: it was damaged on disk")
        return Checkpoint(Header(**json.loads(metadata[_HEADER])), rows)
    except (SafetensorError, OSError, KeyError, TypeError) as e:
        raise ValueError(f"it cannot be read ({type(e).__name__}: {e})") from None


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.numpy().reshape(-1).view("u1").data)
