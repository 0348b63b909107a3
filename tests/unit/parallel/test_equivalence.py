"""One step of any strategy on any number of ranks gives the gradients of one process with the same global batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist3dgs.bench.cloud import intrinsics, ring_of_cameras
from dist3dgs.config.models import Densification, Strategy
from dist3dgs.parallel import gradients as gradients_module
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.gradients import GradientSum
from dist3dgs.parallel.registry import make_parallel
from dist3dgs.splats.camera import Camera
from dist3dgs.splats.densify import budget
from dist3dgs.splats.densify.lineage import founders
from dist3dgs.splats.densify.statistics import Statistics
from dist3dgs.splats.gaussians import NAMES, Gaussians
from dist3dgs.splats.loss import l1_ssim_loss
from dist3dgs.splats.render import get_renderer
from dist3dgs.train.densification import score
from tests.unit.helpers import tiny
from tests.unit.helpers.ranks import make_trainer, run_ranks
from tests.unit.helpers.tiny import HEIGHT, WIDTH

STRATEGIES = {
    "replicated": {"kind": "replicated"},
    "all-rows": {"kind": "replicated", "gradient_rows": "all"},
    "whole": {"kind": "replicated", "optimizer_state": "whole"},
    "network": {"kind": "replicated", "shared_memory": False},
    "zero1": {"kind": "replicated", "optimizer_state": "split", "shared_memory": False},
    "touched": {"kind": "replicated", "gradient_rows": "touched"},
    "sharded": {"kind": "sharded"},
    "sharded-network": {"kind": "sharded", "shared_memory": False},
    "space": {"kind": "sharded", "placement": "space"},
    "pixels": {"kind": "sharded", "split": "pixels"},
    "pixels-space": {"kind": "sharded", "split": "pixels", "placement": "space"},
    "hybrid": {"kind": "hybrid"},
    "hybrid-1": {"kind": "hybrid", "shard": 1},
    "hybrid-2": {"kind": "hybrid", "shard": 2},
    "local": {"kind": "local", "sync_every": 1},
}
#: Strategies and numbers of ranks; hybrid as 2 x 1, 1 x 2 and 2 x 2 (groups x ranks of a group).
ONE_RANK = [("replicated", 1), ("sharded", 1), ("pixels", 1), ("hybrid", 1)]
SEVERAL_RANKS = [
    *((name, 2) for name in ("replicated", "zero1", "sharded", "space", "pixels", "hybrid-1", "hybrid-2")),
    *(
        pytest.param(name, ranks, marks=pytest.mark.slow)
        for name, ranks in [
            *((name, ranks) for name in ("replicated", "sharded", "space", "pixels") for ranks in (3, 4)),
            *(("whole", 3), ("zero1", 4), ("sharded-network", 3), ("touched", 4)),
            *(("pixels-space", 2), ("hybrid-1", 3), ("hybrid-2", 4)),
        ]
    ),
]
GLOBAL_BATCH = 12  # divisible by 1, 2, 3 and 4 ranks
NUM_GAUSSIANS = 203  # by none of 2, 3 and 4
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
SINGLE_PRECISION = pytest.param(torch.float32, marks=pytest.mark.slow)


def some_gaussians(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Anisotropic Gaussians with all SH bands in use; identical in every process."""
    g = torch.Generator().manual_seed(5)
    n = NUM_GAUSSIANS

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    values = {
        "means": randn(n, 3) * 0.7, "scales": randn(n, 3) * 0.5 - 2.0, "quats": randn(n, 4), "opacities": randn(n),
        "sh0": randn(n, 1, 3), "shN": randn(n, 15, 3) * 0.2,
    }  # fmt: skip
    return {k: values[k].to(dtype) for k in NAMES}


def batch(dtype: torch.dtype, world_size: int, num_views: int = GLOBAL_BATCH) -> list[list[Camera]]:
    g = torch.Generator().manual_seed(9)
    photos = torch.randint(0, 255, (num_views, HEIGHT, WIDTH, 3), generator=g, dtype=torch.uint8)
    viewmats, Ks = (
        torch.from_numpy(ring_of_cameras(num_views)),
        torch.from_numpy(intrinsics(num_views, WIDTH, HEIGHT)),
    )
    cameras = [
        Camera(
            name=str(i), viewmat=viewmats[i].to(dtype), K=Ks[i].to(dtype), width=WIDTH, height=HEIGHT, photo=photos[i]
        )
        for i in range(num_views)
    ]  # fmt: skip
    each = num_views // world_size
    return [cameras[r * each : (r + 1) * each] for r in range(world_size)]


def one_step(
    comm: Communicator,
    kind: str,
    dtype: torch.dtype,
    sh_degree: int,
    absgrad: bool,
    cameras: list[list[Camera]] | None = None,
) -> dict[str, torch.Tensor] | None:
    """Gradients, statistics and loss of the whole model on rank 0."""
    run = tiny.spec(
        f"n1g{comm.world_size}", strategy=STRATEGIES[kind], global_batch=GLOBAL_BATCH, antialiased=True,
        densify={"absgrad": absgrad},
    )  # fmt: skip
    parallel = make_parallel(run, comm, get_renderer("cpu"), torch.device("cpu"))
    gaussians = Gaussians(parallel.distribute(lambda: some_gaussians(dtype)))
    cameras = batch(dtype, comm.world_size) if cameras is None else cameras
    n = sum(len(part) for part in cameras)
    rendered = parallel.render(gaussians, cameras, sh_degree=sh_degree, background=None, track=True)
    loss, photos = rendered.anchor, {camera.name: camera.photo for part in cameras for camera in part}
    for view in rendered.views:
        photo = photos[view.camera.name]
        loss = loss + l1_ssim_loss(view.image.colors, view.crop(photo), 0.2, view.strip) / n
    loss.backward()
    assert set(parallel.reduce_gradients(gaussians, sh_degree)) == {
        k for k in NAMES if sh_degree or k != "shN"
    }
    statistics = Statistics.zeros(gaussians.num_gaussians, gaussians.device)
    for projection, camera in rendered.projections:
        statistics.add(projection, camera, 1 / n, absgrad)
    statistics = parallel.reduce_statistics(statistics)
    total = loss.detach().clone()
    comm.all_reduce(total)
    grads = {k: t.grad for k, t in gaussians.items() if t.grad is not None}
    if parallel.parts is not None:  # this rank has the sums of its own rows
        parallel.parts.all_gather(list(grads.values()))
    rows = grads | {
        "grad": statistics.mean_gradient(),
        "count": statistics.count,
        "means_": gaussians["means"],
    }
    whole = parallel.whole(rows)
    if whole is None:
        return None
    order = torch.argsort(whole.pop("means_")[:, 0])  # the owners' order differs with their number
    return {"loss": total} | {k: t.detach()[order] for k, t in whole.items()}


@pytest.fixture(scope="module")
def single():
    """The single process's answer, by dtype, degree and absgrad."""
    known: dict = {}

    def answer(dtype, sh_degree, absgrad):
        key = (dtype, sh_degree, absgrad)
        if key not in known:
            known[key] = one_step(Communicator(), "replicated", dtype, sh_degree, absgrad, batch(dtype, 1))
        return known[key]

    return answer


@pytest.mark.parametrize("dtype", [torch.float64, SINGLE_PRECISION], ids=["float64", "float32"])
@pytest.mark.parametrize("kind, world_size", [*ONE_RANK, *SEVERAL_RANKS])
@pytest.mark.parametrize("sh_degree, absgrad", [(3, False), (0, True)], ids=["sh3", "sh0-absgrad"])
def test_gradients_are_those_of_one_process(single, kind, world_size, dtype, sh_degree, absgrad):
    want = single(dtype, sh_degree, absgrad)
    got = run_ranks(world_size, one_step, kind, dtype, sh_degree, absgrad)[0]
    assert set(got) == set(want)
    assert torch.equal(got.pop("count"), want["count"])
    for name, tensor in got.items():
        scale = want[name].double().norm()
        assert scale > 0, name
        error = (tensor.double() - want[name].double()).norm() / scale
        # The statistics are float32 whatever the renderer computes in.
        assert error < (1e-6 if name == "grad" and dtype == torch.float64 else TOLERANCE[dtype]), (
            name,
            float(error),
        )


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_that_travel_apart_are_the_same(single, world_size, monkeypatch):
    """Every parameter in a bucket of its own, all under way together. The ranks are forked and inherit the patch."""
    monkeypatch.setattr(gradients_module, "BUCKET_BYTES", 1)
    want = single(torch.float64, 3, False)
    got = run_ranks(world_size, buckets_step)[0]
    for name in NAMES:
        assert (got[name] - want[name]).norm() < TOLERANCE[torch.float64] * want[name].norm(), name


def buckets_step(comm: Communicator) -> dict[str, torch.Tensor] | None:
    answer = one_step(comm, "network", torch.float64, 3, False)
    assert comm.meters["startup", "all_reduce(gradients)"].calls >= len(NAMES)
    return answer


def trainer_step(comm: Communicator, kind: str, scene: Path, out: Path) -> dict[str, torch.Tensor] | None:
    """Gradients of the training loop's own first step, from Adam's first moments: MCMC's penalties, any background."""
    run = tiny.spec(
        f"n1g{comm.world_size}", strategy=STRATEGIES[kind], steps=240, global_batch=12, background="random",
        densify={"kind": "mcmc", "opacity_reg": 0.5, "scale_reg": 0.5},
    )  # fmt: skip
    trainer = make_trainer(comm, run, scene, out)
    trainer.start()
    trainer.one_step(1)
    if kind in ("replicated", "zero1") and comm.world_size > 1:
        assert len(trainer.model.optimizer.moments()["means.exp_avg"]) < 200, "a part of the moments"
    rows = trainer.model.whole()
    if rows is None:
        return None
    order = torch.argsort(rows["lineage"])
    return {k: t[order] for k, t in rows.items() if k.endswith(".exp_avg")} | {"size": rows["scales"][order]}


@pytest.mark.slow
@pytest.mark.parametrize("kind, world_size", SEVERAL_RANKS)
def test_penalties_and_background_are_those_of_one_process(kind, world_size, tiny_scene, tmp_path):
    want = trainer_step(Communicator(), "replicated", tiny_scene, tmp_path / "one")
    got = run_ranks(world_size, trainer_step, kind, tiny_scene, tmp_path / "many")[0]
    assert set(got) == set(want) and len(got) == len(NAMES)  # no shN yet
    # Round Gaussians have no gradient of their rotation, only its rounding.
    rounding = 1e-7 * want["adam/means.exp_avg"].norm()
    for name, tensor in got.items():
        assert (tensor - want[name]).norm() < TOLERANCE[torch.float32] * want[name].norm() + rounding, name


def blind_step(comm: Communicator, kind: str) -> dict[str, torch.Tensor] | None:
    """The last rank's camera looks away from everything."""
    cameras = batch(torch.float32, comm.world_size, comm.world_size)
    away = cameras[-1][0].viewmat.clone()
    away[:3, 3] += torch.tensor([0.0, 0.0, -1000.0])
    seen = cameras[-1][0]
    cameras[-1] = [Camera(name="away", viewmat=away, K=seen.K, width=WIDTH, height=HEIGHT, photo=seen.photo)]
    return one_step(comm, kind, torch.float32, 3, False, cameras)


@pytest.mark.parametrize("kind", ["replicated", "sharded", "hybrid-1", "hybrid-2"])
def test_a_rank_that_sees_nothing_neither_hangs_nor_fails(kind):
    got = run_ranks(2, blind_step, kind)[0]
    assert int(got["count"].max()) == 1
    assert all(torch.isfinite(t).all() for t in got.values())


class Views:
    """Cameras by view, as `SceneCameras` gives them."""

    def __init__(self) -> None:
        self.cameras = batch(torch.float32, 1)[0]

    def get(self, view: int, *, photo: bool = True) -> Camera:
        return self.cameras[view] if photo else replace(self.cameras[view], photo=None)

    def photo_of(self, camera: Camera) -> torch.Tensor:
        photo = self.cameras[int(camera.name)].photo
        assert photo is not None
        return photo


def scored(comm: Communicator, kind: str) -> dict[str, torch.Tensor]:
    """A densification to a budget from scores over 5 views: what this rank holds afterwards, by name."""
    run = tiny.spec(f"n1g{comm.world_size}", strategy=STRATEGIES[kind])
    parallel = make_parallel(run, comm, get_renderer("cpu"), torch.device("cpu"))
    rows = parallel.distribute(
        lambda: some_gaussians(torch.float32) | {"lineage": founders(NUM_GAUSSIANS, torch.device("cpu"))}
    )
    lineage, gaussians = rows.pop("lineage"), Gaussians(rows)
    scores = score(parallel, gaussians, Views(), [3, 1, 4, 8, 5], sh_degree=3, background=None)
    assert all(t.grad is None for t in gaussians.values())
    change = budget.densify(
        gaussians, lineage, scores, Densification(kind="budget", prune_share=0.1), target=NUM_GAUSSIANS + 20,
        total=lambda n: parallel.sum_counts({"n": n})["n"], choose=parallel.global_topk, step=3,
    )  # fmt: skip
    seen = {"lineage": lineage, "error": scores.error, "weight": scores.weight}
    return seen | {"after": change.lineage} | {f"new {k}": t for k, t in change.parameters.items()}


@pytest.mark.parametrize(
    "kind", ["replicated", "local", "sharded", "space", "pixels", "hybrid-1", "hybrid-2"]
)
def test_a_budget_is_decided_as_by_one_process(kind):
    want, ranks = scored(Communicator(), "replicated"), run_ranks(2, scored, kind)
    assert len(want["after"]) == NUM_GAUSSIANS + 20 and int(want["error"].min()) >= 0
    if kind in ("replicated", "local", "hybrid-1"):
        assert all(torch.equal(rank[name], t) for rank in ranks for name, t in want.items())
        return
    got = {name: torch.cat([rank[name] for rank in ranks]) for name in want}
    for before, names in (("lineage", ("error", "weight")), ("after", [n for n in want if n[:3] == "new"])):
        ours, theirs = (torch.argsort(t[before]) for t in (got, want))
        assert torch.equal(got[before][ours], want[before][theirs])
        for name in names:
            difference = (got[name][ours] - want[name][theirs]).double().norm()
            assert difference <= 1e-5 * want[name].double().norm(), name


def some_gradients(rank: int) -> dict[str, torch.Tensor]:
    """Gradients that views left in two fifths of the rows."""
    g = torch.Generator().manual_seed(rank)
    seen = torch.rand(NUM_GAUSSIANS, generator=g) < 0.4
    gradients = {}
    for name, value in some_gaussians(torch.float32).items():
        gradients[name] = torch.randn(value.shape, generator=g) * seen.reshape(-1, *[1] * (value.ndim - 1))
    gradients["shN"][:, 8:] = 0  # degree 2 is in use
    return gradients


def sum_of_rows(comm: Communicator, rows: str, compression: str) -> dict[str, torch.Tensor]:
    """Summed gradients by parameter, and the bytes this rank sent for them."""
    gaussians = Gaussians(some_gaussians(torch.float32))
    for name, grad in some_gradients(comm.rank).items():
        gaussians[name].grad = grad
    total = GradientSum(comm, Strategy(gradient_rows=rows, compression=compression))
    assert set(total.reduce(gaussians, 2)) == set(NAMES)
    grads = {name: t.grad for name, t in gaussians.items() if t.grad is not None}
    return grads | {"bytes": torch.tensor(sum(m.bytes for m in comm.meters.values()))}


@pytest.mark.parametrize("world_size, compression", [(2, "none"), (3, "none"), (2, "bf16")])
def test_touched_rows_alone_give_the_bits_of_all_rows(world_size, compression):
    every = run_ranks(world_size, sum_of_rows, "all", compression)
    touched = run_ranks(world_size, sum_of_rows, "touched", compression)
    sent = [ranks[0].pop("bytes") for ranks in (every, touched)]
    for rank in (*every[1:], *touched):
        rank.pop("bytes", None)
        assert all(torch.equal(rank[name], every[0][name]) for name in NAMES)
    union = torch.stack([(some_gradients(r)["sh0"] != 0).flatten(1).any(1) for r in range(world_size)])
    share = union.any(0).float().mean()
    assert 0.5 < share < 0.8
    bits = (world_size - 1) * NUM_GAUSSIANS / 8
    assert sent[1] == pytest.approx(float(sent[0] * share + bits), rel=0.05)


def auto_looks(comm: Communicator, seen: float) -> list[int]:
    """How often two ranks told each other their touched rows in four steps, and whether all rows travelled."""
    gaussians = Gaussians(some_gaussians(torch.float32))
    total = GradientSum(comm, Strategy())
    for _ in range(4):
        for t in gaussians.values():
            t.grad = torch.zeros_like(t)
            t.grad[: int(seen * NUM_GAUSSIANS)] = 1.0
        list(total.reduce(gaussians, 3))
    rows, sums = (comm.meters["startup", op] for op in ("all_gather(touched rows)", "all_reduce(gradients)"))
    return [rows.calls, sums.bytes >= 4 * 4 * 59 * NUM_GAUSSIANS]


def test_auto_sends_all_rows_where_many_are_touched_and_does_not_look_in_every_step():
    assert run_ranks(2, auto_looks, 0.2) == [[4, False]] * 2
    assert run_ranks(2, auto_looks, 0.5) == [[1, True]] * 2
