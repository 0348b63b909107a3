"""The final model as a PLY in the layout of the 3DGS reference implementation, which public viewers open."""

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement
from torch import Tensor

from ..files import replacing


def ply_properties() -> list[str]:
    """Return the vertex properties in file order; f_rest is channel-major: 15 red, 15 green, 15 blue."""
    rest = [f"f_rest_{i}" for i in range(45)]
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *rest,
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def write_ply(path: Path, parameters: dict[str, Tensor]) -> None:
    """Write the parameters as binary little-endian PLY.

    parameters: float, with the names and shapes of `splats.gaussians`: means [N, 3], ... Scales stay logarithms and
    opacities logits, as the layout wants.
    """
    p = {k: t.detach().cpu().float().numpy() for k, t in parameters.items()}
    n = len(p["means"])
    columns = np.concatenate(
        [
            p["means"],
            np.zeros((n, 3), np.float32),
            p["sh0"].reshape(n, 3),
            p["shN"].transpose(0, 2, 1).reshape(n, 45),
            p["opacities"].reshape(n, 1),
            p["scales"],
            p["quats"] / np.maximum(np.linalg.norm(p["quats"], axis=1, keepdims=True), 1e-12),
        ],
        axis=1,
    )
    vertices = np.empty(n, dtype=[(name, "<f4") for name in ply_properties()])
    for name, column in zip(ply_properties(), columns.T, strict=True):
        vertices[name] = column
    with replacing(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))
