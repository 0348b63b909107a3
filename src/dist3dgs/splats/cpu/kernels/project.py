"""Projection kernels: which Gaussians are visible (`cull`), their projection and colours (`project`), and back."""

import llvmlite.ir as ir

from dist3dgs.splats.cpu.jit.ir import I32, I64, Kernel, Pointer, Value, Variable
from dist3dgs.splats.cpu.jit.vmath import store_rows, sum_lane_scalar
from dist3dgs.splats.cpu.kernels import geometry as geo
from dist3dgs.splats.cpu.kernels.harmonics import C0, Rows, all_bands, band_gradient, unit_direction
from dist3dgs.splats.render.api import COLOR_MAX

POSE_SUMS = 16  # numbers per chunk: 9 of the rotation, 3 of the translation, 3 of the centre, 1 unused
DEGREES = (-1, 0, 1, 2, 3)  # -1: colours are RGB


def kernel_name(stem: str, degree: int) -> str:
    """Return the name of a projection kernel: there is one per degree of the spherical harmonics."""
    return f"{stem}_rgb" if degree < 0 else f"{stem}{degree}"


def write_cull(module: ir.Module, real: ir.Type) -> None:
    """Per chunk of Gaussians: packed ids and number of the visible ones, number and first of those not finite."""
    k = Kernel(module, "cull", real)
    counter, inputs = k.pointer(I64), geo.Inputs.declare(k)
    numbers, n = k.pointer(), k.arg(I64)
    ids, report = k.pointer(I32), k.pointer(I64)
    camera = geo.CameraRegisters(k, numbers)
    with k.tasks(counter, (n + (geo.CHUNK - 1)) // geo.CHUNK) as chunk:
        start = chunk * geo.CHUNK
        stop = (start + geo.CHUNK).min(n)
        count, bad, first = k.variable(k.constant(0, I64)), k.variable(k.constant(0, I64)), k.variable(n)
        with k.loop(start, stop, 16) as i:
            g = inputs.load(k, i, stop)
            nan = k.zero(k.vreal)
            for value in (*g.mean, *g.quat, *g.scale, g.opacity):
                nan = k.fma(value, 0.0, nan)
            damaged = (~nan.equals(0.0)).mask_bits()
            with k.when(damaged.differs(0), likely=False):
                bad.add(k.intrinsic("llvm.ctpop", damaged).to(I64))
                first.set(first.get().min(i + damaged.lowest_bit().to(I64)))
            e = geo.ellipse(k, camera, g)
            seen = geo.lanes_below(k, i, stop) & geo.visible(k, camera, e, *geo.radii(k, e))
            index = k.splat(i.to(I32)) + k.lanes(list(range(16)), I32)
            ids.store_packed(start + count.get(), index, seen)
            count.add(k.intrinsic("llvm.ctpop", seen.mask_bits()).to(I64))
        for j, number in enumerate((count, bad, first)):
            report[chunk * 3 + j] = number.get()
    k.finish()


class _Visible:
    """Parameters of the kernels that process the visible Gaussians chunk by chunk."""

    def __init__(self, k: Kernel, degree: int) -> None:
        self.degree = degree
        self.counter, self.num_chunks = k.pointer(I64), k.arg(I64)
        self.inputs = geo.Inputs.declare(k)
        self.sh0, self.stride0 = k.pointer(), k.arg(I64)
        self.rows = Rows(k, k.pointer(), k.arg(I64), degree)
        self.numbers, self.offsets = k.pointer(), k.pointer(I64)

    def first_coefficient(self, chunk: Value, local: Value, mask: Value) -> list[Value]:
        """Coefficient 0, or the RGB colours."""
        base = self.sh0.at(chunk * geo.CHUNK * self.stride0)
        return geo.gather_rows(base, local, 3, mask, self.stride0.to(I32))


def write_project(module: ir.Module, real: ir.Type, degree: int) -> None:
    """Projection and colours of the visible Gaussians."""
    k = Kernel(module, kernel_name("project", degree), real)
    a = _Visible(k, degree)
    packed_ids = k.pointer(I32)
    ids, means2d, conics, depths = k.pointer(I64), k.pointer(), k.pointer(), k.pointer()
    radii, colors, opacities, report = k.pointer(I32), k.pointer(), k.pointer(), k.pointer(I64)
    camera = geo.CameraRegisters(k, a.numbers)
    with k.tasks(a.counter, a.num_chunks) as chunk:
        start, stop = a.offsets[chunk], a.offsets[chunk + 1]
        shift = chunk * geo.CHUNK - start
        bad = k.variable(k.constant(0, I64))
        with k.loop(start, stop, 16) as i:
            mask = geo.lanes_below(k, i, stop)
            index = packed_ids.load_masked(i + shift, mask)
            local = k.select(mask, index - (chunk * geo.CHUNK).to(I32), 0)
            g = a.inputs.gather(chunk, local, mask)
            e = geo.ellipse(k, camera, g)
            rx, ry = geo.radii(k, e)
            ids.store_masked(i, index.to(I64), mask)
            depths.store_masked(i, e.z, mask)
            opacities.store_masked(i, e.opacity, mask)
            store_rows(k, means2d, i, stop, e.mean2d)
            store_rows(k, conics, i, stop, e.conic)
            store_rows(k, radii, i, stop, [rx.to(I32), ry.to(I32)])
            rgb = _colors(k, a, camera, g, chunk, local, mask)
            good = (rgb[0].abs() <= COLOR_MAX) & (rgb[1].abs() <= COLOR_MAX) & (rgb[2].abs() <= COLOR_MAX)
            bad.add(k.intrinsic("llvm.ctpop", (~good & mask).mask_bits()).to(I64))
            store_rows(k, colors, i, stop, rgb)
        report[chunk] = bad.get()
    k.finish()


def _colors(
    k: Kernel,
    a: _Visible,
    camera: geo.CameraRegisters,
    g: geo.Gaussians,
    chunk: Value,
    local: Value,
    mask: Value,
) -> list[Value]:
    rgb = a.first_coefficient(chunk, local, mask)
    if a.degree < 0:
        return rgb
    rgb = [k.fma(c, C0, 0.5) for c in rgb]
    direction, _ = unit_direction(k, g.mean, [camera.c0, camera.c1, camera.c2])
    coefficients = a.rows.load(chunk * geo.CHUNK, local) if a.degree > 0 else []
    for i, basis in enumerate(all_bands(k, a.degree, direction)):
        rgb = [k.fma(basis, coefficients[3 * i + c], rgb[c]) for c in range(3)]
    return [k.select(c < 0.0, 0.0, c) for c in rgb]  # keeps a NaN, which is then reported


def write_project_backward(module: ir.Module, real: ir.Type, degree: int) -> None:
    """Backward of `project`: gradients of the Gaussians (zero where not visible) and of the camera."""
    k = Kernel(module, kernel_name("project_backward", degree), real)
    a = _Visible(k, degree)
    n, ids, colors = k.arg(I64), k.pointer(I64), k.pointer()
    incoming = [
        (k.pointer(), k.arg(I64)) for _ in range(5)
    ]  # means2d, conics, depths, colors, opacities; strides
    outgoing = [(k.pointer(), width) for width in (3, 4, 3, 1)]
    v_sh0, width0, v_shn, widthn = k.pointer(), k.arg(I64), k.pointer(), k.arg(I64)
    apart = k.arg(I64)  # 1: v_shn is a tensor of its own; 0: it is the rest of the rows of v_sh0
    pose, pose_wanted = k.pointer(), k.arg(I64).differs(0)
    v_rows = Rows(k, v_shn, widthn, degree)
    camera = geo.CameraRegisters(k, a.numbers)
    with k.tasks(a.counter, a.num_chunks) as chunk:
        first = chunk * geo.CHUNK
        count = (first + geo.CHUNK).min(n) - first
        start, stop = a.offsets[chunk], a.offsets[chunk + 1]
        for p, width in (*outgoing, (v_sh0, width0), (v_shn, widthn * apart)):
            # rows are written as a whole, unless there are more coefficients than the degree has
            whole = (stop - start).equals(count) & (widthn <= v_rows.count)
            with k.when(~whole):
                p.clear(first * width, count * width)
        sums = [k.variable(k.zero(k.vreal)) for _ in range(POSE_SUMS - 1)]
        with k.loop(start, stop, 16) as i:
            mask = geo.lanes_below(k, i, stop)
            local = k.select(mask, (ids.load_masked(i, mask) - first).to(I32), 0)
            g = a.inputs.gather(chunk, local, mask)
            e = geo.ellipse(k, camera, g)
            lane = k.lanes(list(range(16)), I32)
            v = [
                geo.gather_rows(p.at(i * stride), lane, width, mask, stride.to(I32))
                for (p, stride), width in zip(incoming, (2, 3, 1, 3, 1), strict=True)
            ]
            back = _backward_geometry(k, camera, g, e, v)
            rgb = geo.load_rows(k, colors, i, stop, 3)
            v_direction = _backward_colors(
                k, a, camera, g, (chunk, local, mask), rgb, v[3], v_sh0, width0, v_rows
            )
            v_mean = [m + d for m, d in zip(back.mean, v_direction, strict=True)]
            results = (v_mean, back.quat, back.scale, [back.opacity])
            for (p, width), values in zip(outgoing, results, strict=True):
                geo.scatter_rows(p.at(first * width), local, values, mask)
            with k.when(pose_wanted, likely=False):
                _add_pose(k, camera, g, e, back, v_direction, mask, sums)
        with k.when(pose_wanted, likely=False):
            for j, total in enumerate(sums):
                pose[chunk * POSE_SUMS + j] = sum_lane_scalar(k, total.get())
    k.finish()


class _Back:
    """Gradients of 16 Gaussians."""

    mean: list[Value]
    quat: list[Value]
    scale: list[Value]
    opacity: Value
    cam: list[Value]  # of the centre in camera space
    row0: list[Value]  # of J0 W
    row1: list[Value]


def _backward_geometry(
    k: Kernel, camera: geo.CameraRegisters, g: geo.Gaussians, e: geo.Ellipse, v: list[list[Value]]
) -> _Back:
    back = _Back()
    (v_u, v_v), v_conic, (v_depth,), _, (v_opacity,) = v
    back.opacity = v_opacity * e.compensation
    g00, g01, g11 = _backward_covariance(k, camera, g, e, v_conic, v_opacity)

    # covariance = [U V]^T [U V]; g01 is the derivative by the two off-diagonal elements together
    vu = [k.fma(2.0 * g00, a, g01 * b) for a, b in zip(e.u, e.v, strict=True)]
    vv = [k.fma(2.0 * g11, b, g01 * a) for a, b in zip(e.u, e.v, strict=True)]
    back.scale = [k.fma(a, su, b * sv) for a, b, su, sv in zip(vu, vv, e.sharp_u, e.sharp_v, strict=True)]
    su = [a * s for a, s in zip(vu, g.scale, strict=True)]
    sv = [a * s for a, s in zip(vv, g.scale, strict=True)]
    v_rotation = [[k.fma(su[j], e.row0[i], sv[j] * e.row1[i]) for j in range(3)] for i in range(3)]
    back.quat = _backward_quaternion(k, e, v_rotation)
    back.row0 = [geo.dot(k, su, e.rotation[i]) for i in range(3)]
    back.row1 = [geo.dot(k, sv, e.rotation[i]) for i in range(3)]

    v00, v02 = geo.dot(k, back.row0, camera.row(0)), geo.dot(k, back.row0, camera.row(2))
    v11, v12 = geo.dot(k, back.row1, camera.row(1)), geo.dot(k, back.row1, camera.row(2))
    rz2 = e.rz * e.rz
    vtx, vty = -camera.fx * rz2 * v02, -camera.fy * rz2 * v12
    vx = camera.fx * e.rz * v_u + k.select(e.x_inside, vtx, 0.0)
    vy = camera.fy * e.rz * v_v + k.select(e.y_inside, vty, 0.0)
    vz = (
        v_depth
        - rz2 * (camera.fx * (e.x * v_u + v00) + camera.fy * (e.y * v_v + v11))
        - 2.0 * e.rz * (e.tx * vtx + e.ty * vty)
        + k.select(e.x_inside, 0.0, vtx * e.tx * e.rz)
        + k.select(e.y_inside, 0.0, vty * e.ty * e.rz)
    )
    back.cam = [vx, vy, vz]
    columns = [[camera.row(i)[j] for i in range(3)] for j in range(3)]
    back.mean = [geo.dot(k, back.cam, column) for column in columns]
    return back


def _backward_covariance(
    k: Kernel,
    camera: geo.CameraRegisters,
    g: geo.Gaussians,
    e: geo.Ellipse,
    v_conic: list[Value],
    v_opacity: Value,
) -> tuple[Value, Value, Value]:
    """Return gradient by xx, xy (both off-diagonal elements together), yy of the projected covariance."""
    a, b, c = e.conic
    ga, gb, gc = v_conic[0], 0.5 * v_conic[1], v_conic[2]
    # d(inverse) = -inverse d inverse
    p00, p01 = k.fma(a, ga, b * gb), k.fma(a, gb, b * gc)
    p10, p11 = k.fma(b, ga, c * gb), k.fma(b, gb, c * gc)
    g00, g11 = -k.fma(p00, a, p01 * b), -k.fma(p10, b, p11 * c)
    g01 = -(k.fma(p00, b, p01 * c) + k.fma(p10, a, p11 * b))
    # antialiased: opacity * sqrt(ratio), ratio = det_sharp / det
    active = (camera.antialiased > 0.0) & (e.compensation > 0.0)
    v_ratio = k.select(active, 0.5 * v_opacity * g.opacity / e.compensation, 0.0)
    inverse_det = 1.0 / e.det
    rest = camera.eps2d * (e.trace + camera.eps2d) * inverse_det  # 1 - ratio
    scaled_rest, flat = v_ratio * rest, v_ratio * camera.eps2d * inverse_det
    return g00 + scaled_rest * a - flat, g01 + 2.0 * scaled_rest * b, g11 + scaled_rest * c - flat


def _backward_quaternion(k: Kernel, e: geo.Ellipse, v: list[list[Value]]) -> list[Value]:
    w, x, y, z = e.unit
    gw = 2.0 * (x * (v[2][1] - v[1][2]) + y * (v[0][2] - v[2][0]) + z * (v[1][0] - v[0][1]))
    gx = 2.0 * (
        y * (v[0][1] + v[1][0])
        + z * (v[0][2] + v[2][0])
        + w * (v[2][1] - v[1][2])
        - 2.0 * x * (v[1][1] + v[2][2])
    )
    gy = 2.0 * (
        x * (v[0][1] + v[1][0])
        + z * (v[1][2] + v[2][1])
        + w * (v[0][2] - v[2][0])
        - 2.0 * y * (v[0][0] + v[2][2])
    )
    gz = 2.0 * (
        x * (v[0][2] + v[2][0])
        + y * (v[1][2] + v[2][1])
        + w * (v[1][0] - v[0][1])
        - 2.0 * z * (v[0][0] + v[1][1])
    )
    along = k.fma(gw, w, k.fma(gx, x, k.fma(gy, y, gz * z)))
    # normalisation: only what is across the quaternion counts; inverse_length is 0 for quaternions of length 0
    return [(gq - along * q) * e.inverse_length for gq, q in zip((gw, gx, gy, gz), e.unit, strict=True)]


def _backward_colors(
    k: Kernel, a: _Visible, camera: geo.CameraRegisters, g: geo.Gaussians, where: tuple[Value, Value, Value],
    rgb: list[Value], v_rgb: list[Value], v_sh0: Pointer, width0: Value, v_rows: Rows,
) -> list[Value]:  # fmt: skip
    """Write the gradients of the coefficients; return that of the Gaussian's centre through the direction."""
    chunk, local, mask = where
    first = chunk * geo.CHUNK
    if a.degree >= 0:
        v_rgb = [k.select(c > 0.0, v, 0.0) for c, v in zip(rgb, v_rgb, strict=True)]
    v_first = [C0 * v for v in v_rgb] if a.degree >= 0 else v_rgb
    geo.scatter_rows(v_sh0.at(first * width0), local, v_first, mask, width0.to(I32))
    if a.degree <= 0:
        return [k.zero(k.vreal)] * 3
    direction, inverse = unit_direction(k, g.mean, [camera.c0, camera.c1, camera.c2])
    coefficients = a.rows.load(first, local)
    weights = [geo.dot(k, coefficients[i : i + 3], v_rgb) for i in range(0, len(coefficients), 3)]
    bands = all_bands(k, a.degree, direction)
    v_rows.store(first, local, mask, [basis * v for basis in bands for v in v_rgb])
    v_direction = [k.zero(k.vreal)] * 3
    for degree in range(1, a.degree + 1):
        of_degree = weights[degree**2 - 1 : (degree + 1) ** 2 - 1]
        parts = band_gradient(degree, direction, of_degree)
        v_direction = [total + part for total, part in zip(v_direction, parts, strict=True)]
    along = geo.dot(k, v_direction, direction)
    return [(v - along * d) * inverse for v, d in zip(v_direction, direction, strict=True)]


def _add_pose(
    k: Kernel, camera: geo.CameraRegisters, g: geo.Gaussians, e: geo.Ellipse, back: _Back,
    v_direction: list[Value], mask: Value, sums: list[Variable],
) -> None:  # fmt: skip
    """Add to the gradients of the rotation (row major), the translation and the camera's centre."""
    j00, j02 = camera.fx * e.rz, -(camera.fx * e.tx) * e.rz * e.rz
    j11, j12 = camera.fy * e.rz, -(camera.fy * e.ty) * e.rz * e.rz
    jacobian = [
        [j00 * b for b in back.row0],
        [j11 * b for b in back.row1],
        [k.fma(j02, b, j12 * c) for b, c in zip(back.row0, back.row1, strict=True)],
    ]
    parts = [k.fma(back.cam[i], g.mean[j], jacobian[i][j]) for i in range(3) for j in range(3)]
    parts += back.cam
    parts += [-d for d in v_direction]
    for total, part in zip(sums, parts, strict=True):
        total.add(k.select(mask, part, 0.0))
