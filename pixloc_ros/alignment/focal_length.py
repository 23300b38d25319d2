# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What one aligned image tells of its camera's focal length.

A wrong focal length moves the reprojections away from the image's centre. Points at one depth cannot tell it from a camera that
stands further back; points at several depths can, and then the pose that fits best is wrong although all looks well. The
alignment of the two finest levels is therefore done once more from the pose found, with one number in addition to the pose's six.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..geometry import se3
from ..geometry.cameras import Camera
from .cost import Linearization, linearize, normal_equations
from .optimizer import AlignmentOptions
from .types import View, map_tensors

_LEVELS, _STEPS, _POINTS = 2, 6, 400
_STILL = 3e-5
_PRIOR_STD = 0.2
"""Of the logarithm of the ratio: no focal length is further off without being seen at once."""


@dataclass(frozen=True)
class FocalLength:
    """The focal length that fits one image best.

    Attributes:
        log_ratio: Logarithm of the right focal length over the one given.
        std: Its standard deviation, by this image's noise alone.
    """

    log_ratio: float
    std: float


@torch.inference_mode()
def estimate_focal_length(view: View, camera_from_map: torch.Tensor, options: AlignmentOptions) -> FocalLength | None:
    """Moves pose and focal length together, from where an alignment ended, until features agree best.

    Args:
        view: As given to `align`, with unbatched points and without a mask.
        camera_from_map: The pose found, [4, 4].
        options: As given to `align`.

    Returns:
        None where the image does not tell: too few points, or no step that lowers the cost ends.
    """
    some = slice(None, None, max(len(view.points) // _POINTS, 1))
    view = replace(view, points=map_tensors(view.points, lambda tensor: tensor[None, some]))
    pose, ratio = camera_from_map[None].double(), 0.0
    system = None
    levels = len(view.pyramid.levels)
    for k in range(max(levels - _LEVELS, 0), levels):
        found = _align_level(view, k, pose, ratio, options)
        if found is None:
            break
        pose, ratio, *system = found
    if system is None:
        return None
    hessian, cost = system
    units = _units(hessian)
    try:
        covariance = np.linalg.inv(hessian / np.outer(units, units)) * cost
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(covariance).all() and covariance[6, 6] > 0):
        return None
    return FocalLength(ratio, float(np.sqrt(covariance[6, 6]) / units[6]))


def _align_level(
    view: View, level: int, pose: torch.Tensor, ratio: float, options: AlignmentOptions
) -> tuple[torch.Tensor, float, np.ndarray, float] | None:
    """Pose [1, 4, 4], log ratio, Hessian [7, 7] and mean cost at the end of a level; None where it must not be used."""

    def at(pose: torch.Tensor, ratio: float) -> tuple[Linearization, Camera]:
        scaled = _with_focal(view.camera, ratio)
        return linearize(replace(view, camera=scaled), level, pose, options.loss, options.border_cells), scaled

    (now, scaled), damping = at(pose, ratio), 1e-3
    if int(now.valid.sum()) < options.min_points:
        return None
    weight = options.feature_variance / _PRIOR_STD**2
    hessian, gradient = _system(now, scaled, ratio, weight)
    for _ in range(_STEPS):
        units = _units(hessian)
        damped = hessian / np.outer(units, units) + (damping + 1e-9) * np.eye(7)
        step = -np.linalg.solve(damped, gradient / units) / units
        candidate = se3.retract(pose, torch.from_numpy(step[:6])[None])
        new, scaled = at(candidate, ratio + step[6])
        shared = (now.valid & new.valid).double()
        lower = (
            float((now.confidence * (new.loss - now.loss) * shared).sum()) + weight * ((ratio + step[6]) ** 2 - ratio**2) < 0
            and float(shared.sum()) >= options.min_points
        )
        if lower:
            pose, ratio, now = candidate, ratio + float(step[6]), new
            hessian, gradient = _system(now, scaled, ratio, weight)
        damping *= 0.1 if lower else 10.0
        if abs(step[6]) < _STILL:
            break
    return pose, ratio, hessian, float(now.mean_cost())


def _system(now: Linearization, camera: Camera, ratio: float, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Hessian [7, 7] and gradient [7] for pose and logarithm of the focal length."""
    # pixel = centre + focal * (distorted ray), in every model
    outwards = (now.pixels - camera.params[2:4].to(now.pixels.dtype)) * now.valid[..., None]
    jacobian = torch.cat((now.pixel_jacobian, outwards[..., None]), -1)
    hessian, gradient = (value[0].double().numpy().copy() for value in normal_equations(now.slope_products, jacobian))
    hessian[6, 6] += weight
    gradient[6] += weight * ratio
    return hessian, gradient


def _units(hessian: np.ndarray) -> np.ndarray:
    """By which a Hessian is divided, [7], so that its diagonal is 1: the translation's unit is that of the map."""
    return np.sqrt(np.maximum(hessian.diagonal(), np.finfo(float).tiny))


def _with_focal(camera: Camera, log_ratio: float) -> Camera:
    params = camera.params.clone()
    params[:2] *= float(np.exp(log_ratio))
    return replace(camera, params=params)
