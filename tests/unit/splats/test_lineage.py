"""Names of Gaussians and the noise that follows from them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dist3dgs.config.models import Densification
from dist3dgs.splats.densify import add_noise
from dist3dgs.splats.densify.lineage import children, founders, mix, normals
from dist3dgs.splats.gaussians import Gaussians

CPU = torch.device("cpu")


def test_splitmix64_as_published():
    """First outputs of the reference generator for seed 0: states are multiples of the golden gamma."""
    gamma = 0x9E3779B97F4A7C15 - 2**64
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    states = torch.arange(3) * gamma
    assert [int(v) % 2**64 for v in mix(states)] == published


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


@given(st.lists(st.integers(0, 4999), min_size=1, max_size=70))
def test_no_place_changes_a_bit(places):
    """Vectorised loops compute their remainder another way where they are not careful."""
    parents = founders(5000, CPU)
    some = torch.tensor(places)
    assert torch.equal(normals(parents[some], 3, seed=1, step=9), normals(parents, 3, seed=1, step=9)[some])


def test_the_noise_of_mcmc_does_not_depend_on_the_shard():
    """Drawn by name: what a rank that holds a part adds is what a rank that holds all adds to that part."""
    rng = torch.Generator().manual_seed(0)
    rows = {
        "means": torch.randn(300, 3, generator=rng), "scales": torch.randn(300, 3, generator=rng) - 3,
        "quats": torch.randn(300, 4, generator=rng), "opacities": torch.full((300,), -5.0),
        "sh0": torch.zeros(300, 1, 3), "shN": torch.zeros(300, 15, 3),
    }  # fmt: skip
    lineage = founders(300, CPU)

    def moved(part: torch.Tensor) -> torch.Tensor:
        gaussians = Gaussians({k: t[part].clone() for k, t in rows.items()})
        add_noise(gaussians, lineage[part], 1e-3, Densification(kind="mcmc"), seed=1, step=7)
        return gaussians["means"].detach()

    whole = moved(torch.arange(300))
    assert (whole != rows["means"]).all()
    for part in (torch.arange(0, 300, 3), torch.arange(299, 150, -2)):
        assert torch.allclose(moved(part), whole[part], rtol=1e-6, atol=1e-7)
