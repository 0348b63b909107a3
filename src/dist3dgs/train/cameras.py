"""Views of a packed scene as the renderer wants them."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..scenes.pack import PackedScene
from ..splats.camera import Camera


class Cameras:
    """Cameras by view index; photographs stay in the memory map (CPU) or on the device once seen (CUDA).

    On CUDA photographs are kept on the device as long as all of them fit in a quarter of its memory.
    """

    def __init__(self, scene: PackedScene, device: torch.device) -> None:
        self.scene, self.device = scene, device
        self._cache: dict[tuple[int, bool], Camera] = {}
        self._keeps = device.type == "cpu" or self._fits(device)

    def _fits(self, device: torch.device) -> bool:
        num_bytes = sum(int(w) * int(h) * 3 for w, h in self.scene.sizes)
        return num_bytes < torch.cuda.get_device_properties(device).total_memory / 4

    def get(self, view: int, *, photo: bool = True) -> Camera:
        """Camera of a view; without its photograph where another rank renders it."""
        key = (view, photo)
        if key in self._cache:
            return self._cache[key]
        camera = (
            self._bare(view) if not photo else replace(self.get(view, photo=False), photo=self._photo(view))
        )
        if self._keeps or not photo:
            self._cache[key] = camera
        return camera

    def _bare(self, view: int) -> Camera:
        scene = self.scene
        width, height = scene.sizes[view]
        return Camera(
            name=scene.view_names[view],
            viewmat=torch.tensor(scene.viewmats[view], dtype=torch.float32, device=self.device),
            K=torch.tensor(scene.Ks[view], dtype=torch.float32, device=self.device),
            width=int(width),
            height=int(height),
            photo=None,
        )

    def _photo(self, view: int) -> Tensor:
        with warnings.catch_warnings():
            # The map is read-only and torch has no read-only tensors; nobody writes to photographs.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(self.scene.image(view)).to(self.device, non_blocking=True)
