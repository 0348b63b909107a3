"""dist3dgs: scaling studies of distributed 3D Gaussian Splatting training, from photographs to a report."""

__version__ = "0.1.0"
