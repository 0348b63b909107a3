"""The window and constants of SSIM as in the 3DGS paper."""

import math

RADIUS = 5  # 11 x 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
_RAW = [math.exp(-(i**2) / (2 * SIGMA**2)) for i in range(-RADIUS, RADIUS + 1)]
WEIGHTS = [w / sum(_RAW) for w in _RAW]
