"""Parameter digests: are two ranks' Gaussians the same, bit by bit?"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .comm import Communicator


def parameter_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over names, shapes and bytes in the order given."""
    h = hashlib.sha256()
    for name, t in tensors.items():
        h.update(f"{name}{tuple(t.shape)}{t.dtype}".encode())
        h.update(np.ascontiguousarray(t.detach().cpu().numpy()).data)
    return h.hexdigest()


def gather_digests(comm: Communicator, digest: str, device: torch.device) -> list[str]:
    """Every rank's digest, on every rank."""
    mine = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8).to(device)
    return [bytes(row.cpu().numpy()).hex() for row in comm.all_gather(mine)]


class ReplicasDiffer(RuntimeError):
    """Ranks that must hold equal parameters do not."""

    def __init__(self, digests: list[str]) -> None:
        short = ", ".join(f"rank {r}: {d[:12]}" for r, d in enumerate(digests))
        super().__init__(f"parameters differ between ranks although they must be equal ({short})")
