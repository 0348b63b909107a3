"""Read what a job of a point goes on from when blocks train in jobs of their own: last checkpoints of others."""

from dataclasses import replace
from pathlib import Path

import torch

from ..config.models import RunSpec
from ..config.naming import COARSE, PARTS, how_to_make
from ..errors import UserError
from ..runs import resume
from ..runs.launch_summary import FILE
from .checkpoint import Checkpoint, load, path_of


def read(spec: RunSpec, scene_digest: str, folder: Path) -> Checkpoint:
    """Read what the job begins with: the coarse model with its cut, or all blocks joined.

    Args:
        spec: of a job that needs others (`RunSpec.needs`).
        folder: of the point.

    Raises:
        UserError: a job before it has left no checkpoint of its last step, or one of other settings.
    """
    parts = [COARSE] if spec.part else spec.parts[1:]
    found = [_last(spec.model_copy(update={"part": part}), scene_digest, folder) for part in parts]
    return found[0] if spec.part else joined(found, spec.num_steps)


def joined(blocks: list[Checkpoint], num_steps: int) -> Checkpoint:
    """Join the last checkpoints of all blocks, in their order: of each what lies in its own cell.

    num_steps: of the run. Without steps left, the merged model is still to be evaluated.
    """
    headers = [block.header for block in blocks]
    adam_steps = {
        name: max(h.adam_steps.get(name, 0.0) for h in headers) for h in headers for name in h.adam_steps
    }
    header = replace(
        headers[0],
        elapsed_s=max(h.elapsed_s for h in headers),
        adam_steps=adam_steps,
        shards=[len(block.rows["means"]) for block in blocks],
        evaluated=headers[0].step < num_steps,
    )
    rows = {name: torch.cat([block.rows[name] for block in blocks]) for name in blocks[0].rows}
    return Checkpoint(header, rows, {name: blocks[0].state[name] for name in ("cells", "enlarged")})


def _last(spec: RunSpec, scene_digest: str, folder: Path) -> Checkpoint:
    place = Path(folder, PARTS, spec.part)
    path = path_of(place, spec.last_step)
    try:
        return load(path, resume.identity(spec, scene_digest))
    except ValueError as e:
        raise UserError(
            f"{path}: {spec.point} has left no checkpoint of its last step to go on from: {e}; delete {place / FILE}"
            f"{how_to_make(place / FILE, ' and train it again: ')}"
        ) from None
