"""Training loop of one rank."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.models import RunSpec
from ..config.naming import point_folder
from ..errors import UserError
from ..parallel.strategy import Parallel
from ..runs import resume
from ..runs.events import EventWriter
from ..scenes.pack import PackedScene
from ..splats import densify
from ..splats.camera import Camera
from ..splats.densify.lineage import founders
from ..splats.export import write_ply
from ..splats.gaussians import canonical_order, initial_gaussians, thinned
from ..splats.host_copy import HostCopy
from ..splats.loss import l1_ssim_loss
from . import checkpoint, part_results
from .checkpoint import Header
from .data import SceneCameras, ViewSampler
from .densification import decide
from .evaluate import evaluate
from .fault_handling import StopPoll
from .model import LINEAGE, Model
from .progress import ProgressReporter
from .rng import background, generator
from .schedules import AdamRule, Schedule, learning_rates
from .timing import Clock


class Diverged(RuntimeError):
    """The loss is NaN or infinite."""


@dataclass
class _Logging:
    """A step's line of the log, whose loss is on its way to the host."""

    step: int
    loss: HostCopy
    num_gaussians: int
    step_s: float
    """Mean since the line before, seconds."""


class Trainer:
    """State of one rank; `run` is the whole training."""

    def __init__(
        self,
        spec: RunSpec,
        scene: PackedScene,
        out: Path,
        parallel: Parallel,
        device: torch.device,
        events: EventWriter,
        clock: Clock,
        resume_from: Path | None = None,
    ) -> None:
        """resume_from: a checkpoint to start from where `out` has none, of any layout with the same settings."""
        self.spec, self.scene, self.out = spec, scene, Path(out)
        self.parallel, self.device, self.events, self.clock = parallel, device, events, clock
        self.comm = parallel.comm
        self.comm.stage = clock.stage
        self.train = spec.train
        self.schedule = Schedule(spec)
        self.rule = AdamRule(spec.global_batch, spec.train.optimizer == "selective")
        self.cameras = SceneCameras(scene, device)
        self.order = ViewSampler(scene.train_ids, spec.seed, self.comm.world_size, spec.global_batch)
        self.own_order: ViewSampler | None = None
        self.identity, self.resume_from = resume.identity(spec, scene.digest), resume_from
        self.saver = checkpoint.Saver(self.out, self.identity, self.train.keep_checkpoints)
        self.progress = ProgressReporter(spec.last_step, self.out, enabled=self.comm.rank == 0, spec=spec)
        self.lpips = _lpips(device) if spec.train.lpips else None
        self.stop_requested: str | None = None
        self.poll, self.stopping = StopPoll(self.comm, device), False
        self.step, self.evaluated = 0, True
        #: On a GPU losses and stop requests are read a step later: the host then waits for nothing.
        self.defers = device.type == "cuda"
        self._logging: _Logging | None = None
        if not len(scene.train_ids) or not len(scene.test_ids):
            raise UserError(
                f"scene {scene.name}: {scene.num_views} views leave none to train on or none to hold out"
            )
        parallel.check_scene(len(scene.points), len(scene.train_ids))

    # ---------------------------------------------------------------- the run

    def run(self) -> bool:
        """Train to the end or to a requested stop; True if it finished."""
        with self.clock.enter("init"):
            self.start()
        with self.clock.enter("step"):
            if not self.evaluated:
                self._evaluate_and_save()
            while self.step < self.spec.last_step and not self.told_to_stop():
                self._advance(self.step + 1)
                self.one_step(self.step + 1)
                self.after_step()
            self.finish_log()
            if self.stopping:
                self._save_checkpoint()
                self._finish_saving()
                self.events("end", status="stopped", step=self.step)
                return False
        self._finish_saving()
        if not self.spec.part:
            with self.clock.enter("export"):
                self._export()
        self.progress.close()
        return True

    def start(self) -> None:
        """Start from the newest good checkpoint, else from what the jobs before this one left, else from the scene's
        points.

        Raises:
            UserError: the model may need more Gaussians per rank than there is room for, or a job before this one has
                left no result.
        """
        self._check_room()
        found = resumed = self._newest_checkpoint() if self.comm.rank == 0 else None
        if found is None and self.spec.needs and self.comm.rank == 0:
            found = part_results.read(self.spec, self.scene.digest, point_folder(self.out))
        header: Header = self.comm.gather_objects(found.header if found else Header())[0]
        self._agree_on_lpips()
        self._begin(header, found.state if found else {})
        rows = self.parallel.distribute((lambda: found.rows) if found else self._initial, header.shards)
        self.model = Model(self.parallel, self.rule, rows, header.adam_steps)
        self.step, self.clock.train_s, self.evaluated = header.step, header.elapsed_s, header.evaluated
        if resumed is not None:
            self.events("resume", step=header.step)
        elif header.step and self.comm.rank == 0:
            kept = {"gaussians": header.shards} if len(header.shards) > 1 else {}
            self.events("blocks", step=self.step, phase=self.parallel.phase, **kept)
        self._sample_own_views()
        self._compare_digests()

    def _check_room(self) -> None:
        d, room = self.train.densify, self.parallel.max_rows
        at_start = min(len(self.scene.points), d.max_gaussians)
        most = at_start if d.kind == "none" else d.max_gaussians
        needed = self.parallel.rows_needed(most, at_start)
        if room is None or needed <= room:
            return
        holders = -(-most // needed)
        among = f"each of {holders} ranks that share them" if holders > 1 else "a rank that holds all of them"
        if self.spec.parallel.kind == "blocks" and needed == at_start:
            among = f"every rank until they are cut into blocks (it starts from {at_start:,})"
        raise UserError(
            f"hardware.max_gaussians_per_rank is {room:,}, but {most:,} Gaussians need {needed:,} on {among} "
            f"(kind: {self.spec.parallel.kind}); use a strategy of kind sharded on {-(-most // room)} ranks or more, "
            "or lower train.densify.max_gaussians"
        )

    def _begin(self, header: Header, state: dict[str, Tensor]) -> None:
        """Take up the strategy's phase where the checkpoint left it."""
        last = header.step == self.schedule.num_steps
        if not self.parallel.begin(self.schedule.phase(header.step + last), state) and self.comm.rank == 0:
            self._warn(
                f"the checkpoint of step {header.step} was not made by {self.comm.world_size} ranks in this phase: "
                "blocks are cut anew from its model, and the run is not the one that it was stopped in"
            )

    def _advance(self, step: int) -> None:
        """Go on to the phase of the strategy that the step is in."""
        phase = self.schedule.phase(step)
        if phase == self.parallel.phase:
            return
        with self.clock.enter("densify"):
            started = time.perf_counter()
            facts = self.model.advance(phase, self._training_cameras(), self.train.densify.max_gaussians)
            self._sample_own_views()
            if self.comm.rank != 0:
                return
            elapsed = round(time.perf_counter() - started, 6)
            self.events("blocks", step=self.step, phase=phase, s=elapsed, **facts)
            for rank, views in enumerate(facts.get("views", [])):
                if not views:
                    self._warn(
                        f"no training view sees enough of block {rank} (`parallel.view_threshold`): its "
                        f"{facts['gaussians'][rank]:,} Gaussians stay as the coarse model has them"
                    )

    def _training_cameras(self) -> Iterator[Camera]:
        for view in self.scene.train_ids:
            self.clock.pulse(step=self.step)
            yield self.cameras.get(int(view), photo=False)

    def _sample_own_views(self) -> None:
        """Sample this rank's batches from the views of its block, if the strategy gives it one."""
        views, self.own_order = self.parallel.views, None
        if views is not None:
            per_rank = self.spec.global_batch // self.spec.num_blocks
            self.own_order = ViewSampler(self.scene.train_ids[views], self.spec.seed, 1, per_rank)

    def _batch(self, step: int) -> list[list[int]]:
        """Return the views of a step by rank; where ranks train on views of their own, this rank's alone."""
        if self.own_order is None:
            return self.order.batch(step)
        mine = self.own_order.batch(step)[0] if len(self.own_order.train_ids) else []
        return [mine if r == self.comm.rank else [] for r in range(self.comm.world_size)]

    def _initial(self) -> dict[str, Tensor]:
        points = torch.from_numpy(np.array(self.scene.points, dtype=np.float32))
        colors = torch.from_numpy(np.array(self.scene.colors)).float() / 255
        order = canonical_order(points)
        most = self.train.densify.max_gaussians
        if len(order) > most:
            order = order[thinned(len(order), most, generator(self.spec.seed, 0, "thin"))]
            if self.comm.rank == 0:
                self.events("thin", num_points=len(points), num_gaussians=most)
                self._warn(
                    f"the scene has {len(points):,} points: training starts from {most:,} of them, drawn with the seed "
                    "(`train.densify.max_gaussians`)"
                )
        parameters = initial_gaussians(
            points[order].to(self.device),
            colors[order].to(self.device),
            init_opacity=self.train.init_opacity,
            init_scale=self.train.init_scale,
        )
        return {**parameters, LINEAGE: founders(len(order), self.device)}

    def one_step(self, step: int) -> None:
        clock, n, gaussians = self.clock, self.spec.global_batch, self.model.gaussians
        clock.start_step(step)
        clock.pulse(step=step)
        degree = self.schedule.sh_degree(step)
        mine = self.comm.rank
        cameras = [
            [self.cameras.get(v, photo=r == mine) for v in part] for r, part in enumerate(self._batch(step))
        ]
        self.cameras.prefetch(self._batch(step + 1)[mine])
        behind = background(self.spec, step, self.device)
        clock.part("data")
        track = self.schedule.tracks(step)
        rendered = self.parallel.render(gaussians, cameras, sh_degree=degree, background=behind, track=track)
        clock.part("render")
        loss = rendered.anchor
        for view in rendered.views:
            photo = view.camera.photo
            if photo is None:  # the strategy gave this rank another's view
                photo = self.cameras.photo_of(view.camera)
            strip = () if view.strip is None else (view.strip,)
            part = l1_ssim_loss(view.image.colors, view.crop(photo), self.train.ssim_weight, *strip)
            loss = loss + part / n
        clock.part("loss")
        loss.backward()
        clock.part("backward")
        rates = learning_rates(self.train.lr, self.scene.extent, self.rule, step / self.schedule.num_steps)
        reduced = self.parallel.reduce_gradients(gaussians, degree)
        if self.train.densify.kind == "mcmc":
            reduced = self._with_penalties(reduced)
        ready = clock.between(reduced, "communicate", "optimise")
        self.model.optimizer.step(rates, ready)
        clock.part("optimise")
        self.parallel.share_updates(gaussians, degree)
        clock.part("communicate")
        if track:
            for projection, camera in rendered.projections:
                self.model.statistics.add(projection, camera, 1 / n, self.train.densify.absgrad)
        if self.train.densify.kind == "mcmc":
            densify.add_noise(
                gaussians,
                self.model.lineage,
                rates["means"],
                self.train.densify,
                seed=self.spec.seed,
                step=step,
            )
        clock.part("statistics")
        if self.parallel.averages(step):
            self.model.synchronise()
            clock.part("communicate")
        clock.end_step()
        self.step, self.loss = step, loss.detach()

    def after_step(self) -> None:
        """Densify, log, compare digests, evaluate and save a checkpoint, each where it is due."""
        step, s = self.step, self.schedule
        self.finish_log()
        if self.saver.failed:
            self._finish_saving()
        if s.densifies(step):
            with self.clock.enter("densify"):
                self._densify()
        if s.resets_opacity(step) and not self.parallel.idle:
            self.model.synchronise()
            self.model.alter(
                densify.reset_opacities(self.model.gaussians, self.model.lineage, self.train.densify)
            )
        last = step == self.spec.last_step
        if last:
            self._advance(step + 1)
        if last or s.every(self.train.log_every, step):
            self.log()
        if last or s.every(self.train.digest_every, step):
            self.finish_log()
            self._compare_digests()
        self._evaluate_and_save()

    def _evaluate_and_save(self) -> None:
        """Evaluate and save a checkpoint where due; a run resumed from a stopped evaluation starts with this."""
        step, s = self.step, self.schedule
        last = step == s.num_steps and not self.spec.part
        # A job that trains one block has no model of the whole scene to evaluate.
        if last or (s.every(self.train.eval_every, step) and self.spec.block is None):
            self.finish_log()
            with self.clock.enter("evaluate"):
                self.evaluated = self._evaluate(last)
        last = step == self.spec.last_step
        if not self.stopping and (last or s.every(self.train.checkpoint_every, step)):
            self.finish_log()
            self._save_checkpoint()

    # ---------------------------------------------------------------- parts of the training

    @torch.no_grad()
    def _with_penalties(self, reduced: Iterator[str]) -> Iterator[str]:
        """Add the gradients of MCMC's penalties, means over all Gaussians, to the sums over ranks.

        Not before: a share of each rank's would be rounded with its views' gradients, differently on each number of
        ranks.
        """
        d, n = self.train.densify, self.parallel.penalised_gaussians
        for name in reduced:
            parameter = self.model.gaussians[name]
            if name == "opacities":
                opacity = torch.sigmoid(parameter)
                parameter.grad.add_(opacity * (1 - opacity), alpha=d.opacity_reg / n)  # type: ignore[union-attr]
            elif name == "scales":
                parameter.grad.add_(torch.exp(parameter), alpha=d.scale_reg / (3 * n))  # type: ignore[union-attr]
            yield name

    def _densify(self) -> None:
        started = time.perf_counter()
        self.model.synchronise()
        change = decide(
            self.spec, self.scene, self.schedule, self.parallel, self.model, self.cameras, self.step
        )
        if self.parallel.idle:
            change = densify.Change.none(self.model.gaussians, self.model.lineage)
        self.model.densify(change)
        counts = self.parallel.sum_counts(change.counts)
        if self.comm.rank == 0:
            fields = {
                **counts,
                "num_gaussians": self.parallel.total_gaussians,
                "shards": self.parallel.shards,
            }
            self.events("densify", step=self.step, s=round(time.perf_counter() - started, 6), **fields)

    def _evaluate(self, last: bool) -> bool:
        """Evaluate; False if the ranks were told to stop and left it for a checkpoint."""
        self.model.synchronise()
        views = self.scene.test_ids
        if not last and self.train.eval_views:
            views = views[: self.train.eval_views]
        quality = evaluate(
            self.parallel,
            self.model.gaussians,
            self.cameras,
            views,
            sh_degree=self.schedule.sh_degree(self.step),
            background=background(self.spec, 0, self.device),
            lpips=self.lpips,
            renders=self.out / "renders" if last else None,
            abandon=self._leave_evaluation,
            along_seams=last,
        )
        if quality is None:
            return False
        total = self.parallel.total_gaussians
        if self.comm.rank == 0:
            fields = {"elapsed_s": round(self.clock.train_s, 4), "num_gaussians": total, **quality}
            self.events("eval", step=self.step, **fields)
            self.progress.evaluated(self.step, quality)
        return True

    def _leave_evaluation(self, views_done: int) -> bool:
        self.clock.pulse(step=self.step, views=views_done)
        self.stopping = self.poll.agree(self.step, self.stop_requested is not None)
        return self.stopping

    def log(self) -> None:
        """Begin to log the step's loss, summed over the ranks; `finish_log` ends it. Collective."""
        if not self.defers:
            self.clock.drain()
        loss = self.loss.clone()
        self.comm.all_reduce(loss, name="all_reduce(loss)")
        recent = self.clock.step_s[-self.schedule.steps(self.train.log_every) :]
        self._logging = _Logging(
            self.step, HostCopy(loss), self.parallel.total_gaussians, float(np.mean(recent))
        )
        if not self.defers:
            self.finish_log()

    def finish_log(self) -> None:
        """Log the loss of which the copy to the host was begun. Raises `Diverged` if it is not finite."""
        if self._logging is None:
            return
        log, self._logging = self._logging, None
        if log.step == self.step:  # read at once, it waits for the device
            self.clock.drain()
        (value,) = log.loss.read()
        if not np.isfinite(value):
            raise Diverged(f"loss is {value} at step {log.step}; lower the learning rates (`train.lr`)")
        if self.comm.rank == 0:
            images, degree = log.step * self.spec.global_batch, self.schedule.sh_degree(log.step)
            fields = {"num_gaussians": log.num_gaussians, "images": images, "sh_degree": degree}
            self.events("step", step=log.step, loss=value, step_s=log.step_s, **fields)
            self.progress.stepped(log.step, value, log.num_gaussians, log.step_s)

    def _compare_digests(self) -> None:
        self.clock.drain()
        started = time.perf_counter()
        self.model.synchronise()
        digests = self.parallel.compare_digests(self.model.gaussians)
        if self.comm.rank == 0:
            elapsed = round(time.perf_counter() - started, 6)
            self.events("digest", step=self.step, digests=digests, s=elapsed)

    def _export(self) -> None:
        parameters = self.parallel.whole(dict(self.model.gaussians))
        if parameters is not None:
            write_ply(self.out / "point_cloud.ply", parameters)
            self.events("export", path="point_cloud.ply", num_gaussians=len(parameters["means"]))

    # ---------------------------------------------------------------- checkpoints and stopping

    def told_to_stop(self) -> bool:
        """Return True if any rank was told to stop. Collective where the poll is due."""
        if not self.stopping:
            self.stopping = self.poll.answer()
        if not self.stopping and self.poll.due(self.step):
            waits = not self.defers or self.poll.slow
            if waits:
                self.clock.drain()
            self.poll.ask(self.step, self.stop_requested is not None)
            if waits:
                self.stopping = self.poll.answer()
        return self.stopping

    def _save_checkpoint(self) -> None:
        """Gather the model and begin to write it; `_finish_saving` waits for the file."""
        with self.clock.enter("checkpoint"):
            started, step = time.perf_counter(), self.step
            self.parallel.reset_error_feedback()
            self.model.synchronise()
            rows, state = self.model.whole(), self.parallel.state(self.model.rows())
            if rows is None:
                return
            header = Header(
                step=step,
                elapsed_s=self.clock.train_s,
                adam_steps=self.model.optimizer.steps(),
                shards=self.parallel.shards,
                evaluated=self.evaluated,
            )

            def written(path: Path) -> None:
                elapsed = round(time.perf_counter() - started, 6)
                self.events("checkpoint", step=step, path=path.name, s=elapsed)

            self.saver.start(checkpoint.Checkpoint(header, rows, state), written)

    def _finish_saving(self) -> None:
        """Wait for the checkpoint that is being written. Raises its error. Collective where it does not raise."""
        with self.clock.enter("checkpoint"):
            self.saver.wait()
            self.comm.barrier()

    def _newest_checkpoint(self) -> checkpoint.Checkpoint | None:
        """Load this run's newest checkpoint, else the one it was told to start from."""
        own = checkpoint.newest(self.out, self.identity, self.train.keep_checkpoints, self._warn)
        if own is not None or self.resume_from is None:
            return own
        try:
            return checkpoint.load(self.resume_from, self.identity)
        except ValueError as e:
            raise UserError(f"{self.resume_from}: cannot be resumed: {e}") from None

    def _agree_on_lpips(self) -> None:
        """Evaluate LPIPS on all ranks or on none: with weights on some nodes only, the mean would cover a part of the
        views.
        """
        have = self.comm.gather_objects(self.lpips is not None)
        if all(have):
            return
        self.lpips = None
        if any(have) and self.comm.rank == 0:
            missing = ", ".join(str(r) for r, has in enumerate(have) if not has)
            self._warn(f"LPIPS is not evaluated: its weights are not on the nodes of ranks {missing}")

    def _warn(self, message: str) -> None:
        self.events("warning", message=message)
        print(f"WARNING: {message}", flush=True)

    def summary(self) -> dict[str, Any]:
        """Return the fields of this rank's `timing` event."""
        return {**self.clock.summary(), "images": self.step * self.spec.global_batch}


def _lpips(device: torch.device) -> Any:
    from ..splats.lpips import load_lpips

    return load_lpips(device)
