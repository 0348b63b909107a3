"""Procedural textures of the built-in scene: painted once, sampled through a mip pyramid.

Structure from motion needs detail at every scale and no two patches alike, so every painter mixes random per-tile
colours with noise over many octaves. Albedo is linear RGB, float32, 0..1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32 throughout; numpy widens the type, not the values


class Texture:
    """A tiling RGB texture with a mip pyramid, addressed in metres.

    Args:
        albedo: [H, W, 3] linear RGB.
        width_m, height_m: size of one repeat in the scene, metres.
    """

    def __init__(self, albedo: NDArray[np.floating], width_m: float, height_m: float) -> None:
        self.width_m, self.height_m = width_m, height_m
        level = np.clip(albedo, 0, 1).astype(np.float32)
        levels = [level]
        while min(level.shape[:2]) >= 8:
            level = 0.25 * (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2])
            levels.append(level)
        self.texel_m = width_m / albedo.shape[1]
        self._widths = np.array([x.shape[1] for x in levels])
        self._heights = np.array([x.shape[0] for x in levels])
        self._starts = np.concatenate([[0], np.cumsum(self._widths * self._heights)[:-1]])
        self._texels = np.concatenate([x.reshape(-1, 3) for x in levels])

    def sample(self, u_m: Floats, v_m: Floats, footprint_m: Floats) -> Floats:
        """Look up colours bilinearly in the mip level whose texels are as large as the footprint.

        u_m, v_m, footprint_m: float32 [N], metres. Returns float32 [N, 3], linear RGB.
        """
        level = np.log2(np.maximum(footprint_m / self.texel_m, 1.0)).astype(np.int64)
        level = np.minimum(level, len(self._widths) - 1)
        width, height, start = self._widths[level], self._heights[level], self._starts[level]
        x = u_m * (width / self.width_m).astype(np.float32) - 0.5
        y = v_m * (height / self.height_m).astype(np.float32) - 0.5
        x0, y0 = np.floor(x), np.floor(y)
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        x0i, y0i = x0.astype(np.int64) % width, y0.astype(np.int64) % height
        x1i, y1i = (x0i + 1) % width, (y0i + 1) % height
        row0, row1 = start + y0i * width, start + y1i * width
        top = self._texels[row0 + x0i] * (1 - fx) + self._texels[row0 + x1i] * fx
        bottom = self._texels[row1 + x0i] * (1 - fx) + self._texels[row1 + x1i] * fx
        return top * (1 - fy) + bottom * fy


def spectral_noise(
    rng: np.random.Generator, height: int, width: int, slope: float, stretch: float = 1.0
) -> Floats:
    """Make tiling Gaussian noise, float32 [height, width], with amplitude ~ 1/frequency^slope and unit variance.

    stretch: above 1 draws it out along x.
    """
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.sqrt((fx * stretch) ** 2 + fy**2)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**slope
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return (noise / noise.std()).astype(np.float32)


def cells(
    rng: np.random.Generator, height: int, width: int, rows: int, columns: int, jitter: float
) -> tuple[NDArray[np.int64], Floats]:
    """Make tiling jittered Voronoi cells (Worley noise, "A cellular texture basis function", 1996).

    jitter: 0 is a regular grid, 1 is irregular paving. Returns the cell number of each texel, int64 [height, width],
    and its distance to the border in cell units, float32 [height, width].
    """
    sites = (0.5 + jitter * (rng.random((rows, columns, 2)) - 0.5)).astype(np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5) * rows / height)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) * columns / width)[None, :]
    row, column = y[:, 0].astype(np.int64), x[0].astype(np.int64)
    number = np.arange(rows * columns).reshape(rows, columns)
    nearest = np.full((height, width), np.inf, np.float32)
    second = nearest.copy()
    cell = np.zeros((height, width), np.int64)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            pick = np.ix_((row + dr) % rows, (column + dc) % columns)
            dy = sites[..., 0][pick] + (row + dr).astype(np.float32)[:, None] - y
            dx = sites[..., 1][pick] + (column + dc).astype(np.float32)[None, :] - x
            distance = dx * dx + dy * dy
            closer = distance < nearest
            np.minimum(second, np.where(closer, nearest, distance), out=second)
            np.copyto(cell, number[pick], where=closer)
            np.minimum(nearest, distance, out=nearest)
    return cell, np.sqrt(second) - np.sqrt(nearest)


def palette(
    rng: np.random.Generator, num: int, colours: list[tuple[float, float, float]], spread: float
) -> Floats:
    """Pick `num` sRGB `colours` at random with a brightness spread; return linear RGB, float32 [num, 3]."""
    picks = np.array(colours)[rng.integers(len(colours), size=num)]
    picks = np.clip(
        picks * (1 + spread * rng.standard_normal((num, 1))) + 0.02 * rng.standard_normal((num, 3)), 0, 1
    )
    return (picks**2.2).astype(np.float32)


def weathered(rng: np.random.Generator, albedo: Floats, strength: float) -> Floats:
    """Add stains, grain and specks, detail at every scale, to `albedo`, float32 [H, W, 3]; return the same shape."""
    height, width = albedo.shape[:2]
    stains = spectral_noise(rng, height, width, 1.6)
    grain = spectral_noise(rng, height, width, 0.9)
    specks = spectral_noise(rng, height, width, 0.6)
    shade = 1 + strength * (0.5 * stains + 0.5 * grain) - 0.45 * (specks > 2.2) + 0.35 * (specks < -2.4)
    return (albedo * np.clip(shade, 0.15, 1.9)[..., None]).astype(np.float32)


def paving(
    rng: np.random.Generator, size: int, rows: int, colours: list, *, jitter=0.75, grout=0.07
) -> Floats:
    """Paint irregular paving stones with dark joints, each of another colour; float32 [size, size, 3]."""
    cell, border = cells(rng, size, size, rows, rows, jitter)
    stones = palette(rng, rows * rows, colours, 0.18)[cell]
    joint = np.clip(border / grout, 0.25, 1)[..., None]
    return weathered(rng, stones * joint, 0.28)


def bricks(
    rng: np.random.Generator, height: int, width: int, rows: int, columns: int, colours: list, *, plaster=0.0
) -> Floats:
    """Paint running-bond bricks with mortar, each of another colour; float32 [height, width, 3].

    plaster: share of the wall that it covers, 0..1.
    """
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) * rows / height + np.zeros(
        (1, width), np.float32
    )
    row = y.astype(np.int64)
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5) * columns / width + 0.5 * (row % 2)
    column = x.astype(np.int64) % columns
    aspect = (width / columns) / (height / rows)
    edge = np.minimum(np.minimum(y % 1, 1 - y % 1), np.minimum(x % 1, 1 - x % 1) * aspect)
    mortar = np.clip(edge / 0.07, 0, 1)[..., None]
    colour = palette(rng, rows * columns, colours, 0.2)[row * columns + column]
    albedo = colour * mortar + np.float32(0.35) * (1 - mortar)
    if plaster > 0:
        level = spectral_noise(rng, height, width, 1.5)
        covered = np.clip((level - np.quantile(level, 1 - plaster)) * 12, 0, 1)[..., None]
        tint = spectral_noise(rng, height, width, 1.7)[..., None]
        coat = np.array([0.70, 0.55, 0.36], np.float32) * (1 + 0.10 * tint)
        albedo = albedo * (1 - covered) + coat * covered
    return weathered(rng, albedo, 0.22)


def planks(rng: np.random.Generator, size: int, num: int, colours: list) -> Floats:
    """Paint wooden boards along x with grain, gaps and knots; float32 [size, size, 3]."""
    row = np.arange(size) * num // size
    boards = palette(rng, num, colours, 0.2)[row][:, None, :]
    grain = spectral_noise(rng, size, size, 1.1, stretch=9.0)
    knots = spectral_noise(rng, size, size, 1.4, stretch=2.0)
    albedo = boards * np.clip(1 + 0.30 * grain - 0.55 * (knots > 2.0), 0.2, 1.8)[..., None]
    place = (np.arange(size) * num / size) % 1
    gap = np.clip(np.minimum(place, 1 - place) / 0.04, 0.2, 1)[:, None, None]
    return weathered(rng, (albedo * gap).astype(np.float32), 0.15)


def mosaic(
    rng: np.random.Generator, height: int, width: int, rows: int, columns: int, colours: list
) -> Floats:
    """Paint small glazed tiles of random colours; float32 [height, width, 3]."""
    cell, border = cells(rng, height, width, rows, columns, 0.35)
    tiles = palette(rng, rows * columns, colours, 0.15)[cell]
    return weathered(rng, tiles * np.clip(border / 0.12, 0.3, 1)[..., None], 0.12)


def kilim(rng: np.random.Generator, size: int, colours: list) -> Floats:
    """Paint a woven rug: nested diamonds whose bands change colour at random, over thread noise; float32 [size, size,
    3].
    """
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    tooth = np.floor(np.abs((x * 12) % 2 - 1) * 4) / 4
    band = ((np.abs((y * 3) % 2 - 1) * 3 + tooth) * 5).astype(np.int64)
    panel = (y * 3).astype(np.int64) * 64 + (x * 4).astype(np.int64) * 16
    albedo = palette(rng, 4096, colours, 0.12)[(band * 131 + panel) % 4096]
    return weathered(rng, albedo, 0.2)


def ball(rng: np.random.Generator, height: int, num_cells: int, colours: list, crack: float) -> Floats:
    """Paint a seamless texture for a sphere, longitude x latitude, float32 [height, 2 height, 3]: Voronoi patches
    with noise.
    """
    latitude = (np.arange(height)[:, None] + 0.5) / height * np.pi
    longitude = (np.arange(2 * height)[None, :] + 0.5) / height * np.pi
    p = np.stack(
        [
            np.sin(latitude) * np.cos(longitude),
            np.sin(latitude) * np.sin(longitude),
            np.cos(latitude) * np.ones_like(longitude),
        ],
        -1,
    ).astype(np.float32)
    sites = rng.standard_normal((num_cells, 3)).astype(np.float32)
    sites /= np.linalg.norm(sites, axis=1, keepdims=True)
    warped = p + 0.09 * np.stack([_solid_noise(rng, p, 5.0, 2) for _ in range(3)], -1)
    closeness = (warped.reshape(-1, 3) @ sites.T).reshape(height, 2 * height, num_cells)
    cell = closeness.argmax(-1)
    best = np.partition(closeness, -2, axis=-1)[..., -2:]
    joint = np.clip((best[..., 1] - best[..., 0]) / crack, 0.3, 1)[..., None]
    albedo = palette(rng, num_cells, colours, 0.15)[cell] * joint
    shade = 1 + 0.22 * _solid_noise(rng, p, 5.0, 5)
    return (albedo * np.clip(shade, 0.2, 1.8)[..., None]).astype(np.float32)


def _solid_noise(rng: np.random.Generator, p: Floats, frequency: float, octaves: int) -> Floats:
    """Return value noise in space with `octaves` doublings of frequency, about unit variance; p [..., 3]."""
    total = np.zeros(p.shape[:-1], np.float32)
    for octave in range(octaves):
        lattice = rng.standard_normal((32, 32, 32)).astype(np.float32)
        q = (p + 1.5) * np.float32(frequency * 2**octave)
        corner = np.floor(q)
        f = q - corner
        f = f * f * (3 - 2 * f)
        i = corner.astype(np.int64) % 32
        j = (i + 1) % 32
        value = np.zeros_like(total)
        for bits in range(8):
            pick = [(j if bits >> a & 1 else i)[..., a] for a in range(3)]
            weight = [f[..., a] if bits >> a & 1 else 1 - f[..., a] for a in range(3)]
            value += lattice[pick[0], pick[1], pick[2]] * weight[0] * weight[1] * weight[2]
        total += value * np.float32(0.8**octave)
    return total
