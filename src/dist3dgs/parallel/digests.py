"""Digests of parameters and rows, to compare ranks bit by bit."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..splats.densify.lineage import key, mix
from .collectives import Communicator


def parameter_digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute a SHA-256, in hex, over names, shapes, dtypes and bytes of tensors [...] of any dtype, in the order
    given.

    On a GPU over checksums made there: copying 3 million Gaussians (700 MB) to the host and hashing them would take
    as long as dozens of steps.
    """
    h = hashlib.sha256()
    for name, t in tensors.items():
        h.update(f"{name}{tuple(t.shape)}{t.dtype}".encode())
        t = t.detach().contiguous()
        h.update(t.numpy().data if t.device.type == "cpu" else checksum(t).to_bytes(8, "little", signed=True))
    return h.hexdigest()


def checksum(tensor: Tensor) -> int:
    """Sum the 32-bit words of a contiguous tensor [...], each times an odd number that depends on its place, modulo
    2^64.

    Any dtype of 32 bits or a multiple. Any one changed word changes the sum, as does exchanging two (almost surely).
    """
    words, total = tensor.view(torch.int32).flatten(), 0
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].long()
        place = torch.arange(start, start + len(part), device=tensor.device)
        total += int(((place * _GOLDEN | 1) * part).sum())
    return _signed(total)


def _signed(number: int) -> int:
    """Return the signed 64-bit number of the same bits."""
    return (number + 2**63) % 2**64 - 2**63


@torch.no_grad()
def rows_checksum(rows: Mapping[str, Tensor]) -> int:
    """Sum a mix of each row's words over rows, modulo 2^64: independent of the order of the rows and of their rank.

    rows: tensors by name, [N, ...] each, one row per Gaussian, dtypes of 32 or 64 bits. Any one changed word changes
    the sum, as does a row that is lost, duplicated or paired with another row's moments (almost surely).
    """
    total = 0
    for start in range(0, len(next(iter(rows.values()))), _ROWS):
        mixed: Tensor | int = 0
        for name, tensor in rows.items():
            part = tensor[start : start + _ROWS].detach().contiguous()
            words = part.view(torch.int32).reshape(len(part), -1).long()
            place = torch.arange(words.shape[1], device=words.device)
            mixed = mixed + (words * (mix(place ^ key(name)) | 1)).sum(1)
        total += int(mix(mixed).sum())  # type: ignore[arg-type]
    return total % 2**64


def compare_rows(comm: Communicator, before: int, after: int, what: str, device: torch.device) -> None:
    """Compare the ranks' sums of `rows_checksum` before and after rows travelled. Collective.

    before, after: checksums of this rank's rows; 0 if it had none.

    Raises:
        RowsDiffer: on every rank.
    """
    mine = torch.tensor([_signed(before), _signed(after)], device=device)
    every = comm.all_gather(mine, "all_gather(checksums)").tolist()
    was, now = (sum(column) % 2**64 for column in zip(*every, strict=True))
    if was != now:
        raise RowsDiffer(what, was, now)


def gather_digests(comm: Communicator, digest: str, device: torch.device) -> list[str]:
    """Gather every rank's digest on every rank."""
    mine = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8).to(device)
    return [bytes(row.cpu().numpy()).hex() for row in comm.all_gather(mine)]


#: 2^64 over the golden ratio, as a signed number: spreads consecutive places over all 64 bits (Knuth, TAOCP 6.4).
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_CHUNK = 1 << 24
#: Rows mixed at a time: of `shN` that is 94 MB as int64.
_ROWS = 1 << 18


class ReplicasDiffer(RuntimeError):
    """Ranks that must hold equal parameters do not."""

    def __init__(self, digests: list[str]) -> None:
        short = ", ".join(f"rank {r}: {d[:12]}" for r, d in enumerate(digests))
        super().__init__(f"parameters differ between ranks although they must be equal ({short})")


class RowsDiffer(ReplicasDiffer):
    """Rows changed while they moved between ranks."""

    def __init__(self, what: str, was: int, now: int) -> None:
        RuntimeError.__init__(
            self,
            f"the rows of all ranks together differ after {what}: checksum {was:016x} before, {now:016x} after; "
            "a Gaussian or its moments were lost, duplicated or corrupted in transit",
        )
