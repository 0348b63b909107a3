from pathlib import Path

import numpy as np
import torch

from dist3dgs.splats.export import read_ply, write_ply
from dist3dgs.splats.gaussians import initial_gaussians


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
