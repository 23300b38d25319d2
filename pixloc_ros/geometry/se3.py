# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Rotations and rigid transforms as matrices, with their exponentials, logarithms and covariances.

Every function takes torch tensors of float32 or float64 on any device, broadcasts over leading dimensions, is
differentiable (also where an angle is zero) and never waits for the device, except `check_pose`. One transform in double
precision on the CPU, where no gradient is asked for, goes through compiled code (`single`): a tracker takes many of them.

Poses are ``a_from_b`` matrices ``[..., 4, 4]``: they map coordinates in frame b to frame a. Tangent vectors are
``[..., 6]`` = (translation, rotation), metres and radians.

Perturbations of a pose ``a_from_b`` and their covariances come in three kinds, equal up to first order terms:

=========  ===================================  =================================================================
kind       meaning of xi                        where it is used
=========  ===================================  =================================================================
body       ``a_from_b · exp(xi)``               all covariances inside this package; xi is expressed in frame b
left       ``exp(xi) · a_from_b``               expressed in frame a, rotations about the ORIGIN of a
fixed      ``t + rho``, ``exp(phi) · R``        ROS messages: axes of frame a, rotations about the origin of b
=========  ===================================  =================================================================

body → left is `transform_covariance(cov, a_from_b)`, body → fixed turns both halves by the R of ``a_from_b``
(`node.conversions`), and a body covariance moves from frame b to a rigidly attached frame c with
`transform_covariance(cov, c_from_b)`.
`retract` perturbs on the left: seen from the inverse pose, that is minus a body perturbation in the same axes.

Formulas: Solà, Deray, Atchuthan, "A micro Lie theory for state estimation in robotics", 2018, section IV and appendix.
"""

from __future__ import annotations

import torch

from ..errors import InputError
from . import single

# Below this squared angle the closed forms lose digits and series (exact to float64 there) take over.
_SERIES_LIMIT = 0.25
_SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800)
_VERSINE = (1 / 2, -1 / 24, 1 / 720, -1 / 40320, 1 / 3628800, -1 / 479001600, 1 / 87178291200)
_CUBIC = (1 / 6, -1 / 120, 1 / 5040, -1 / 362880, 1 / 39916800, -1 / 6227020800, 1 / 1307674368000)
_INVERSE_V = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000, 1 / 74724249600)


def _is_single(*tensors: torch.Tensor) -> bool:
    """Whether compiled code can serve: matrices of double precision on the CPU, not batched, and no gradients."""
    if torch.is_grad_enabled():
        return False
    return all(t.ndim == 2 and t.dtype is torch.float64 and t.is_cpu and t.is_contiguous() for t in tensors)


def _polynomial(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    """Value of sum_i coefficients[i] x^i, by Horner's rule."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


def _matrix_times_vector(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def skew(v: torch.Tensor) -> torch.Tensor:
    """Cross-product matrix: ``skew(v) @ u = v × u``. v ``[..., 3]`` → ``[..., 3, 3]``."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


def _angle_squared(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared length of w ``[..., 3]``, where it is small, and an angle that is safe to divide by and differentiate."""
    squared = (w * w).sum(-1)
    small = squared < _SERIES_LIMIT
    return squared, small, torch.where(small, torch.ones_like(squared), squared).sqrt()


def so3_exp(w: torch.Tensor) -> torch.Tensor:
    """Rotation by ``|w|`` radians about w (Rodrigues). w ``[..., 3]`` → R ``[..., 3, 3]``."""
    squared, small, angle = _angle_squared(w)
    a = torch.where(small, _polynomial(_SINC, squared), angle.sin() / angle)
    b = torch.where(small, _polynomial(_VERSINE, squared), 2.0 * ((0.5 * angle).sin() / angle) ** 2)
    k = skew(w)
    eye = torch.eye(3, dtype=w.dtype, device=w.device)
    return eye + a[..., None, None] * k + b[..., None, None] * (k @ k)


def so3_log(rotation: torch.Tensor) -> torch.Tensor:
    """Rotation vector of R, of length in [0, π]. R ``[..., 3, 3]`` → w ``[..., 3]``.

    At exactly π the axis is one of the two opposite ones. Accurate everywhere because it goes through the quaternion.
    """
    q = quaternion_from_rotation(rotation)
    vector, scalar = q[..., :3], q[..., 3]
    squared = (vector * vector).sum(-1)
    small = squared < 1e-3
    one = torch.ones_like(squared)
    length = torch.where(small, one, squared).sqrt()
    ratio = torch.where(small, squared, one) / torch.where(small, scalar, one) ** 2
    series = 2.0 * _polynomial((1.0, -1 / 3, 1 / 5, -1 / 7, 1 / 9), ratio) / torch.where(small, scalar, one)
    factor = torch.where(small, series, 2.0 * torch.atan2(length, scalar) / length)
    return factor.unsqueeze(-1) * vector


def from_rotation_translation(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """T ``[..., 4, 4]`` from R ``[..., 3, 3]`` and t ``[..., 3]`` (broadcast against each other)."""
    if rotation.shape[:-1] != translation.shape:
        batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
        rotation, translation = rotation.expand(*batch, 3, 3), translation.expand(*batch, 3)
    upper = torch.cat((rotation, translation.unsqueeze(-1)), -1)
    bottom = torch.zeros_like(upper[..., :1, :])
    bottom[..., 3] = 1.0
    return torch.cat((upper, bottom), -2)


def se3_exp(xi: torch.Tensor) -> torch.Tensor:
    """Exponential of the tangent vector xi ``[..., 6]`` = (rho, phi) → T ``[..., 4, 4]``, translation V(phi) rho."""
    if xi.ndim == 1 and _is_single(xi[None]):
        return torch.from_numpy(single.exp(xi.numpy()))
    rho, phi = xi[..., :3], xi[..., 3:]
    squared, small, angle = _angle_squared(phi)
    b = torch.where(small, _polynomial(_VERSINE, squared), 2.0 * ((0.5 * angle).sin() / angle) ** 2)
    c = torch.where(small, _polynomial(_CUBIC, squared), (angle - angle.sin()) / angle**3)
    k = skew(phi)
    k_rho = _matrix_times_vector(k, rho)
    translation = rho + b.unsqueeze(-1) * k_rho + c.unsqueeze(-1) * _matrix_times_vector(k, k_rho)
    return from_rotation_translation(so3_exp(phi), translation)


def se3_log(transform_: torch.Tensor) -> torch.Tensor:
    """Inverse of `se3_exp`: T ``[..., 4, 4]`` → xi ``[..., 6]`` = (rho, phi), ``|phi| <= π``."""
    if _is_single(transform_):
        return torch.from_numpy(single.log(transform_.numpy()))
    phi = so3_log(transform_[..., :3, :3])
    translation = transform_[..., :3, 3]
    squared, small, angle = _angle_squared(phi)
    half = 0.5 * angle
    d = torch.where(small, _polynomial(_INVERSE_V, squared), (1.0 - half * half.cos() / half.sin()) / angle**2)
    k = skew(phi)
    k_t = _matrix_times_vector(k, translation)
    rho = translation - 0.5 * k_t + d.unsqueeze(-1) * _matrix_times_vector(k, k_t)
    return torch.cat((rho, phi), -1)


def inverse(a_from_b: torch.Tensor) -> torch.Tensor:
    """``b_from_a`` of a rigid transform ``[..., 4, 4]``; exact transposition, no general matrix inverse."""
    if _is_single(a_from_b):
        return torch.from_numpy(single.inverse(a_from_b.numpy()))
    rotation = a_from_b[..., :3, :3].mT
    return from_rotation_translation(rotation, -_matrix_times_vector(rotation, a_from_b[..., :3, 3]))


def transform(a_from_b: torch.Tensor, points_b: torch.Tensor) -> torch.Tensor:
    """Points ``[..., N, 3]`` in frame b → the same points in frame a, by ``[..., 4, 4]`` (broadcast)."""
    return points_b @ a_from_b[..., :3, :3].mT + a_from_b[..., None, :3, 3]


def adjoint(a_from_b: torch.Tensor) -> torch.Tensor:
    """Ad ``[..., 6, 6]`` of T, for (translation, rotation) vectors: ``T exp(xi) T⁻¹ = exp(Ad xi)``."""
    rotation = a_from_b[..., :3, :3]
    top = torch.cat((rotation, skew(a_from_b[..., :3, 3]) @ rotation), -1)
    bottom = torch.cat((torch.zeros_like(rotation), rotation), -1)
    return torch.cat((top, bottom), -2)


def retract(a_from_b: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """PixLoc's decoupled left update: ``(so3_exp(dw), dt) · T`` with delta ``[..., 6]`` = (dt, dw) in frame a.

    Agrees with ``se3_exp(delta) · T`` to first order; the translation is added as it is (cvg/pixloc, base optimizer).
    """
    rotation = so3_exp(delta[..., 3:])
    upper = rotation @ a_from_b[..., :3, :]
    return from_rotation_translation(upper[..., :3], upper[..., 3] + delta[..., :3])


def rotation_from_quaternion(q_xyzw: torch.Tensor) -> torch.Tensor:
    """R ``[..., 3, 3]`` from quaternions ``[..., 4]`` = (x, y, z, w), not 0; they are normalised first."""
    x, y, z, w = torch.nn.functional.normalize(q_xyzw, dim=-1).unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def quaternion_from_rotation(rotation: torch.Tensor) -> torch.Tensor:
    """Unit quaternion ``[..., 4]`` = (x, y, z, w), w >= 0, of R ``[..., 3, 3]``.

    The entries of ``4 q qᵀ`` are linear in R, and each of its rows is a multiple of q: the longest one is taken.
    """
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = (row.unbind(-1) for row in rotation.unbind(-2))
    xy, xz, yz = r10 + r01, r20 + r02, r21 + r12
    xw, yw, zw = r21 - r12, r02 - r20, r10 - r01
    xx, yy, zz, ww = 1 + r00 - r11 - r22, 1 - r00 + r11 - r22, 1 - r00 - r11 + r22, 1 + r00 + r11 + r22
    outer = torch.stack((xx, xy, xz, xw, xy, yy, yz, yw, xz, yz, zz, zw, xw, yw, zw, ww), -1).unflatten(-1, (4, 4))
    longest = torch.stack((xx, yy, zz, ww), -1).argmax(-1)
    row = outer.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 4)).squeeze(-2)
    q = torch.nn.functional.normalize(row, dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def interpolate(a_from_b0: torch.Tensor, a_from_b1: torch.Tensor, fraction: float | torch.Tensor) -> torch.Tensor:
    """Pose between two (fraction 0 and 1; others extrapolate): slerp of the rotation, straight line of the origin.

    Transforms ``[..., 4, 4]``, fraction a number or a tensor ``[...]``.
    """
    if isinstance(fraction, float) and _is_single(a_from_b0, a_from_b1):
        return torch.from_numpy(single.interpolate(a_from_b0.numpy(), a_from_b1.numpy(), fraction))
    fraction = torch.as_tensor(fraction, dtype=a_from_b0.dtype, device=a_from_b0.device).unsqueeze(-1)
    rotation0 = a_from_b0[..., :3, :3]
    turn = so3_log(rotation0.mT @ a_from_b1[..., :3, :3])
    translation0 = a_from_b0[..., :3, 3]
    translation = translation0 + fraction * (a_from_b1[..., :3, 3] - translation0)
    return from_rotation_translation(rotation0 @ so3_exp(fraction * turn), translation)


def rotation_angle(rotation: torch.Tensor) -> torch.Tensor:
    """Angle ``[...]`` in [0, π] of R ``[..., 3, 3]``, accurate near both ends (unlike arccos of the trace)."""
    twice = rotation - rotation.mT
    sine_axis = torch.stack((twice[..., 2, 1], twice[..., 0, 2], twice[..., 1, 0]), -1)
    cosine = rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0
    return torch.atan2(torch.linalg.vector_norm(sine_axis, dim=-1), cosine)


def pose_difference(map_from_a: torch.Tensor, map_from_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance ``[...]`` between the origins of a and b (camera centres, in map units) and the angle between their
    axes.

    Mind the direction: the arguments are ``map_from_camera``, not ``camera_from_map``.
    """
    if _is_single(map_from_a, map_from_b):
        numbers = torch.tensor(single.pose_difference(map_from_a.numpy(), map_from_b.numpy()), dtype=torch.float64)
        return numbers[0], numbers[1]
    distance = torch.linalg.vector_norm(map_from_a[..., :3, 3] - map_from_b[..., :3, 3], dim=-1)
    return distance, rotation_angle(map_from_a[..., :3, :3].mT @ map_from_b[..., :3, :3])


def transform_covariance(covariance: torch.Tensor, a_from_b: torch.Tensor) -> torch.Tensor:
    """``Ad Σ Adᵀ`` with Ad the adjoint of ``a_from_b``: covariance ``[..., 6, 6]`` of a twist, from axes b to axes a.

    If Σ belongs to body perturbations ``map_from_b · exp(xi)``, the result belongs to ``map_from_a · exp(xi)`` where a
    is rigidly attached to b; if Σ belongs to ``a_from_b · exp(xi)``, the result belongs to ``exp(xi) · a_from_b``.
    """
    if _is_single(covariance, a_from_b):
        return torch.from_numpy(single.transform_covariance(covariance.numpy(), a_from_b.numpy()))
    matrix = adjoint(a_from_b)
    return matrix @ covariance @ matrix.mT


def check_pose(pose: torch.Tensor, name: str = "pose", tolerance: float = 1e-3) -> None:
    """Raise `InputError` unless ``[..., 4, 4]`` holds rigid transforms (waits for the device).

    tolerance: largest accepted entry of ``R Rᵀ - I``.
    """
    if pose.shape[-2:] != (4, 4):
        raise InputError(f"{name} is not a 4x4 matrix but {tuple(pose.shape)}: give a rigid transform")
    if _is_single(pose) and single.is_pose(pose.numpy(), tolerance):
        return
    if not bool(torch.isfinite(pose).all()):
        raise InputError(f"{name} holds NaN or infinite numbers: give a finite rigid transform")
    rotation = pose[..., :3, :3]
    eye = torch.eye(3, dtype=pose.dtype, device=pose.device)
    if bool(((rotation @ rotation.mT - eye).abs() > tolerance).any()) or bool((torch.linalg.det(rotation) < 0).any()):
        raise InputError(f"{name} has a 3x3 part that is not a rotation: normalise its quaternion, use no scale or mirror")
    if bool(((pose[..., 3, :] - torch.eye(4, dtype=pose.dtype, device=pose.device)[3]).abs() > tolerance).any()):
        raise InputError(f"{name} has a last row that is not 0 0 0 1: give a rigid transform, row by row")
