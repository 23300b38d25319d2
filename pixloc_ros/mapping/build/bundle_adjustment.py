# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of the poses of images and of the points they see, by pycolmap; cameras stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...errors import InputError
from ...geometry import se3
from .matching import colmap_model, pixel_scale, require_pycolmap
from .observations import Observations, Views, reprojection_errors, rows_by_image

_FEWEST_OBSERVATIONS = 2
_PIXEL_STD = 1.0
"""Of observations, against centres. They are found more exactly, but calibration errs the same way everywhere."""


@dataclass(frozen=True)
class AdjustmentOptions:
    """How poses and points are adjusted.

    Attributes:
        position_std: How well the centres of the images are known, in units of the map; None where they are not: the first
            image and the distance to another then stay.
        max_error_px: After each round observations with a larger reprojection error are left out, for images of 640 pixels.
        loss_px: In each round observations count in full up to about this error, and less beyond (Cauchy).
        iterations: Of each round, at most.
    """

    position_std: float | None = None
    max_error_px: tuple[float, ...] = (4.0, 3.0)
    loss_px: tuple[float, ...] = (1.0, 1.0)
    iterations: int = 50


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What came out.

    Attributes:
        map_from_camera: float64 [K, 4, 4].
        xyz: float64 [P, 3].
        kept: bool [M], the observations that agree.
        error_px: float64 [M], of all.
    """

    map_from_camera: torch.Tensor
    xyz: np.ndarray
    kept: np.ndarray
    error_px: np.ndarray


def adjust(
    views: Views,
    xyz: np.ndarray,
    seen: Observations,
    options: AdjustmentOptions = AdjustmentOptions(),
    centres: np.ndarray | None = None,
) -> Adjustment:
    """Poses and points that reproject best.

    Nothing holds the rotations: with centres near one line, the whole may come out turned about it.

    Args:
        views: K images, and where they are as far as is known.
        xyz: float64 [P, 3], points as far as is known.
        seen: Observations with their pixels; an image sees a point once.
        options: See there.
        centres: float64 [K, 3] that `position_std` is of, those of `views` by default.

    Raises:
        InputError: No image sees a point that another sees, or the adjustment fails.
    """
    scale = np.array([pixel_scale(camera) for camera in views.cameras])[seen.image]
    centres = views.map_from_camera[:, :3, 3].numpy() if centres is None else centres
    kept, poses = _twice_seen(seen, np.ones(len(seen.point), bool), len(xyz)), views.map_from_camera
    error = np.full(len(seen.point), np.inf)
    for most, loss in zip(options.max_error_px, options.loss_px):
        if not kept.any():
            raise InputError("no image sees a point that another one sees: poses cannot be adjusted")
        poses, xyz = _solve(Views(views.cameras, poses), xyz, seen.only(kept), centres, loss * float(np.median(scale)), options)
        error = reprojection_errors(xyz, views.cameras, list(se3.inverse(poses)), seen)
        kept = _twice_seen(seen, kept & (error <= most * scale), len(xyz))
    return Adjustment(poses, xyz, kept, error)


def _twice_seen(seen: Observations, kept: np.ndarray, points: int) -> np.ndarray:
    """Those of the observations kept (bool [M]) whose point has another."""
    return kept & (np.bincount(seen.point[kept], minlength=points) >= _FEWEST_OBSERVATIONS)[seen.point]


def _solve(
    views: Views, xyz: np.ndarray, seen: Observations, centres: np.ndarray, loss_px: float, options: AdjustmentOptions
) -> tuple[torch.Tensor, np.ndarray]:
    """One round: poses and points."""
    pycolmap, poses = require_pycolmap(), views.map_from_camera
    by_image = rows_by_image(seen.image, len(poses))
    model = colmap_model(views.cameras, poses.numpy(), [seen.pixel[rows] for rows in by_image])
    place = np.empty(len(seen.point), np.int64)
    for rows in by_image:
        place[rows] = np.arange(len(rows))
    order = np.argsort(seen.point, kind="stable")
    used, start = np.unique(seen.point[order], return_index=True)
    number_of = {}
    for point, rows in zip(used.tolist(), np.split(order, start[1:])):
        elements = [pycolmap.TrackElement(int(seen.image[row]) + 1, int(place[row])) for row in rows]
        number_of[point] = model.add_point3D(xyz[point], pycolmap.Track(elements), np.zeros(3, np.uint8))
    settings, config = pycolmap.BundleAdjustmentOptions(), pycolmap.BundleAdjustmentConfig()
    settings.refine_focal_length = settings.refine_extra_params = settings.refine_sensor_from_rig = False
    settings.print_summary = False
    settings.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    settings.ceres.loss_function_scale = loss_px
    settings.ceres.solver_options.max_num_iterations = options.iterations
    settings.ceres.solver_options.function_tolerance = 1e-6
    settings.ceres.solver_options.num_threads = 1  # several threads would not give the same numbers twice
    tied = [k for k, rows in enumerate(by_image) if len(rows)]
    for k in tied:
        config.add_image(k + 1)
    if options.position_std is None:
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        adjuster = pycolmap.create_default_bundle_adjuster(settings, config, model)
    else:
        std = options.position_std / _PIXEL_STD
        priors = [_position(pycolmap, model, k, centres[k], std) for k in tied]
        adjuster = pycolmap.create_pose_prior_bundle_adjuster(
            settings, pycolmap.PosePriorBundleAdjustmentOptions(), config, priors, model
        )
    if not adjuster.solve().is_solution_usable():
        raise InputError("the bundle adjustment fails: check that poses, camera and images belong together")
    result, points = poses.clone(), xyz.copy()
    for k in tied:
        camera_from_map = np.eye(4)
        camera_from_map[:3] = model.images[k + 1].cam_from_world().matrix()
        result[k] = se3.inverse(torch.from_numpy(camera_from_map))
    points[used] = np.array([model.points3D[number_of[point]].xyz for point in used.tolist()]).reshape(-1, 3)
    return result, points


def _position(pycolmap, model, k: int, centre: np.ndarray, std: float):
    prior = pycolmap.PosePrior()
    prior.corr_data_id, prior.pose_prior_id = model.images[k + 1].data_id, k + 1
    prior.position, prior.position_covariance = centre, std**2 * np.eye(3)
    prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
    return prior
