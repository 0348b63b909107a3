"""L1 + SSIM and its gradient in two passes over an image, 16 values at a time.

A row of an [H,W,3] image is a row of 3W numbers in which the same channel comes every third, so one blur serves all
channels. A task is a strip of one row: blur over the rows above and below into a buffer, then along the row. Outside
the image everything is 0, which is the zero padding of the 3DGS paper.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import llvmlite.ir as ir
import torch

from dist3dgs.splats import loss_window
from dist3dgs.splats.cpu.jit.build import load_kernels
from dist3dgs.splats.cpu.jit.ir import F32, F64, I8, I32, I64, LANES, Kernel, Pointer, Value
from dist3dgs.splats.cpu.jit.vmath import sum_lanes
from dist3dgs.splats.loss_window import C1, C2, RADIUS, WEIGHTS

STRIP = 768  # numbers per task
MARGIN = LANES  # on each side of a strip, >= 3 * RADIUS
BUFFER = STRIP + 2 * MARGIN


class _Strip:
    """The strip of a row that a task works on."""

    def __init__(self, k: Kernel, task: Value, height: Value, length: Value) -> None:
        strips = (length + (STRIP - 1)) // STRIP
        self.k, self.height, self.length = k, height, length
        self.row, self.first = task // strips, (task % strips) * STRIP

    def inside(self, column: Value) -> Value:
        """Mask of the 16 columns that exist."""
        columns = self.k.splat(column) + self.k.lanes(list(range(LANES)), I64)
        return (columns >= 0) & (columns < self.length)

    def blur_rows(
        self, weights: Pointer, buffer: Pointer, read: Callable[[Value, Value], list[Value]], count: int
    ) -> None:
        """buffer[m] = sum over rows of weight * m-th value that `read(place, mask)` gives."""
        k = self.k
        with k.loop(0, BUFFER, LANES) as i:
            column = self.first - MARGIN + i
            mask = self.inside(column)
            sums = [k.variable(k.zero(k.vreal)) for _ in range(count)]
            low = (self.row - RADIUS).max(k.constant(0, I64))
            with k.loop(low, (self.row + (RADIUS + 1)).min(self.height)) as y:
                weight = weights[y - self.row + RADIUS]
                for total, value in zip(sums, read(y * self.length + column, mask), strict=True):
                    total.set(k.fma(weight, value, total.get()))
            for m, total in enumerate(sums):
                buffer.store(i + m * BUFFER, total.get(), 64)

    def blur_columns(self, buffer: Pointer, i: Value, count: int) -> list[Value]:
        """Return the blurred values of 16 columns from the buffer, all of one channel each."""
        k, results = self.k, []
        for m in range(count):
            total = k.zero(k.vreal)
            for tap, weight in enumerate(WEIGHTS):
                total = k.fma(weight, buffer.load(i + (m * BUFFER + MARGIN + 3 * (tap - RADIUS))), total)
            results.append(total)
        return results


def _target(k: Kernel, p: Pointer, place: Value, mask: Value) -> Value:
    value = p.load_masked(place, mask)
    return (value.to(I32) & 255).to(k.real) * (1.0 / 255.0) if p.element == I8 else value


def write_compare(module: ir.Module, real: ir.Type, byte_target: bool) -> None:
    """Per task: sums of |x - y| and of SSIM; on demand also the derivatives of SSIM by the blurred values."""
    k = Kernel(module, "compare_u8" if byte_target else "compare", real)
    counter, weights, height, length = k.pointer(I64), k.pointer(), k.arg(I64), k.arg(I64)
    image, target = k.pointer(), k.pointer(I8 if byte_target else real)
    totals, maps, maps_wanted = k.pointer(), k.pointer(), k.arg(I64).differs(0)
    buffer = k.local(5 * BUFFER)
    with k.tasks(counter, height * ((length + (STRIP - 1)) // STRIP)) as task:
        strip = _Strip(k, task, height, length)

        def read(place: Value, mask: Value) -> list[Value]:
            x, y = image.load_masked(place, mask), _target(k, target, place, mask)
            return [x, y, x * x, y * y, x * y]

        strip.blur_rows(weights, buffer, read, 5)
        l1, ssim = (k.variable(k.zero(k.vreal)) for _ in range(2))
        with k.loop(0, (length - strip.first).min(STRIP), LANES) as i:
            mask = strip.inside(strip.first + i)
            place = strip.row * length + strip.first + i
            value, derivatives = _ssim(k, strip.blur_columns(buffer, i, 5))
            difference = image.load_masked(place, mask) - _target(k, target, place, mask)
            l1.add(difference.abs())
            ssim.add(k.select(mask, value, 0.0))
            with k.when(maps_wanted):
                for m, derivative in enumerate(derivatives):
                    maps.store_masked(place + m * height * length, derivative, mask)
        sums = sum_lanes(k, [l1.get(), ssim.get()])
        totals[task * 2] = sums.lane(0)
        totals[task * 2 + 1] = sums.lane(1)
    k.finish()


def _ssim(k: Kernel, blurred: list[Value]) -> tuple[Value, list[Value]]:
    """SSIM (Wang et al. 2004, eq. 13), and its derivatives by blur(x), blur(x^2), blur(xy)."""
    mx, my, xx, yy, xy = blurred
    a1, b1 = 2.0 * mx * my + C1, k.fma(mx, mx, k.fma(my, my, C1))
    a2 = 2.0 * (xy - mx * my) + C2
    b2 = (xx - mx * mx) + (yy - my * my) + C2
    inverse = 1.0 / (b1 * b2)
    value = a1 * a2 * inverse
    by_xx = -(value * inverse * b1)
    by_mx = 2.0 * inverse * (my * (a2 - a1) - mx * value * (b2 - b1))
    return value, [by_mx, by_xx, 2.0 * a1 * inverse]


def write_gradient(module: ir.Module, real: ir.Type, byte_target: bool) -> None:
    """Gradient of  l1_factor * sum |x - y| + ssim_factor * sum SSIM  by x, from the derivatives of `compare`."""
    k = Kernel(module, "gradient_u8" if byte_target else "gradient", real)
    counter, weights, height, length = k.pointer(I64), k.pointer(), k.arg(I64), k.arg(I64)
    image, target = k.pointer(), k.pointer(I8 if byte_target else real)
    maps, gradient, l1_factor, ssim_factor = k.pointer(), k.pointer(), k.arg(real), k.arg(real)
    buffer = k.local(3 * BUFFER)
    with k.tasks(counter, height * ((length + (STRIP - 1)) // STRIP)) as task:
        strip = _Strip(k, task, height, length)

        def read(place: Value, mask: Value) -> list[Value]:
            return [maps.load_masked(place + m * height * length, mask) for m in range(3)]

        strip.blur_rows(weights, buffer, read, 3)
        with k.loop(0, (length - strip.first).min(STRIP), LANES) as i:
            mask = strip.inside(strip.first + i)
            place = strip.row * length + strip.first + i
            by_mx, by_xx, by_xy = strip.blur_columns(buffer, i, 3)
            x, y = image.load_masked(place, mask), _target(k, target, place, mask)
            by_ssim = k.fma(2.0 * x, by_xx, k.fma(y, by_xy, by_mx))
            sign = k.select(x > y, k.cast(1.0, k.vreal), k.select(x < y, k.cast(-1.0, k.vreal), 0.0))
            gradient.store_masked(place, k.fma(ssim_factor, by_ssim, l1_factor * sign), mask)
    k.finish()


def write_all(module: ir.Module, real: ir.Type) -> None:
    """Add every kernel of the loss to a module."""
    for byte_target in (False, True):
        write_compare(module, real, byte_target)
        write_gradient(module, real, byte_target)


@functools.cache
def kernels(dtype: torch.dtype) -> Callable[[str], int]:
    """Kernel name -> address, for float32 or float64."""
    return load_kernels(
        "loss",
        write_all,
        F32 if dtype == torch.float32 else F64,
        [Path(__file__), Path(loss_window.__file__)],
    )


@functools.cache
def weights(dtype: torch.dtype) -> torch.Tensor:
    """Return the window's weights, [11] of `dtype` float32 or float64; they sum to 1."""
    return torch.tensor(WEIGHTS, dtype=torch.float64).to(dtype)
