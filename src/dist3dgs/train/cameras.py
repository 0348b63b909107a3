"""Views of a packed scene as the renderer wants them."""

import warnings

import torch

from ..scenes.pack import PackedScene
from ..splats.camera import Camera


class Cameras:
    """Cameras by view index; photographs stay in the memory map (CPU) or on the device once seen (CUDA).

    On CUDA photographs are kept on the device as long as all of them fit in a quarter of its memory.
    """

    def __init__(self, scene: PackedScene, device: torch.device) -> None:
        self.scene, self.device = scene, device
        self._cache: dict[int, Camera] = {}
        self._keeps = device.type == "cpu" or self._fits(device)

    def _fits(self, device: torch.device) -> bool:
        num_bytes = sum(int(w) * int(h) * 3 for w, h in self.scene.sizes)
        return num_bytes < torch.cuda.get_device_properties(device).total_memory / 4

    def __getitem__(self, view: int) -> Camera:
        if view in self._cache:
            return self._cache[view]
        scene = self.scene
        image = scene.image(view)
        with warnings.catch_warnings():
            # The map is read-only and torch has no read-only tensors; nobody writes to photographs.
            warnings.simplefilter("ignore", UserWarning)
            photo = torch.from_numpy(image).to(self.device, non_blocking=True)
        camera = Camera(
            name=scene.view_names[view],
            viewmat=torch.as_tensor(scene.viewmats[view], dtype=torch.float32, device=self.device),
            K=torch.as_tensor(scene.Ks[view], dtype=torch.float32, device=self.device),
            width=image.shape[1],
            height=image.shape[0],
            photo=photo,
        )
        if self._keeps:
            self._cache[view] = camera
        return camera
