"""Checkpoints: the whole model and its optimizer state in one safetensors file, independent of the number of ranks.

`checkpoints/step-00002000.safetensors` holds the six parameters, Adam's moments (`adam/means.exp_avg`, ...), the
densification statistics (`statistics/grad_sum`, `statistics/count`), the names of the Gaussians (`lineage`), what the
strategy needs beside the whole model (`strategy/...`, of blocks that are not merged yet) and, as metadata, the step,
the run's spec, settings and scene (runs/resume.py). An exact resume needs nothing else: view order, noise and splits
are functions of seed, step and name.

Files that cannot be used are set aside when a run looks for its newest: damaged ones as `NAME.unusable`, those of
other settings as `NAME.` and eight digits that stand for these settings; they are restored when the settings are.
"""

import json
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from ..runs.resume import differences, read_metadata, short_digest

FOLDER = "checkpoints"
_HEADER, _SUMS, _STATE = "header", "crc32", "strategy/"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Values of a checkpoint other than tensors."""

    step: int = 0
    elapsed_s: float = 0.0
    """Training seconds so far, evaluation not counted."""
    adam_steps: dict[str, float] = field(default_factory=dict)
    """Updates of each parameter."""
    shards: list[int] = field(default_factory=list)
    """Rows per rank, in rank order, of the run that saved it."""
    evaluated: bool = True
    """False where the run was stopped in the step's evaluation: whoever resumes it evaluates first."""


@dataclass(frozen=True)
class Checkpoint:
    header: Header
    rows: dict[str, Tensor]
    """Whole-model tensors by name, as in the module's docstring."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Tensors by name that the strategy needs beside them (`Parallel.state`); stored as `strategy/NAME`."""


def save(folder: Path, checkpoint: Checkpoint, identity: dict[str, str], keep: int) -> Path:
    """Write a checkpoint atomically, then remove older ones but for the newest `keep` - 1.

    identity: as `resume.identity` gives it.
    """
    header = checkpoint.header
    path = path_of(folder, header.step)
    tensors = checkpoint.rows | {f"{_STATE}{k}": t for k, t in checkpoint.state.items()}
    rows = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
    sums = {k: _checksum(t) for k, t in rows.items()}
    metadata = identity | {_HEADER: json.dumps(vars(header)), _SUMS: json.dumps(sums)}
    with replacing(path) as temporary:
        save_file(rows, temporary, metadata)
    # Never the file just written, even if files with higher step numbers exist.
    for old in [p for p in candidates(folder) if p.name < path.name][keep - 1 :]:
        old.unlink(missing_ok=True)
    return path


def path_of(folder: Path, step: int) -> Path:
    """Return the file of the checkpoint that a run in `folder` leaves after 1-based `step`."""
    return Path(folder, FOLDER, f"step-{step:08d}.safetensors")


class Saver:
    """Writes checkpoints in a thread, one at a time, while the training goes on."""

    def __init__(self, folder: Path, identity: dict[str, str], keep: int) -> None:
        """Take the arguments of `save`."""
        self.folder, self.identity, self.keep = folder, identity, keep
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def start(self, checkpoint: Checkpoint, written: Callable[[Path], None]) -> None:
        """Copy the rows to memory of the host and begin to write them; a save under way is waited for.

        written: called with the path, in the thread, when the file is complete.
        """
        self.wait()
        rows, state = _snapshot(checkpoint.rows), _snapshot(checkpoint.state)
        content = Checkpoint(checkpoint.header, rows, state)

        def write() -> None:
            written(save(self.folder, content, self.identity, self.keep))

        self._writing = self._pool.submit(write)

    @property
    def failed(self) -> bool:
        """True if the last save failed; `wait` raises its error."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Wait for the save under way, if any. Raises its error: `OSError` on a full disk."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()


def _snapshot(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the host, those on a GPU to pinned memory: all under way at once, several times faster."""
    copies = {}
    for name, tensor in rows.items():
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name].copy_(tensor.detach(), non_blocking=True)
    for device in {tensor.device for tensor in rows.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def candidates(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(Path(folder, FOLDER).glob("step-*.safetensors"), reverse=True)


def newest(
    folder: Path, identity: dict[str, str], keep: int, say: Callable[[str], None]
) -> Checkpoint | None:
    """Load the newest good checkpoint of these settings, None if there is none; set aside those that cannot be used.

    Of damaged files and of those of other settings the `keep` last written stay. `say` is called with every change.
    """
    for path in candidates(folder):
        try:
            theirs = read_metadata(path)
        except ValueError as e:
            _set_aside(path, "unusable", str(e), say)
            continue
        if different := differences(theirs, identity):
            _set_aside(path, short_digest(theirs), "; ".join(different), say)
    mine = short_digest(identity)
    for path in sorted(Path(folder, FOLDER).glob(f"step-*.safetensors.{mine}")):
        say(f"checkpoint {path.name} is of these settings: it is used again")
        path.replace(path.with_suffix(""))
    found = None
    for path in candidates(folder):
        try:
            found = load(path, identity)
            break
        except ValueError as e:
            _set_aside(path, "unusable", str(e), say)
    aside = sorted(
        Path(folder, FOLDER).glob("step-*.safetensors.*"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    for damaged in (True, False):
        for path in [p for p in aside if (p.suffix == ".unusable") == damaged][keep:]:
            say(f"checkpoint {path.name} is removed: {keep} later ones are set aside (keep_checkpoints)")
            path.unlink(missing_ok=True)
    return found


def load(path: Path, identity: dict[str, str]) -> Checkpoint:
    """Read one checkpoint. Raises ValueError, with the reason, if it is damaged or belongs to other settings."""
    if different := differences(read_metadata(path), identity):
        raise ValueError(f"it was made with other settings: {'; '.join(different)}")
    return read(path)


def read(path: Path) -> Checkpoint:
    """Read one checkpoint of any settings. Raises ValueError, with the reason, if it is damaged."""
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            rows = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no mapping)
        if {k: _checksum(t) for k, t in rows.items()} != json.loads(metadata[_SUMS]):
            raise ValueError("its checksums do not match: it was damaged on disk")
        state = {k.removeprefix(_STATE): rows.pop(k) for k in list(rows) if k.startswith(_STATE)}
        return Checkpoint(Header(**json.loads(metadata[_HEADER])), rows, state)
    except (SafetensorError, OSError, KeyError, TypeError) as e:
        raise ValueError(f"it cannot be read ({type(e).__name__}: {e})") from None


def _set_aside(path: Path, suffix: str, reason: str, say: Callable[[str], None]) -> None:
    kept = path.with_name(f"{path.name}.{suffix}")
    say(f"checkpoint {path.name} is not used: {reason}; it is now {kept.name}")
    path.replace(kept)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.numpy().reshape(-1).view("u1").data)
