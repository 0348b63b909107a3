"""Progress of a run for people: one line per interval in the log, TensorBoard curves."""

import time
from pathlib import Path
from typing import Any

from ..config.models import RunSpec


class ProgressReporter:
    """Progress on rank 0; silent on the others. The launcher draws the live bar from the event file."""

    def __init__(self, num_steps: int, out: Path, *, enabled: bool, spec: RunSpec) -> None:
        self.num_steps, self.enabled = num_steps, enabled
        self._writer: Any = None
        if enabled and spec.train.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir=str(out / "tensorboard"))

    def stepped(self, step: int, loss: float, num_gaussians: int, step_s: float) -> None:
        if not self.enabled:
            return
        left_s = (self.num_steps - step) * step_s
        print(
            f"{time.strftime('%H:%M:%S')} step {step}/{self.num_steps} loss {loss:.4f} "
            f"gaussians {num_gaussians} {step_s * 1e3:.1f} ms/step, {_duration(left_s)} left",
            flush=True,
        )
        self._scalars(
            step, {"train/loss": loss, "train/num_gaussians": num_gaussians, "train/step_s": step_s}
        )

    def evaluated(self, step: int, quality: dict[str, Any]) -> None:
        if not self.enabled:
            return
        known = {k: quality[k] for k in ("psnr", "ssim", "lpips") if quality[k] is not None}
        print(
            f"{time.strftime('%H:%M:%S')} step {step} held-out",
            *(f"{k} {v:.4f}" for k, v in known.items()),
            flush=True,
        )
        self._scalars(step, {f"eval/{k}": v for k, v in known.items()})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}"
