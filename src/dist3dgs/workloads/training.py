"""Shared parts of the shipped applications: ranks by torchrun, data-parallel training, one line per epoch.

They know nothing of this package beyond this file: they are run as programs of others are.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler


@dataclass
class Ranks:
    """This process among all."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls) -> "Ranks":
        """Join torchrun's rendezvous; a single rank without torchrun."""
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world_size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank, world_size, device)

    def mean(self, *values: float) -> list[float]:
        """Average numbers over the ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return (total / self.world_size).tolist()

    def say(self, text: str) -> None:
        """Print on rank 0 alone."""
        if self.rank == 0:
            print(text, flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all applications have."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument(
        "--data", default="", help="folder of real data; without it data of the same shape are generated"
    )
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--batch-per-rank", type=int, default=32)
    p.add_argument("--samples", type=int, default=1024, help="generated training samples")
    p.add_argument("--workers", type=int, default=0, help="processes that load data, of each rank")
    p.add_argument("--seed", type=int, default=0)
    return p


class Communication:
    """Seconds of gradient all-reduces on this rank, on a processor; a GPU's run behind the host's clock."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._spans: list[tuple[float, float]] = []
        self._launched = self._exposed_s = 0.0
        model.register_comm_hook(None, self._all_reduce)

    def _all_reduce(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """Average a bucket over the ranks, as DDP does without a hook."""
        began = self._launched = time.perf_counter()
        work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)

        def done(future: torch.futures.Future[list[Tensor]]) -> Tensor:
            self._spans.append((began, time.perf_counter()))
            return future.value()[0]

        averaged: torch.futures.Future[Tensor] = work.get_future().then(done)
        return averaged

    def after_backward(self) -> None:
        """Count the time since the last bucket was ready, when there was nothing left to compute."""
        self._exposed_s += time.perf_counter() - self._launched

    def take(self) -> tuple[float, float]:
        """Return the seconds in which any was under way, and those not hidden by computing, since the last call."""
        total, end = 0.0, 0.0
        for start, stop in sorted(self._spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        exposed, self._exposed_s = self._exposed_s, 0.0
        self._spans.clear()
        return total, exposed


#: Scores and labels of a batch to the loss, a scalar, and the number of samples that are right.
Judge = Callable[[Tensor, Tensor], tuple[Tensor, int]]


def classification(scores: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Cross-entropy of scores (N, classes) with labels (N,) int64, and how many have the highest score."""
    return nn.functional.cross_entropy(scores, labels), int((scores.argmax(1) == labels).sum())


def train(
    ranks: Ranks,
    model: nn.Module,
    training: Dataset[Any],
    validation: Dataset[Any],
    args: argparse.Namespace,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    unit: str,
    judge: Judge = classification,
) -> None:
    """Train and validate for `args.epochs` epochs; rank 0 prints a line for each.

    Args:
        training, validation: of (inputs, labels); inputs are a tensor or a list of tensors.
        unit: of the throughput, e.g. img/s.
    """
    device = ranks.device
    model = model.to(device)
    if ranks.world_size > 1:
        model = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    communication = None
    if isinstance(model, DistributedDataParallel) and device.type == "cpu":
        communication = Communication(model)
    size = sum(p.numel() for p in model.parameters())
    ranks.say(f"{size} parameters on {ranks.world_size} ranks, {device.type}")
    sampler: DistributedSampler[Any] = DistributedSampler(
        training, ranks.world_size, ranks.rank, seed=args.seed, drop_last=True
    )
    common = {
        "batch_size": args.batch_per_rank,
        "num_workers": args.workers,
        "pin_memory": device.type == "cuda",
    }
    batches = DataLoader(training, sampler=sampler, drop_last=True, **common)
    held_out = DataLoader(
        validation,
        sampler=DistributedSampler(validation, ranks.world_size, ranks.rank, shuffle=False),
        **common,
    )
    optimise = optimizer(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimise, step_size=max(1, args.epochs // 3), gamma=0.5)
    scaler = torch.amp.GradScaler(enabled=device.type == "cuda")
    per_epoch = len(batches) * args.batch_per_rank * ranks.world_size
    begun = time.perf_counter()
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        lr, started = optimise.param_groups[0]["lr"], time.perf_counter()
        loss, accuracy = _pass(model, batches, device, judge, optimise, scaler, communication)
        if device.type == "cuda":
            torch.cuda.synchronize()
        # The slowest rank's: the others wait for it in their next all-reduce.
        seconds = time.perf_counter() - started
        model.eval()
        with torch.no_grad():
            val_loss, val_accuracy = _pass(model, held_out, device, judge)
        schedule.step()
        loss, accuracy, val_loss, val_accuracy, seconds = ranks.mean(
            loss, accuracy, val_loss, val_accuracy, seconds
        )
        shares = f" | Compute: {seconds:.3f} s" if ranks.world_size == 1 else ""
        if communication is not None:
            comm_s, exposed_s = ranks.mean(*communication.take())
            shares = f" | Compute: {seconds - exposed_s:.3f} s"
            shares += f" | Communication: {comm_s:.3f} s, {exposed_s:.3f} s exposed"
        ranks.say(
            f"Epoch [{epoch + 1}/{args.epochs}] LR: {lr:.6f} | Loss (train, val): {loss:.3f}, {val_loss:.3f}"
            f" | Accuracy (train, val): {100 * accuracy:.2f}%, {100 * val_accuracy:.2f}%"
            f" | Throughput: {per_epoch / seconds:.1f} {unit} | Epoch time: {seconds:.3f} s{shares}"
        )
    ranks.say(
        f"Total training time: {time.perf_counter() - begun:.2f} s, {per_epoch * args.epochs} {unit.split('/')[0]}"
    )
    if ranks.world_size > 1:
        dist.destroy_process_group()


def _pass(
    model: nn.Module,
    batches: DataLoader[Any],
    device: torch.device,
    judge: Judge,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    communication: Communication | None = None,
) -> tuple[float, float]:
    """Run through the batches once, training if an optimizer is given; return mean loss and accuracy."""
    loss_sum, right, seen = 0.0, 0, 0
    for inputs, labels in batches:
        inputs, labels = _to(inputs, device), _to(labels, device)
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss, num_right = judge(model(inputs), labels)
        if optimizer is not None and scaler is not None:
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if communication is not None:
                communication.after_backward()
            scaler.step(optimizer)
            scaler.update()
        loss_sum += loss.item() * len(labels)
        right += num_right
        seen += len(labels)
    return loss_sum / max(1, seen), right / max(1, seen)


def _to(value: Any, device: torch.device) -> Any:
    """Move a tensor, or a list of tensors, to the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [_to(part, device) for part in value]
