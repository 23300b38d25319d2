# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The adaptive optimizer, compiled for the CPU: what runs on a robot without a GPU.

The same arithmetic as `linearization.linearize` and `optimizer.run_adaptive` (tests hold them together), without gradients.
One pass over the points replaces some sixty tensor operations per iteration, and geometry is in double precision throughout.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ..geometry.cameras import MIN_DEPTH, Camera

# No "nnan": features and poses that are not numbers must be seen as such.
_JIT = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}

POLYNOMIAL, EQUIDISTANT = 0, 1
LOSSES = {"cauchy": 0, "geman_mcclure": 1, "squared": 2}
PARAMS = 12


def camera_numbers(camera: Camera) -> tuple[int, np.ndarray, float]:
    """Projection kind, 12 numbers (fx, fy, cx, cy, distortion) and validity limit of an unbatched camera.

    Every polynomial model is a rational one with zeros: k1, k2, p1, p2, k3, k4, k5, k6.
    """
    values = camera.params.double().numpy()
    numbers = np.zeros(PARAMS)
    numbers[: len(values)] = values
    return (EQUIDISTANT if camera.model == "equidistant" else POLYNOMIAL), numbers, float(camera.limit)


@numba.njit(**_JIT)
def project_point(kind, cam, limit, x, y, z, pixel, jac):
    """Pixel (2) and its derivative jac (2, 3) of a point in the camera frame; False where it is invalid."""
    if kind == EQUIDISTANT:
        radius2 = x * x + y * y
        distance2 = radius2 + z * z
        if not (distance2 > MIN_DEPTH * MIN_DEPTH and distance2 < np.inf):
            return False
        on_axis = radius2 <= 2.3e-16 * distance2
        radius = math.sqrt(radius2)
        theta = (0.0 if z > 0 else math.pi) if on_axis else math.atan2(radius, z)
        if not theta < limit:
            return False
        t2 = theta * theta
        ratio = 1 + t2 * (cam[4] + t2 * (cam[5] + t2 * (cam[6] + t2 * cam[7])))
        slope = 1 + t2 * (3 * cam[4] + t2 * (5 * cam[5] + t2 * (7 * cam[6] + t2 * 9 * cam[7])))
        scale = 1 / z if on_axis else theta * ratio / radius
        cross = 0.0 if on_axis else (slope * z / distance2 - scale) / radius2
        last = -slope / distance2
        pixel[0], pixel[1] = cam[2] + cam[0] * scale * x, cam[3] + cam[1] * scale * y
        jac[0, 0], jac[0, 1], jac[0, 2] = cam[0] * (scale + cross * x * x), cam[0] * cross * x * y, cam[0] * last * x
        jac[1, 0], jac[1, 1], jac[1, 2] = cam[1] * cross * x * y, cam[1] * (scale + cross * y * y), cam[1] * last * y
        return True
    if not z > MIN_DEPTH:
        return False
    inverse = 1 / z
    u, v = x * inverse, y * inverse
    r2 = u * u + v * v
    if not r2 < limit:
        return False
    k1, k2, p1, p2, k3 = cam[4], cam[5], cam[6], cam[7], cam[8]
    gain = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = k1 + r2 * (2 * k2 + 3 * r2 * k3)
    denominator = 1 + r2 * (cam[9] + r2 * (cam[10] + r2 * cam[11]))
    gain = gain / denominator
    slope = (slope - gain * (cam[9] + r2 * (2 * cam[10] + 3 * r2 * cam[11]))) / denominator
    factor = gain + 2 * (p2 * u + p1 * v)
    pixel[0] = cam[2] + cam[0] * (factor * u + r2 * p2)
    pixel[1] = cam[3] + cam[1] * (factor * v + r2 * p1)
    # d(x) = factor x + r² q, factor = gain + 2 q·x, q = (p2, p1); its derivative is factor I + 2 slope x xᵀ + 2 (x qᵀ + q xᵀ).
    a = factor + 2 * slope * u * u + 4 * p2 * u
    b = 2 * slope * u * v + 2 * (p1 * u + p2 * v)
    d = factor + 2 * slope * v * v + 4 * p1 * v
    jac[0, 0], jac[0, 1] = cam[0] * inverse * a, cam[0] * inverse * b
    jac[1, 0], jac[1, 1] = cam[1] * inverse * b, cam[1] * inverse * d
    jac[0, 2] = -(jac[0, 0] * u + jac[0, 1] * v)
    jac[1, 2] = -(jac[1, 0] * u + jac[1, 1] * v)
    return True


@numba.njit(**_JIT)
def _linearize(
    features,
    stride,
    query_confidence,
    width,
    height,
    border,
    kind,
    cam,
    limit,
    xyz,
    descriptors,
    confidences,
    mask,
    pose,
    loss_kind,
    loss_scale,
    hessian,
    gradient,
    motion,
    squared,
    loss,
    confidence,
    valid,
    pixels,
):
    """Fill the normal equations at a pose (see `linearization.Linearization`); return the number of valid points.

    features [H, W, C]; query_confidence [H, W], confidences [N] and mask [N] are empty where there are none. motion [6, 6]
    is the sum of J^T J of the valid reprojections: a step s moves them by sqrt(s^T motion s / count) pixels.
    """
    rows, columns, channels = features.shape
    pixel, jac, full = np.empty(2), np.empty((2, 3)), np.empty((2, 6))
    hessian[:], gradient[:], motion[:] = 0.0, 0.0, 0.0
    margin = border * stride - 0.5
    half = 0.5 / stride
    count = 0
    for i in range(xyz.shape[0]):
        valid[i] = False
        if mask.size and not mask[i]:
            continue
        px, py, pz = float(xyz[i, 0]), float(xyz[i, 1]), float(xyz[i, 2])
        x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
        y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
        z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
        if not project_point(kind, cam, limit, x, y, z, pixel, jac):
            continue
        pixels[i, 0], pixels[i, 1] = pixel[0], pixel[1]
        cell_x, cell_y = (pixel[0] + 0.5) / stride - 0.5, (pixel[1] + 0.5) / stride - 0.5
        if not (
            cell_x >= -0.5
            and cell_y >= -0.5
            and cell_x <= columns - 0.5
            and cell_y <= rows - 0.5
            and pixel[0] >= margin
            and pixel[1] >= margin
            and pixel[0] <= width - 1 - margin
            and pixel[1] <= height - 1 - margin
        ):
            continue
        cell_x, cell_y = min(max(cell_x, 0.0), columns - 1.0), min(max(cell_y, 0.0), rows - 1.0)
        column, row = int(cell_x), int(cell_y)
        fx, fy = cell_x - column, cell_y - row
        a, b = np.float32(fx), np.float32(fy)
        one = np.float32(1.0)
        left, right, far = max(column - 1, 0), min(column + 1, columns - 1), min(column + 2, columns - 1)
        above, below, deep = max(row - 1, 0), min(row + 1, rows - 1), min(row + 2, rows - 1)
        f01, f02 = features[above, column], features[above, right]
        f10, f11, f12, f13 = features[row, left], features[row, column], features[row, right], features[row, far]
        f20, f21, f22, f23 = features[below, left], features[below, column], features[below, right], features[below, far]
        f31, f32 = features[deep, column], features[deep, right]
        reference = descriptors[i]
        rr = rx = ry = xx = xy = yy = np.float32(0.0)
        for c in range(channels):
            # Along x within the two middle rows, along y within the two middle columns; slopes are one cell to either side.
            top = (one - a) * f11[c] + a * f12[c]
            low = (one - a) * f21[c] + a * f22[c]
            up = (one - a) * f01[c] + a * f02[c]
            down = (one - a) * f31[c] + a * f32[c]
            r = (one - b) * top + b * low - reference[c]
            sx = (one - b) * ((one - a) * (f12[c] - f10[c]) + a * (f13[c] - f11[c])) + b * (
                (one - a) * (f22[c] - f20[c]) + a * (f23[c] - f21[c])
            )
            sy = (one - b) * (low - up) + b * (down - top)
            rr += r * r
            rx += r * sx
            ry += r * sy
            xx += sx * sx
            xy += sx * sy
            yy += sy * sy
        weight = 1.0
        if confidences.size:
            weight *= confidences[i]
        if query_confidence.size:
            weight *= (1 - fy) * ((1 - fx) * query_confidence[row, column] + fx * query_confidence[row, right]) + fy * (
                (1 - fx) * query_confidence[below, column] + fx * query_confidence[below, right]
            )
        confidence[i] = weight
        squared[i] = rr
        ratio = rr / (2 * loss_scale)
        if loss_kind == 0:
            loss[i] = 2 * loss_scale * math.log1p(ratio)
            weight *= 1 / (1 + ratio)
        elif loss_kind == 1:
            loss[i] = rr / (1 + ratio)
            weight *= 1 / ((1 + ratio) * (1 + ratio))
        else:
            loss[i] = rr
        valid[i] = True
        count += 1
        for k in range(2):
            j0, j1, j2 = jac[k, 0], jac[k, 1], jac[k, 2]
            full[k, 0], full[k, 1], full[k, 2] = j0, j1, j2
            full[k, 3], full[k, 4], full[k, 5] = y * j2 - z * j1, z * j0 - x * j2, x * j1 - y * j0
        gx, gy = weight * half * rx, weight * half * ry
        hxx, hxy, hyy = weight * half * half * xx, weight * half * half * xy, weight * half * half * yy
        for m in range(6):
            u, v = full[0, m], full[1, m]
            gradient[m] += u * gx + v * gy
            hu, hv = u * hxx + v * hxy, u * hxy + v * hyy
            for n in range(m, 6):
                hessian[m, n] += hu * full[0, n] + hv * full[1, n]
                motion[m, n] += u * full[0, n] + v * full[1, n]
    for m in range(6):
        for n in range(m):
            hessian[m, n] = hessian[n, m]
            motion[m, n] = motion[n, m]
    return count


@numba.njit(**_JIT)
def _solve(hessian, gradient, factors, floor, step):
    """step = -(H + diag(max(factors diag H, floor)))^-1 g by Cholesky; zero where the matrix is not positive definite."""
    lower = np.zeros((6, 6))
    step[:] = 0.0
    for m in range(6):
        for n in range(m + 1):
            total = hessian[m, n]
            if m == n:
                total += max(factors[m] * hessian[m, m], floor)
            for k in range(n):
                total -= lower[m, k] * lower[n, k]
            if m == n:
                if not (total > 0 and total < np.inf):
                    return
                lower[m, m] = math.sqrt(total)
            else:
                lower[m, n] = total / lower[n, n]
    for m in range(6):
        total = -gradient[m]
        for k in range(m):
            total -= lower[m, k] * step[k]
        step[m] = total / lower[m, m]
    for m in range(5, -1, -1):
        total = step[m]
        for k in range(m + 1, 6):
            total -= lower[k, m] * step[k]
        step[m] = total / lower[m, m]
    for m in range(6):
        if not math.isfinite(step[m]):
            step[:] = 0.0
            return


@numba.njit(**_JIT)
def _solve_along(hessian, gradient, factors, axes, floor, step):
    """`_solve` with the damping along the columns of axes."""
    if not axes.size:
        _solve(hessian, gradient, factors, floor, step)
        return
    half, turned, pull, along = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros(6), np.empty(6)
    for m in range(6):
        for n in range(6):
            for k in range(6):
                half[m, n] += hessian[m, k] * axes[k, n]
    for m in range(6):
        for k in range(6):
            pull[m] += axes[k, m] * gradient[k]
            for n in range(6):
                turned[m, n] += axes[k, m] * half[k, n]
    _solve(turned, pull, factors, floor, along)
    for m in range(6):
        step[m] = 0.0
        for k in range(6):
            step[m] += axes[m, k] * along[k]


@numba.njit(**_JIT)
def _rotation(w, out):
    """Rotation matrix of a rotation vector (Rodrigues)."""
    angle2 = w[0] * w[0] + w[1] * w[1] + w[2] * w[2]
    if angle2 < 1e-8:
        s, c = 1 - angle2 / 6, 0.5 - angle2 / 24
    else:
        angle = math.sqrt(angle2)
        s, c = math.sin(angle) / angle, 2 * (math.sin(0.5 * angle) / angle) ** 2
    x, y, z = w[0], w[1], w[2]
    out[0, 0], out[0, 1], out[0, 2] = 1 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y
    out[1, 0], out[1, 1], out[1, 2] = c * x * y + s * z, 1 - c * (x * x + z * z), c * y * z - s * x
    out[2, 0], out[2, 1], out[2, 2] = c * x * z - s * y, c * y * z + s * x, 1 - c * (x * x + y * y)


@numba.njit(**_JIT)
def _retract(pose, step, out):
    """PixLoc's decoupled left update (`se3.retract`)."""
    rotation = np.empty((3, 3))
    _rotation(step[3:], rotation)
    for m in range(3):
        for n in range(4):
            out[m, n] = rotation[m, 0] * pose[0, n] + rotation[m, 1] * pose[1, n] + rotation[m, 2] * pose[2, n]
        out[m, 3] += step[m]


@numba.njit(**_JIT)
def _difference(pose, other_inverse, error):
    """error = log(pose other^-1), (translation, rotation); exact for rotations below pi."""
    t = np.zeros((3, 4))
    for m in range(3):
        for n in range(4):
            t[m, n] = pose[m, 0] * other_inverse[0, n] + pose[m, 1] * other_inverse[1, n] + pose[m, 2] * other_inverse[2, n]
        t[m, 3] += pose[m, 3]
    vx, vy, vz = t[2, 1] - t[1, 2], t[0, 2] - t[2, 0], t[1, 0] - t[0, 1]
    sine, cosine = 0.5 * math.sqrt(vx * vx + vy * vy + vz * vz), 0.5 * (t[0, 0] + t[1, 1] + t[2, 2] - 1)
    angle = math.atan2(sine, cosine)
    scale = 0.5 if angle < 1e-6 else 0.5 * angle / sine
    w0, w1, w2 = scale * vx, scale * vy, scale * vz
    d = 1 / 12 if angle < 1e-3 else (1 - 0.5 * angle * math.cos(0.5 * angle) / math.sin(0.5 * angle)) / (angle * angle)
    x, y, z = t[0, 3], t[1, 3], t[2, 3]
    cx, cy, cz = w1 * z - w2 * y, w2 * x - w0 * z, w0 * y - w1 * x
    error[0] = x - 0.5 * cx + d * (w1 * cz - w2 * cy)
    error[1] = y - 0.5 * cy + d * (w2 * cx - w0 * cz)
    error[2] = z - 0.5 * cz + d * (w0 * cy - w1 * cx)
    error[3], error[4], error[5] = w0, w1, w2


@numba.njit(**_JIT)
def _with_prior(hessian, gradient, pose, prior_inverse, information, full_hessian, full_gradient):
    """The image's normal equations plus the prior factor's; returns the prior's share of the cost."""
    full_hessian[:], full_gradient[:] = hessian, gradient
    if not information.size:
        return 0.0
    error = np.empty(6)
    _difference(pose, prior_inverse, error)
    cost = 0.0
    for m in range(6):
        pull = 0.0
        for n in range(6):
            pull += information[m, n] * error[n]
            full_hessian[m, n] += information[m, n]
        full_gradient[m] += pull
        cost += pull * error[m]
    return cost


@numba.njit(**_JIT)
def _mean_cost(confidence, loss, valid):
    total, weight = 0.0, 0.0
    for i in range(loss.shape[0]):
        if valid[i]:
            total += confidence[i] * loss[i]
            weight += confidence[i]
    return total / max(weight, 1e-9)


@numba.njit(**_JIT)
def run_level(
    features,
    stride,
    query_confidence,
    width,
    height,
    border,
    kind,
    cam,
    limit,
    xyz,
    descriptors,
    confidences,
    mask,
    start,
    loss_kind,
    loss_scale,
    prior_inverse,
    information,
    base_factors,
    axes,
    iterations,
    min_points,
    stop_cells,
    floor,
    down,
    up,
    least_scale,
    most_scale,
    least_shared,
    poses,
    costs,
    hessian,
    squared,
    valid,
    pixels,
):
    """Levenberg-Marquardt with step acceptance on one level from `start` [4, 4]. The damping acts along the columns of axes
    [6, 6], the camera's where that is empty.

    Fills poses [iterations + 1, 4, 4], costs [iterations + 1], and hessian, squared, valid, pixels at the last pose.
    Returns the iterations done, or -1 where too few points were visible at the start.
    """
    points = xyz.shape[0]
    gradient, motion = np.empty(6), np.empty((6, 6))
    loss, confidence = np.zeros(points), np.zeros(points)
    new_hessian, new_gradient, new_motion = np.empty((6, 6)), np.empty(6), np.empty((6, 6))
    new_squared, new_loss, new_confidence = np.zeros(points), np.zeros(points), np.zeros(points)
    new_valid, new_pixels = np.zeros(points, np.bool_), np.zeros((points, 2))
    full_hessian, full_gradient, step = np.empty((6, 6)), np.empty(6), np.empty(6)
    pose, candidate = start.copy(), start.copy()
    count = _linearize(
        features,
        stride,
        query_confidence,
        width,
        height,
        border,
        kind,
        cam,
        limit,
        xyz,
        descriptors,
        confidences,
        mask,
        pose,
        loss_kind,
        loss_scale,
        hessian,
        gradient,
        motion,
        squared,
        loss,
        confidence,
        valid,
        pixels,
    )
    poses[0], costs[0] = pose, _mean_cost(confidence, loss, valid)
    if count < min_points:
        return -1
    prior_cost = _with_prior(hessian, gradient, pose, prior_inverse, information, full_hessian, full_gradient)
    scale, done = 1.0, 0
    for k in range(iterations):
        _solve_along(full_hessian, full_gradient, base_factors * scale, axes, floor, step)
        _retract(pose, step, candidate)
        new_count = _linearize(
            features,
            stride,
            query_confidence,
            width,
            height,
            border,
            kind,
            cam,
            limit,
            xyz,
            descriptors,
            confidences,
            mask,
            candidate,
            loss_kind,
            loss_scale,
            new_hessian,
            new_gradient,
            new_motion,
            new_squared,
            new_loss,
            new_confidence,
            new_valid,
            new_pixels,
        )
        before, after, shared = prior_cost, 0.0, 0
        for i in range(points):
            if valid[i] and new_valid[i]:
                shared += 1
                before += confidence[i] * loss[i]
                after += confidence[i] * new_loss[i]
        moved2 = 0.0
        for m in range(6):
            for n in range(6):
                moved2 += step[m] * motion[m, n] * step[n]
        still = moved2 < count * (stop_cells * stride) ** 2
        accept = False
        if shared >= max(count * least_shared, min_points):
            # The candidate's own system is only formed once its cost is known to be lower.
            after += _prior_cost(candidate, prior_inverse, information)
            accept = after < before
        if accept:
            pose[:], count = candidate, new_count
            hessian[:], gradient[:], motion[:] = new_hessian, new_gradient, new_motion
            squared[:], loss[:], confidence[:], valid[:], pixels[:] = new_squared, new_loss, new_confidence, new_valid, new_pixels
            prior_cost = _with_prior(hessian, gradient, pose, prior_inverse, information, full_hessian, full_gradient)
        scale = min(max(scale * (down if accept else up), least_scale), most_scale)
        done = k + 1
        poses[done], costs[done] = pose, _mean_cost(confidence, loss, valid)
        if still:
            break
    return done


@numba.njit(**_JIT)
def _prior_cost(pose, prior_inverse, information):
    if not information.size:
        return 0.0
    error = np.empty(6)
    _difference(pose, prior_inverse, error)
    cost = 0.0
    for m in range(6):
        for n in range(6):
            cost += error[m] * information[m, n] * error[n]
    return cost


@numba.njit(**_JIT)
def run_levels(
    features,
    strides,
    query_confidences,
    width,
    height,
    border,
    kind,
    cam,
    limit,
    xyz,
    descriptors,
    confidences,
    mask,
    start,
    loss_kind,
    loss_scale,
    prior_inverse,
    information,
    factors,
    axes,
    iterations,
    min_points,
    stop_cells,
    finest_share,
    floor,
    down,
    up,
    least_scale,
    most_scale,
    least_shared,
    poses,
    costs,
    done,
    hessian,
    squared,
    valid,
    pixels,
):
    """`run_level` on one level after the other, coarse to fine, from `start`: tuples have an entry a level, arrays a row.

    information [levels, 6, 6], or no rows where there is no prior. Fills done [levels], the iterations of each, and what
    `run_level` fills, where poses and costs go on with their last values. Returns the level whose end stands, and whether
    enough points were visible at the start of every level.
    """
    levels, points = len(features), xyz.shape[0]
    prior = np.empty((0, 0))
    alive = True
    pose = start
    for k in range(levels):
        if information.shape[0]:
            prior = information[k]
        most = iterations if alive else 0
        steps = run_level(
            features[k],
            strides[k],
            query_confidences[k],
            width,
            height,
            border,
            kind,
            cam,
            limit,
            xyz,
            descriptors[k],
            confidences[k],
            mask,
            pose,
            loss_kind,
            loss_scale,
            prior_inverse,
            prior,
            factors[k],
            axes,
            most,
            min_points,
            stop_cells,
            floor,
            down,
            up,
            least_scale,
            most_scale,
            least_shared,
            poses[k],
            costs[k],
            hessian[k],
            squared[k],
            valid[k],
            pixels[k],
        )
        alive = alive and steps >= 0
        steps = max(steps, 0)
        done[k] = steps
        pose = poses[k, steps]
        poses[k, steps + 1 :], costs[k, steps + 1 :] = pose, costs[k, steps]
    if levels > 1 and finest_share > 0:
        inliers, finest = 0, 0
        for i in range(points):
            inliers += valid[levels - 2, i] and squared[levels - 2, i] < 2 * loss_scale
            finest += valid[levels - 1, i] and squared[levels - 1, i] < 2 * loss_scale
        if finest < finest_share * inliers:
            return levels - 2, alive
    return levels - 1, alive


@numba.njit(**_JIT)
def median_motion(kind, cam, limit, xyz, pose, pixels, visible):
    """Median distance in pixels between the projections of points [N, 3] at a pose [4, 4] and pixels [N, 2], over the visible
    points that are valid there; 0 where there are none."""
    moved, pixel, jacobian = np.empty(len(xyz)), np.empty(2), np.empty((2, 3))
    count = 0
    for i in range(len(xyz)):
        px, py, pz = float(xyz[i, 0]), float(xyz[i, 1]), float(xyz[i, 2])
        x = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * pz + pose[0, 3]
        y = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * pz + pose[1, 3]
        z = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * pz + pose[2, 3]
        if visible[i] and project_point(kind, cam, limit, x, y, z, pixel, jacobian):
            moved[count] = math.hypot(pixel[0] - pixels[i, 0], pixel[1] - pixels[i, 1])
            count += 1
    return np.median(moved[:count]) if count else 0.0
