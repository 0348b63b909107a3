"""Parameter digests: are two ranks' Gaussians the same, bit by bit?"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .comm import Communicator


def parameter_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes and bytes in the order given; on a GPU over checksums made there.

    Copying 3 million Gaussians (700 MB) to the host and hashing them would take as long as dozens of steps.
    """
    h = hashlib.sha256()
    for name, t in tensors.items():
        h.update(f"{name}{tuple(t.shape)}{t.dtype}".encode())
        t = t.detach().contiguous()
        h.update(t.numpy().data if t.device.type == "cpu" else checksum(t).to_bytes(8, "little", signed=True))
    return h.hexdigest()


def checksum(tensor: Tensor) -> int:
    """Sum of the contiguous tensor's 32-bit words, each times an odd number that depends on its place, modulo 2^64.

    Any one changed word changes it, as does exchanging two (almost surely).
    """
    words, total = tensor.view(torch.int32).flatten(), 0
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].long()
        place = torch.arange(start, start + len(part), device=tensor.device)
        total += int(((place * _GOLDEN | 1) * part).sum())
    return (total + 2**63) % 2**64 - 2**63


def gather_digests(comm: Communicator, digest: str, device: torch.device) -> list[str]:
    """Every rank's digest, on every rank."""
    mine = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8).to(device)
    return [bytes(row.cpu().numpy()).hex() for row in comm.all_gather(mine)]


#: 2^64 over the golden ratio, as a signed number: spreads consecutive places over all 64 bits (Knuth, TAOCP 6.4).
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_CHUNK = 1 << 24


class ReplicasDiffer(RuntimeError):
    """Ranks that must hold equal parameters do not."""

    def __init__(self, digests: list[str]) -> None:
        short = ", ".join(f"rank {r}: {d[:12]}" for r, d in enumerate(digests))
        super().__init__(f"parameters differ between ranks although they must be equal ({short})")
