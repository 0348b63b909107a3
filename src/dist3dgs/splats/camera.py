"""A pinhole camera and, where there is one, its photograph."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One view of the packed scene."""

    name: str
    viewmat: Tensor
    """[4,4] world to camera, OpenCV axes."""
    K: Tensor
    """[3,3] intrinsics, px."""
    width: int
    height: int
    photo: Tensor | None = None
    """uint8 [H,W,3]"""
