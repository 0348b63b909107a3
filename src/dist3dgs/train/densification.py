"""Decide, on all ranks alike, what a densification changes: from the statistics of steps or from scores over views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config.models import RunSpec
from ..parallel.strategy import Parallel
from ..scenes.pack import PackedScene
from ..splats.densify import Change, Statistics, budget, default, mcmc
from ..splats.densify.budget import Scores, attribution
from ..splats.gaussians import Gaussians
from .data import SceneCameras
from .model import Model
from .rng import background, generator
from .schedules import Schedule


def decide(
    spec: RunSpec,
    scene: PackedScene,
    schedule: Schedule,
    parallel: Parallel,
    model: Model,
    cameras: SceneCameras,
    step: int,
) -> Change:
    """Decide what the settings' kind of densification changes after 1-based `step`. Collective.

    Args:
        spec, scene, schedule: of the run.
        parallel, model: the strategy and this rank's state, synchronised.
        cameras: of the scene.
        step: one at which `schedule.densifies`.
    """
    d, gaussians, lineage = spec.train.densify, model.gaussians, model.lineage
    if d.kind == "mcmc":
        return mcmc.densify(
            gaussians,
            lineage,
            d,
            max_gaussians=parallel.limit(gaussians, d.max_gaussians),
            step=step,
            generator=generator(spec.seed, step, "densify", parallel.stream),
        )
    if d.kind == "budget":
        drawn = torch.randperm(len(scene.train_ids), generator=generator(spec.seed, step, "score"))
        scores = score(
            parallel,
            gaussians,
            cameras,
            [int(scene.train_ids[i]) for i in drawn[: d.score_views]],
            sh_degree=schedule.sh_degree(step),
            background=background(spec, step, gaussians.device),
        )
        start = min(len(scene.points), d.max_gaussians)
        return budget.densify(
            gaussians,
            lineage,
            scores,
            d,
            target=budget.curve(start, d.max_gaussians, *schedule.densification(step)),
            total=lambda number: parallel.sum_counts({"number": number})["number"],
            choose=parallel.global_topk,
            step=step,
        )
    room = max(0, d.max_gaussians - parallel.total_gaussians)
    return default.densify(
        gaussians,
        lineage,
        parallel.reduce_statistics(model.statistics),
        d,
        extent=scene.extent,
        prune_large=step > schedule.steps(d.reset_every),
        choose=lambda pull, wanted: parallel.global_topk(pull, parallel.may_grow(gaussians, wanted), room),
        seed=spec.seed,
        step=step,
    )


def score(
    parallel: Parallel,
    gaussians: Gaussians,
    cameras: SceneCameras,
    views: Sequence[int],
    *,
    sh_degree: int,
    background: Tensor | None,
) -> Scores:
    """Render training views, one per rank at a time, and score the Gaussians that this rank holds. Collective.

    Args:
        parallel, gaussians: the strategy and this rank's Gaussians, N of them.
        cameras: of the scene.
        views: indices of the views, the same on all ranks.
        sh_degree: 0..3.
        background: [3] float RGB; black if None.

    Returns:
        Sums over all views, int64 [N], equal on all ranks that hold the same Gaussians.
    """
    world, rank = parallel.comm.world_size, parallel.comm.rank
    scores = Scores.zeros(gaussians.num_gaussians, gaussians.device)
    for start in range(0, len(views), world):
        turn = views[start : start + world]
        batch = [[cameras.get(v, photo=r == rank)] for r, v in enumerate(turn)]
        batch += [[] for _ in range(world - len(turn))]
        rendered = parallel.render(gaussians, batch, sh_degree=sh_degree, background=background, track=False)
        total = rendered.anchor
        for view in rendered.views:
            photo = view.camera.photo
            if photo is None:  # the strategy gave this rank another's view
                photo = cameras.photo_of(view.camera)
            colors, photo = view.image.colors, view.crop(photo)
            if view.strip is not None:  # the neighbours' rows count on their ranks
                colors, photo = (t[view.strip.first : view.strip.last] for t in (colors, photo))
            total = total + (colors * attribution(colors, photo)).sum()
        projected = [projection.colors for projection, _ in rendered.projections]
        if not projected:
            continue
        sums = torch.autograd.grad(total, projected, allow_unused=True)
        for (projection, _), found in zip(rendered.projections, sums, strict=True):
            if found is not None:  # None where no pixel depends on any Gaussian
                scores.add(projection.ids, found)
    # Summed as statistics of steps are: replicas saw different views.
    summed = parallel.reduce_statistics(Statistics(scores.error, scores.weight))
    return Scores(summed.grad_sum, summed.count)
