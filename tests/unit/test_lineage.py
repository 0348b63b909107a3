"""Names of Gaussians and the noise that follows from them."""

import torch

from dist3dgs.splats.densify.lineage import children, founders, normals

CPU = torch.device("cpu")


def test_splitmix64_as_published():
    """First outputs of the reference generator for seed 0: states are multiples of the golden gamma."""
    gamma = 0x9E3779B97F4A7C15 - 2**64
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    from dist3dgs.splats.densify.lineage import _mix

    states = torch.arange(3) * gamma
    assert [int(v) % 2**64 for v in _mix(states)] == published


def test_names_differ():
    parents = founders(100_000, CPU)
    everybody = [parents, *(children(parents, step, i) for step in (100, 200) for i in range(3))]
    assert len(torch.cat(everybody).unique()) == 700_000


def test_noise_follows_the_name_and_not_the_place():
    parents = founders(1000, CPU)
    noise = normals(parents, 6, seed=1, step=300)
    some = torch.tensor([999, 3, 500])
    assert torch.equal(normals(parents[some], 6, seed=1, step=300), noise[some])
    for other in (normals(parents, 6, seed=2, step=300), normals(parents, 6, seed=1, step=301)):
        assert not (other == noise).any()


def test_noise_is_standard_normal():
    noise = normals(founders(100_000, CPU), 6, seed=7, step=1)
    assert noise.isfinite().all()
    # Five standard errors of the mean and of the variance; correlations of columns like those of independent ones.
    assert noise.mean(0).abs().max() < 5 / 100_000**0.5
    assert (noise.var(0) - 1).abs().max() < 5 * (2 / 100_000) ** 0.5
    assert (torch.corrcoef(noise.T) - torch.eye(6)).abs().max() < 5 / 100_000**0.5
    assert abs(float((noise.abs() < 1.959964).double().mean()) - 0.95) < 0.002
