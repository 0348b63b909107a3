"""A training step on the CUDA path, over the stand-in of gsplat's extension: launches, waits, and several ranks."""

from typing import Any
from unittest import mock

import pytest
import torch

from dist3dgs.config.models import Strategy
from dist3dgs.errors import UserError
from dist3dgs.parallel.collectives import Communicator
from dist3dgs.parallel.strategy import Setup
from dist3dgs.runs.events import read_events
from dist3dgs.splats.camera import Camera
from dist3dgs.splats.densify.statistics import Statistics
from dist3dgs.splats.gaussians import NAMES, Gaussians
from dist3dgs.splats.render import RenderSettings, cuda, get_renderer
from dist3dgs.train import loop
from dist3dgs.train.fault_handling import StopPoll
from tests.unit.helpers import gsplat_standin, operations
from tests.unit.helpers.clouds import random_cloud, relative
from tests.unit.helpers.ranks import run_ranks

#: Largest number of operations of a step outside of gsplat's extension.
BOUNDS = {
    "default": 109,
    "absgrad": 109,
    "mcmc": 154,
    "sharded": 109,
    "4 views": 307,
    "sharded, 4 views": 307,
    "selective": 93,
}


@pytest.fixture(autouse=True)
def _standin():
    with gsplat_standin.installed():
        yield


@pytest.mark.parametrize("case", operations.CASES)
@pytest.mark.slow
def test_a_step_has_few_launches_and_no_wait(case: str) -> None:
    counted = operations.count(case)
    assert counted.launches.total() <= BOUNDS[case], counted.launches.most_common()
    # How many Gaussians each of several views sees; several ranks gather these numbers anyway.
    allowed = {"tolist": 1} if "4 views" in case else {}
    assert counted.waits == allowed, "the host waits for the GPU in a step"


@pytest.mark.slow
def test_the_host_waits_at_named_intervals_alone() -> None:
    """For digests, evaluations and checkpoints. Stop requests, losses and looks at the values are read a step later."""
    due, waited, asked, logged = [], [], 0, 0
    with operations.cuda_trainer("default") as trainer, mock.patch.object(cuda, "FINITE_EVERY", 7):
        # the same schedule on a slow machine
        trainer.poll = StopPoll(trainer.comm, trainer.device, lambda: 0.001 * trainer.step)
        for step in range(1, 41):
            train = trainer.train
            intervals = (train.digest_every, train.eval_every, train.checkpoint_every)
            is_due = any(step % every == 0 for every in intervals)
            asked += trainer.poll.due(trainer.step)
            logged += step % train.log_every == 0
            with operations.Operations() as counted, counted.transfers():
                trainer.told_to_stop()
                trainer.one_step(step)
                if step == trainer.schedule.num_steps:
                    break  # the last step evaluates and exports
                trainer.after_step()
            if step > 4:
                due += [step] * is_due
                waited += [step] * bool(counted.waits)
        steps = [e["step"] for e in read_events(trainer.events.path) if e["event"] == "step"]
    assert waited == due and 0 < len(due) < 20
    assert asked >= 4 and len(steps) == logged - 1, "asked and logged without a wait"


def test_what_is_read_a_step_later_still_counts() -> None:
    """A loss that is not finite, a stop request, values that are not finite."""
    with operations.cuda_trainer("default") as trainer, mock.patch.object(cuda, "FINITE_EVERY", 3):
        trainer.one_step(1)
        trainer.loss = torch.tensor(float("nan"))
        trainer.log()
        with pytest.raises(loop.Diverged, match="loss is nan at step 1"):
            trainer.finish_log()
        trainer.stop_requested = "SIGTERM"
        assert not trainer.told_to_stop(), "asked"
        trainer.one_step(2)
        assert trainer.told_to_stop(), "and answered"
        trainer.one_step(3)
        with torch.no_grad():
            trainer.model.gaussians["scales"][3] = float("nan")
        trainer.one_step(4)  # looks
        with pytest.raises(UserError, match="NaN or infinite"):
            trainer.one_step(5)


def one_step(comm: Communicator, kind: str, absgrad: bool) -> dict[str, torch.Tensor]:
    """Gradients and statistics of a global batch of two views, by row of the whole model."""
    gsplat_standin.install()
    device, cloud = torch.device("cpu"), random_cloud(120, 0, 32, 24)
    from dist3dgs.parallel.replicated import Replicated
    from dist3dgs.parallel.sharded import Sharded

    make = Replicated if kind == "replicated" else Sharded
    strategy: dict[str, Any] = {"kind": "sharded", "split": "pixels"} if kind == "strips" else {"kind": kind}
    settings = RenderSettings(absgrad=absgrad)
    setup = Setup(
        comm=comm,
        renderer=get_renderer("cuda"),
        settings=settings,
        strategy=Strategy(**strategy, optimizer_state="whole"),  # gradients of all rows on every rank
        device=device,
    )
    parallel = make(setup)
    values = {
        "means": cloud.means, "scales": cloud.scales.log(), "quats": cloud.quats,
        "opacities": torch.logit(cloud.opacities), "sh0": cloud.sh0, "shN": cloud.shn,
    }  # fmt: skip
    rows = {name: values[name].float().contiguous() for name in NAMES}
    rows = parallel.distribute(lambda: rows | {"row": torch.arange(120)})
    row, gaussians = rows.pop("row"), Gaussians(rows)
    cameras = []
    for i in range(2):
        view = cloud.viewmat.float().clone()
        view[0, 3] += 0.3 * i
        cameras.append(Camera(name=str(i), viewmat=view, K=cloud.K.float(), width=32, height=24, photo=None))
    batch = [cameras] if comm.world_size == 1 else [[camera] for camera in cameras]
    parallel.render(gaussians, batch, sh_degree=3, background=None, track=True)  # looks at cameras and values
    gsplat_standin.calls.clear()
    with operations.Operations() as counted, counted.transfers():
        rendered = parallel.render(gaussians, batch, sh_degree=3, background=None, track=True)
    losses = [((view.image.colors - 0.3) ** 2).sum() / 2 for view in rendered.views]
    torch.stack([rendered.anchor, *losses]).sum().backward()
    list(parallel.reduce_gradients(gaussians, 3))
    statistics = Statistics.zeros(gaussians.num_gaussians, device)
    for projection, camera in rendered.projections:
        statistics.add(projection, camera, 0.5, absgrad)
    statistics = parallel.reduce_statistics(statistics)
    found = {name: t.grad for name, t in gaussians.items() if t.grad is not None}
    if kind != "replicated":
        # All cameras are projected in one call, and strips cut in one; the ranks' numbers are gathered once.
        assert gsplat_standin.calls.count("projection_ewa_3dgs_packed_fwd") == 1
        assert counted.waits == {"tolist": 1} | ({"nonzero": 1} if parallel.strips else {})
    return {"row": row, "grad_sum": statistics.grad_sum, "count": statistics.count, **found}


@pytest.mark.parametrize("absgrad", [False, True])
@pytest.mark.parametrize("kind", ["replicated", "sharded", "strips"])
def test_two_ranks_give_the_gradients_of_one(kind: str, absgrad: bool) -> None:
    whole, ranks = one_step(Communicator(), kind, absgrad), run_ranks(2, one_step, kind, absgrad)
    parts = ranks[:1] if kind == "replicated" else ranks
    joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
    order = torch.argsort(joined["row"])
    assert torch.equal(joined["row"][order], whole["row"])
    assert torch.equal(joined["count"][order], whole["count"]) and int(whole["count"].sum()) > 0
    for name in (*NAMES, "grad_sum"):
        assert relative(whole[name], joined[name][order]) < 1e-5, name
