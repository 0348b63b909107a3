"""The training data of a rank: view order, cameras and photographs."""

import functools
import itertools
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..scenes.pack import PackedScene
from ..splats.camera import Camera


class ViewSampler:
    """Epochs of shuffled training views, cut into global batches and these into the ranks' parts.

    In an epoch every view is seen once by one rank, and no view comes twice in a step, even one that spans the end of
    an epoch (unless an epoch has less than two batches). The order is a function of (seed, step, rank) alone, so a
    resumed run sees the same views as an uninterrupted one.
    """

    def __init__(self, train_ids: np.ndarray, seed: int, world_size: int, global_batch: int) -> None:
        """train_ids: int64 [T], indices of the training views in the packed scene."""
        self.train_ids, self.seed = np.asarray(train_ids), seed
        self.world_size, self.global_batch = world_size, global_batch
        self._epoch, self._order = -1, self.train_ids

    def batch(self, step: int) -> list[list[int]]:
        """Return the view indices of 1-based `step`, one list per rank, as long as each other but for one."""
        first = (step - 1) * self.global_batch
        views = [self._view(first + i) for i in range(self.global_batch)]
        cuts = [r * self.global_batch // self.world_size for r in range(self.world_size + 1)]
        return [views[a:b] for a, b in itertools.pairwise(cuts)]

    def _view(self, position: int) -> int:
        epoch, index = divmod(position, len(self.train_ids))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._epoch_order(epoch)
        return int(self._order[index])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """Shuffle an epoch without repeating a view in the batch that straddles its boundary, int64 [T].

        Repeated views are swapped with views from the middle, which share a step with neither neighbour. The end of
        the epoch stays as it was shuffled, so the order depends only on this epoch and the one before.
        """
        order, num_views, batch = self._shuffled(epoch), len(self.train_ids), self.global_batch
        head = -epoch * num_views % batch
        if head == 0 or num_views < 2 * batch:
            return order
        seen = np.isin(order, self._shuffled(epoch - 1)[head - batch :])
        twice = np.flatnonzero(seen[:head])
        middle = np.arange(head, num_views - (epoch + 1) * num_views % batch)
        free = middle[~seen[middle]][: len(twice)]
        order[twice], order[free] = order[free], order[twice]
        return order

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.train_ids)


class SceneCameras:
    """Cameras by view index; photographs stay in the memory map (CPU) or on the device once used (CUDA).

    On CUDA photographs are kept on the device if all of them fit in a quarter of its memory. Call `prefetch` for those
    that come next: a step would wait for the disk and the copy, in the first epoch or, where they do not fit, in each.
    """

    def __init__(self, scene: PackedScene, device: torch.device, keep: bool | None = None) -> None:
        """keep: photographs once used; None for where they fit."""
        self.scene, self.device = scene, device
        self._cache: dict[tuple[int, bool], Camera] = {}
        self._views = {name: view for view, name in enumerate(scene.view_names)}
        self._keeps = (device.type == "cpu" or self._fits(device)) if keep is None else keep
        on_gpu = device.type == "cuda"
        # A new thread is on GPU 0, and going back there after a copy would take memory of it: a context of each rank.
        begin = functools.partial(torch.cuda.set_device, device) if on_gpu else None
        self._reader = ThreadPoolExecutor(1, "photographs", begin)
        self._coming: dict[int, Future[tuple[Tensor, torch.cuda.Event | None]]] = {}
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def _fits(self, device: torch.device) -> bool:
        num_bytes = sum(int(w) * int(h) * 3 for w, h in self.scene.sizes)
        return num_bytes < torch.cuda.get_device_properties(device).total_memory / 4

    def get(self, view: int, *, photo: bool = True) -> Camera:
        """Return the camera of a view; without its photograph if another rank renders it."""
        key = (view, photo)
        if key in self._cache:
            return self._cache[key]
        camera = (
            self._bare(view) if not photo else replace(self.get(view, photo=False), photo=self._photo(view))
        )
        if self._keeps or not photo:
            self._cache[key] = camera
        return camera

    def photo_of(self, camera: Camera) -> Tensor:
        """Return the photograph, uint8 [H, W, 3], of a camera that came without it."""
        photo = self.get(self._views[camera.name]).photo
        assert photo is not None
        return photo

    def prefetch(self, views: Sequence[int]) -> None:
        """Begin to copy the photographs of the next step to the device, but for those that are there.

        A thread reads them into pinned memory, from where they are copied on a stream of their own. Those of an earlier
        call that were not used are dropped.
        """
        if self._keeps and self.device.type == "cpu":  # used where they lie, in the memory map
            return
        absent = [v for v in dict.fromkeys(views) if (v, True) not in self._cache]
        self._coming = {v: self._coming.get(v) or self._reader.submit(self._read, v) for v in absent}

    def _bare(self, view: int) -> Camera:
        viewmats, Ks = self._poses
        width, height = self.scene.sizes[view]
        return Camera(
            name=self.scene.view_names[view],
            viewmat=viewmats[view],
            K=Ks[view],
            width=int(width),
            height=int(height),
            photo=None,
        )

    @functools.cached_property
    def _poses(self) -> tuple[Tensor, Tensor]:
        """World to camera [V, 4, 4] and intrinsics [V, 3, 3] of all views, float32: one copy to the device each."""
        scene = self.scene
        viewmats = torch.tensor(scene.viewmats, dtype=torch.float32, device=self.device)
        return viewmats, torch.tensor(scene.Ks, dtype=torch.float32, device=self.device)

    def _photo(self, view: int) -> Tensor:
        if (coming := self._coming.pop(view, None)) is None:
            return self._pixels(view).to(self.device, non_blocking=True)
        pixels, copied = coming.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copied)
            pixels.record_stream(stream)
        return pixels

    def _read(self, view: int) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return a photograph on the device, and the event after its copy (None on a CPU). Called in a thread."""
        pixels = self._pixels(view)
        if self._stream is None:
            return pixels.clone(), None
        pinned = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True).copy_(pixels)
        with torch.cuda.stream(self._stream):
            return pinned.to(self.device, non_blocking=True), self._stream.record_event()

    def _pixels(self, view: int) -> Tensor:
        with warnings.catch_warnings():
            # The map is read-only and torch has no read-only tensors; nobody writes to photographs.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(self.scene.image(view))
