from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData

from dist3dgs.splats.export import write_ply
from dist3dgs.splats.gaussians import initial_gaussians


def read_ply(path: Path) -> dict[str, np.ndarray]:
    """Read such a file back: arrays named and shaped as the parameters."""
    v = PlyData.read(str(path))["vertex"]
    stack = lambda *names: np.stack([np.asarray(v[k]) for k in names], 1).astype(np.float32)  # noqa: E731
    return {
        "means": stack("x", "y", "z"),
        "scales": stack("scale_0", "scale_1", "scale_2"),
        "quats": stack("rot_0", "rot_1", "rot_2", "rot_3"),
        "opacities": np.asarray(v["opacity"], np.float32),
        "sh0": stack("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        "shN": stack(*(f"f_rest_{i}" for i in range(45))).reshape(-1, 3, 15).transpose(0, 2, 1),
    }


def test_a_ply_keeps_every_parameter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parameters = initial_gaussians(torch.rand(50, 3), torch.rand(50, 3), init_opacity=0.1, init_scale=1.0)
    parameters["shN"] = torch.rand(50, 15, 3)
    parameters["quats"] = torch.nn.functional.normalize(torch.rand(50, 4), dim=-1)
    write_ply(tmp_path / "a.ply", parameters)
    back = read_ply(tmp_path / "a.ply")
    assert list(back) == list(parameters)
    for name, value in parameters.items():
        np.testing.assert_allclose(back[name], value.numpy(), atol=1e-6, err_msg=name)


def test_the_file_itself_is_the_reference_layout(tmp_path: Path) -> None:
    """Coefficient 1 of green stands at f_rest_15: channel-major, as the reference implementation writes it."""
    parameters = initial_gaussians(torch.rand(4, 3), torch.rand(4, 3), init_opacity=0.1, init_scale=1.0)
    parameters["shN"][:, 0, 1] = 7.0
    write_ply(tmp_path / "a.ply", parameters)
    raw = (tmp_path / "a.ply").read_bytes()
    header, body = raw.split(b"end_header\n", 1)
    names = [line.split()[2].decode() for line in header.splitlines() if line.startswith(b"property")]
    rows = np.frombuffer(body, "<f4").reshape(4, len(names))
    assert (rows[:, names.index("f_rest_15")] == 7.0).all() and (rows[:, names.index("f_rest_1")] == 0).all()
