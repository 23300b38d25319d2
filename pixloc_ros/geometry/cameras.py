# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Camera models: points in the camera frame (x right, y down, z forward, metres) to pixels and back.

Pixel (0, 0) is the CENTRE of the top-left pixel, as in OpenCV and sensor_msgs/CameraInfo. COLMAP puts (0, 0) at that
pixel's corner: the half pixel is taken off in `Camera.from_colmap` (put back in `Camera.to_colmap`) and nowhere else.

=====================  =======================================  ===========================================
model                  params after fx, fy, cx, cy              equals
=====================  =======================================  ===========================================
pinhole                                                         COLMAP PINHOLE
radial                 k1, k2                                   COLMAP RADIAL
plumb_bob              k1, k2, p1, p2, k3                       OpenCV with 5 numbers, COLMAP OPENCV (k3 = 0)
rational_polynomial    k1, k2, p1, p2, k3, k4, k5, k6           OpenCV with 8 numbers, COLMAP FULL_OPENCV
equidistant            k1, k2, k3, k4                           cv2.fisheye, COLMAP OPENCV_FISHEYE
=====================  =======================================  ===========================================

A distortion polynomial is only good up to the radius where it stops growing: beyond, it folds far points back into the
image. `Camera` finds that radius once and calls what lies outside invalid. The tangential terms (p1, p2) are left out
of that radius; they are small against it in every lens they are meant for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import InputError

MIN_DEPTH = 1e-12
"""Points nearer than this (along z, or from the centre for equidistant cameras) are invalid. It only keeps quotients finite in
single precision: a map's unit of length may be anything, so that no depth is near in itself."""

_DISTORTION_COUNT = {"pinhole": 0, "radial": 2, "plumb_bob": 5, "rational_polynomial": 8, "equidistant": 4}

# COLMAP model → (our model, for each of our params the index of COLMAP's, or None for 0).
_COLMAP: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "SIMPLE_PINHOLE": ("pinhole", (0, 0, 1, 2)),
    "PINHOLE": ("pinhole", (0, 1, 2, 3)),
    "SIMPLE_RADIAL": ("radial", (0, 0, 1, 2, 3, None)),
    "RADIAL": ("radial", (0, 0, 1, 2, 3, 4)),
    "OPENCV": ("plumb_bob", (0, 1, 2, 3, 4, 5, 6, 7, None)),
    "FULL_OPENCV": ("rational_polynomial", tuple(range(12))),
    "OPENCV_FISHEYE": ("equidistant", tuple(range(8))),
    "SIMPLE_RADIAL_FISHEYE": ("equidistant", (0, 0, 1, 2, 3, None, None, None)),
    "RADIAL_FISHEYE": ("equidistant", (0, 0, 1, 2, 3, 4, None, None)),
}
_ROS_MODEL = {name: name for name in ("plumb_bob", "rational_polynomial", "equidistant")} | {"fisheye": "equidistant"}
_UNPROJECT_ITERATIONS = 20


def _first_positive_root(coefficients: Sequence[float]) -> float:
    """Smallest positive real root of sum_i coefficients[i] x^i; infinity if there is none. Raises InputError: no numbers."""
    try:
        roots = np.polynomial.Polynomial(np.trim_zeros(np.asarray(coefficients, float), "b")).roots()
    except np.linalg.LinAlgError:
        raise InputError("the distortion coefficients are no numbers that a lens can have: calibrate the camera again") from None
    real = roots.real[(np.abs(roots.imag) <= 1e-7 * np.abs(roots)) & (roots.real > 0)]
    return float(real.min()) if real.size else math.inf


def _valid_limit(model: str, params: Sequence[float]) -> float:
    """Where one camera's distortion stops growing: squared normalised radius; for equidistant the angle (at most π)."""
    k = params[4:]
    if model == "equidistant":  # theta_d = theta (1 + k1 theta² + ...)
        derivative = [(2 * i + 1) * c for i, c in enumerate((1.0, *k))]
        return min(math.sqrt(_first_positive_root(derivative)), math.pi)
    radial = (1.0, *k[:2], *k[4:5])
    numerator = np.polynomial.Polynomial(radial)
    denominator = np.polynomial.Polynomial((1.0, *k[5:8]))
    t = np.polynomial.Polynomial((0.0, 1.0))
    # d/dr of r N(r²)/D(r²) has the sign of N D + 2 t (N' D - N D'), t = r²; a pole of N/D ends the range as well.
    growth = numerator * denominator + 2 * t * (numerator.deriv() * denominator - numerator * denominator.deriv())
    return min(_first_positive_root(growth.coef), _first_positive_root(denominator.coef))


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera, or a batch of cameras of one model and image size.

    Attributes:
        model: A name of the table above.
        width: Of the image, pixels.
        height: Of the image, pixels.
        params: ``[..., P]`` float64 as in the table; leading dimensions match those of the points.
        limit: ``[...]``, where the distortion folds over; found here unless given.

    Raises:
        InputError: The model is unknown, the number of params is wrong or the image is empty.
    """

    model: str
    width: int
    height: int
    params: torch.Tensor
    limit: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.model not in _DISTORTION_COUNT:
            raise InputError(f"camera model '{self.model}' is unknown: use one of {', '.join(_DISTORTION_COUNT)}")
        expected = 4 + _DISTORTION_COUNT[self.model]
        if self.params.shape[-1] != expected:
            raise InputError(f"camera model {self.model} takes {expected} numbers, not {self.params.shape[-1]}")
        if self.width <= 0 or self.height <= 0:
            raise InputError(f"camera image size {self.width}x{self.height} is empty: give its width and height in pixels")
        if self.limit is None:
            rows = self.params.detach().reshape(-1, expected)
            if self.model == "pinhole":
                limit = torch.full_like(rows[:, 0], math.inf)
            else:
                limit = rows.new_tensor([_valid_limit(self.model, row) for row in rows.tolist()])
            object.__setattr__(self, "limit", limit.reshape(self.params.shape[:-1]))

    # ---- construction and conversion

    @classmethod
    def from_colmap(cls, name: str, width: int, height: int, params: Sequence[float]) -> Camera:
        """Camera from COLMAP's model name and numbers; principal points lose COLMAP's half pixel here.

        Fisheye models other than FOV and thin-prism ones become equidistant; zero distortion becomes pinhole.
        Raises `InputError` for another model, a wrong count, or numbers that make no camera.
        """
        if name not in _COLMAP:
            raise InputError(f"COLMAP camera model '{name}' is not supported: undistort the images, or use {', '.join(_COLMAP)}")
        model, indices = _COLMAP[name]
        expected = max(index for index in indices if index is not None) + 1
        if len(params) != expected:
            raise InputError(f"COLMAP camera model {name} takes {expected} numbers, not {len(params)}: see COLMAP's cameras.txt")
        values = [0.0 if index is None else float(params[index]) for index in indices]
        values[2:4] = values[2] - 0.5, values[3] - 0.5
        return cls._checked(f"COLMAP camera {name}", model, width, height, values)

    @classmethod
    def parse_colmap_line(cls, text: str) -> Camera:
        """Camera from ``MODEL WIDTH HEIGHT PARAMS...`` (a line of COLMAP's cameras.txt without its id)."""
        words = text.split()
        try:
            name, width, height, params = words[0], int(words[1]), int(words[2]), [float(word) for word in words[3:]]
        except (IndexError, ValueError):
            raise InputError(f"camera '{text.strip()}' cannot be read: write MODEL WIDTH HEIGHT PARAMS...") from None
        return cls.from_colmap(name, width, height, params)

    @classmethod
    def from_camera_info(
        cls,
        distortion_model: str,
        width: int,
        height: int,
        k: Sequence[float],
        d: Sequence[float],
        binning_x: int = 0,
        binning_y: int = 0,
        roi: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Camera:
        """Camera of the image that comes with a sensor_msgs/CameraInfo (plain numbers; REP-104).

        Trailing zeros in d do no harm; polynomial models whose d is all zero or empty become pinhole.

        Args:
            distortion_model: As in the message.
            width: Of the full sensor, pixels.
            height: Of the full sensor, pixels.
            k: Camera matrix of the full sensor, row-major 3x3.
            d: Distortion of the full sensor.
            binning_x: So many columns merge into one (0: 1). A merged pixel's centre lies between those of its parts:
                ``c' = (c + 0.5) / binning - 0.5``.
            binning_y: So many rows merge into one.
            roi: (x_offset, y_offset, width, height) in full pixels, cut out before binning (all zero: nothing is cut).

        Raises:
            InputError: The camera is uncalibrated, unknown or inconsistent.
        """
        if len(k) != 9:
            raise InputError(f"CameraInfo k has {len(k)} numbers instead of 9: publish the calibration's camera matrix")
        if not k[0] or not k[4]:
            raise InputError("CameraInfo k is zero, the camera is not calibrated: calibrate it and publish k and d")
        if abs(k[1]) > 1e-6 * abs(k[0]):
            raise InputError(f"CameraInfo k has skew {k[1]:g}, which is not supported: calibrate without skew")
        if any(d) or distortion_model:
            if distortion_model not in _ROS_MODEL:
                raise InputError(
                    f"CameraInfo distortion_model '{distortion_model}' is not supported: use {', '.join(_ROS_MODEL)}"
                )
            model = _ROS_MODEL[distortion_model]
        else:
            model = "pinhole"
        count = _DISTORTION_COUNT[model]
        distortion = list(d)
        while len(distortion) > count and distortion[-1] == 0:
            distortion.pop()
        if not distortion and model != "equidistant" or model == "plumb_bob" and len(distortion) == 4:
            distortion += [0.0] * (count - len(distortion))
        if len(distortion) != count:
            raise InputError(f"CameraInfo d has {len(d)} numbers but {distortion_model} takes {count}: publish the calibration's")
        camera = cls._checked("CameraInfo", model, width, height, [k[0], k[4], k[2], k[5], *distortion])
        x, y, roi_width, roi_height = roi
        if any(roi):
            if min(roi) < 0 or not roi_width or not roi_height or x + roi_width > width or y + roi_height > height:
                raise InputError(f"CameraInfo roi {tuple(roi)} does not lie in the {width}x{height} image: fix the driver")
            params = camera.params.clone()
            params[2:4] -= params.new_tensor([x, y])
            camera = replace(camera, width=roi_width, height=roi_height, params=params)
        bin_x, bin_y = max(int(binning_x), 1), max(int(binning_y), 1)
        if bin_x == bin_y == 1:
            return camera
        return camera.scaled(1 / bin_x, 1 / bin_y, camera.width // bin_x, camera.height // bin_y)

    @classmethod
    def _checked(cls, what: str, model: str, width: int, height: int, values: Sequence[float]) -> Camera:
        """Unbatched camera from outside numbers: finite, positive focal lengths, no needless distortion."""
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"{what} holds NaN or infinite numbers: calibrate the camera again")
        if values[0] <= 0 or values[1] <= 0:
            raise InputError(f"{what} has focal length {values[0]:g}, {values[1]:g}: it must be positive, in pixels")
        if model != "equidistant" and not any(values[4:]):
            model, values = "pinhole", values[:4]
        return cls(model, int(width), int(height), torch.tensor(values, dtype=torch.float64))

    def to_colmap(self) -> tuple[str, list[float]]:
        """COLMAP's model name and numbers (corner convention) of one unbatched camera."""
        values = [float(value) for value in self.params]
        values[2:4] = values[2] + 0.5, values[3] + 0.5
        if self.model == "radial":
            if values[0] == values[1]:
                return "RADIAL", values[1:]
            return "OPENCV", [*values, 0.0, 0.0]
        if self.model == "plumb_bob":
            return ("FULL_OPENCV", [*values, 0.0, 0.0, 0.0]) if values[8] else ("OPENCV", values[:8])
        names = {"pinhole": "PINHOLE", "rational_polynomial": "FULL_OPENCV", "equidistant": "OPENCV_FISHEYE"}
        return names[self.model], values

    def to_colmap_line(self) -> str:
        """`MODEL WIDTH HEIGHT PARAMS...`, as `parse_colmap_line` reads it."""
        name, params = self.to_colmap()
        return f"{name} {self.width} {self.height} {' '.join(f'{value:.12g}' for value in params)}"

    def to(self, *args, **kwargs) -> Camera:
        """Same camera with tensors on another device or of another dtype (arguments of `torch.Tensor.to`)."""
        return replace(self, params=self.params.to(*args, **kwargs), limit=self.limit.to(*args, **kwargs))

    def scaled(self, scale_x: float, scale_y: float, width: int, height: int) -> Camera:
        """Camera of the image resized to width × height: ``f' = f s``, ``c' = (c + 0.5) s - 0.5``."""
        scale = self.params.new_tensor([scale_x, scale_y])
        focal, centre, distortion = self.params[..., :2], self.params[..., 2:4], self.params[..., 4:]
        params = torch.cat((focal * scale, (centre + 0.5) * scale - 0.5, distortion), -1)
        return replace(self, width=width, height=height, params=params)

    def of_image(self, image: np.ndarray) -> Camera:
        """Camera of an image [H, W] or [H, W, 3] that this one's was resized from or to."""
        height, width = image.shape[:2]
        return self.scaled(width / self.width, height / self.height, width, height)

    # ---- projection

    def in_image(self, pixels: torch.Tensor, border: float = 0.0) -> torch.Tensor:
        """Which pixels ``[..., 2]`` lie at least border pixels inside the outermost pixel centres → bool ``[...]``."""
        x, y = pixels.unbind(-1)
        return (x >= border) & (x <= self.width - 1 - border) & (y >= border) & (y <= self.height - 1 - border)

    def project(self, points_camera: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels ``[..., N, 2]`` of points ``[..., N, 3]`` in the camera frame, and which are valid ``[..., N]``.

        Valid: in front, finite, and inside the range where the distortion grows; not the image bounds (`in_image`).
        The pixels of invalid points are finite and mean nothing.
        """
        pixels, valid, _ = self._project(points_camera, False)
        return pixels, valid

    def project_with_jacobian(self, points_camera: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `project`, and the derivative ``[..., N, 2, 3]`` of each pixel by its point (pixels per metre)."""
        return self._project(points_camera, True)

    def _project(self, points, with_jacobian):
        params = self.params.to(points.dtype).unsqueeze(-2)
        limit = self.limit.to(points.dtype).unsqueeze(-1)
        focal, centre = params[..., :2], params[..., 2:4]
        if self.model == "equidistant":
            distorted, valid, jacobian = _project_equidistant(points, params, limit, with_jacobian)
            return centre + focal * distorted, valid, focal.unsqueeze(-1) * jacobian if with_jacobian else None
        depth = points[..., 2:]
        inverse_depth = depth.clamp(min=MIN_DEPTH).reciprocal()
        rays = points[..., :2] * inverse_depth
        squared = (rays * rays).sum(-1)
        valid = (squared < limit) & (depth.squeeze(-1) > MIN_DEPTH)
        rays = torch.where(valid.unsqueeze(-1), rays, 0.0)
        scale = focal * inverse_depth
        if self.model == "pinhole":
            pixels = centre + focal * rays
            if not with_jacobian:
                return pixels, valid, None
            return pixels, valid, torch.cat((torch.diag_embed(scale), (-scale * rays).unsqueeze(-1)), -1)
        distorted, inner = self._distort(rays, params, with_jacobian)
        pixels = centre + focal * distorted
        if not with_jacobian:
            return pixels, valid, None
        inner = scale.unsqueeze(-1) * inner
        return pixels, valid, torch.cat((inner, -(inner @ rays.unsqueeze(-1))), -1)

    def _distort(self, rays, params, with_jacobian):
        """Distorted rays ``[..., N, 2]`` of a polynomial model and their derivative ``[..., N, 2, 2]`` (or None).

        With r² = |x|², q = (p2, p1): d(x) = a x + r² q, a = g(r²) + 2 q·x; hence d' = a I + 2 (x mᵀ + m xᵀ)
        with m = q + (dg/dr²) x / 2 (q is missing from the radial model).
        """
        x = rays
        squared = (x * x).sum(-1, keepdim=True)
        k = params[..., 4:].split(1, -1)
        if self.model == "radial":
            gain = 1 + squared * (k[0] + squared * k[1])
            slope = k[0] + 2 * squared * k[1]
        else:
            gain = 1 + squared * (k[0] + squared * (k[1] + squared * k[4]))
            slope = k[0] + squared * (2 * k[1] + 3 * squared * k[4])
        if self.model == "rational_polynomial":
            denominator = 1 + squared * (k[5] + squared * (k[6] + squared * k[7]))
            gain = gain / denominator
            slope = (slope - gain * (k[5] + squared * (2 * k[6] + 3 * squared * k[7]))) / denominator
        if self.model == "radial":
            factor, distorted, mixed = gain, gain * x, (0.5 * slope) * x
        else:
            tangential = torch.cat((k[3], k[2]), -1)
            factor = gain + 2 * (tangential * x).sum(-1, keepdim=True)
            distorted = factor * x + squared * tangential
            mixed = tangential + (0.5 * slope) * x
        if not with_jacobian:
            return distorted, None
        outer = x.unsqueeze(-1) * mixed.unsqueeze(-2)
        return distorted, torch.diag_embed(factor.expand_as(x)) + 2 * (outer + outer.mT)

    def unproject(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit rays ``[..., N, 3]`` in the camera frame through pixels ``[..., N, 2]``, and which are valid.

        Newton's method, a fixed number of steps; a pixel that no point inside the valid range projects to (beyond the
        fold, NaN) is invalid and its ray means nothing. Equidistant rays may point backwards (above 180° of view).
        """
        params = self.params.to(pixels.dtype).unsqueeze(-2)
        limit = self.limit.to(pixels.dtype).unsqueeze(-1)
        target = (pixels - params[..., 2:4]) / params[..., :2]
        finite = torch.isfinite(target).all(-1)
        target = torch.where(finite.unsqueeze(-1), target, 0.0)
        tolerance = 1e3 * torch.finfo(pixels.dtype).eps * (1 + target.norm(dim=-1))
        if self.model == "equidistant":
            return _unproject_equidistant(target, params, limit, finite, tolerance)
        x = target
        if self.model != "pinhole":
            inside = (0.999 * limit.sqrt()).unsqueeze(-1)
            x = x * (inside / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
            for _ in range(_UNPROJECT_ITERATIONS):
                distorted, jacobian = self._distort(x, params, True)
                (a, b), (c, d) = (row.unbind(-1) for row in jacobian.unbind(-2))
                u, v = (target - distorted).unbind(-1)
                determinant = a * d - b * c
                determinant = torch.where(determinant.abs() < 1e-9, torch.ones_like(determinant), determinant)
                x = x + torch.stack((d * u - b * v, a * v - c * u), -1) / determinant.unsqueeze(-1)
                length = x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                x = x * (inside / length).clamp(max=1.0)
            finite = finite & ((self._distort(x, params, False)[0] - target).norm(dim=-1) < tolerance)
        ray = torch.nn.functional.pad(x, (0, 1), value=1.0)
        return torch.nn.functional.normalize(ray, dim=-1), finite & ((x * x).sum(-1) < limit)


def _equidistant_polynomial(theta, params):
    """theta_d / theta and d theta_d / d theta of the angle theta ``[..., N]``."""
    k1, k2, k3, k4 = params[..., 4:].unbind(-1)
    squared = theta * theta
    ratio = 1 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))
    slope = 1 + squared * (3 * k1 + squared * (5 * k2 + squared * (7 * k3 + squared * 9 * k4)))
    return ratio, slope


def _project_equidistant(points, params, limit, with_jacobian):
    """Distorted image-plane coordinates of points by their angle to the axis, which may exceed 90°."""
    plane, depth = points[..., :2], points[..., 2]
    radius2 = (plane * plane).sum(-1)
    distance2 = radius2 + depth * depth
    on_axis = radius2 <= torch.finfo(points.dtype).eps * distance2
    radius = torch.where(on_axis, torch.ones_like(radius2), radius2).sqrt()
    theta = torch.where(on_axis, torch.where(depth > 0, 0.0, math.pi), torch.atan2(radius, depth))
    valid = (theta < limit) & (distance2 > MIN_DEPTH**2) & (distance2 < math.inf)
    theta = torch.where(valid, theta, 0.0)
    axis_depth = torch.where(on_axis & valid, depth, torch.ones_like(depth))
    ratio, slope = _equidistant_polynomial(theta, params)
    scale = torch.where(on_axis, 1 / axis_depth, theta * ratio / radius)
    plane = torch.where(valid.unsqueeze(-1), plane, 0.0)
    distorted = scale.unsqueeze(-1) * plane
    if not with_jacobian:
        return distorted, valid, None
    # d theta / d(plane) = depth/distance² · plane/radius and d theta / d depth = -radius/distance².
    inverse2 = 1 / torch.where(valid, distance2, torch.ones_like(distance2))
    cross = torch.where(on_axis, 0.0, (slope * depth * inverse2 - scale) / radius**2)
    inner = cross[..., None, None] * plane.unsqueeze(-1) * plane.unsqueeze(-2)
    inner = inner + torch.diag_embed(scale.unsqueeze(-1).expand_as(plane))
    last = (-slope * inverse2).unsqueeze(-1) * plane
    return distorted, valid, torch.cat((inner, last.unsqueeze(-1)), -1)


def _unproject_equidistant(target, params, limit, finite, tolerance):
    """Unit rays of undistorted-by-focal coordinates ``[..., N, 2]``: Newton on the angle."""
    squared = (target * target).sum(-1)
    on_axis = squared < 1e-30
    radius = torch.where(on_axis, torch.ones_like(squared), squared).sqrt()
    wanted = torch.where(on_axis, 0.0, radius)
    inside = 0.9999 * limit
    theta = torch.minimum(wanted, inside)
    for _ in range(_UNPROJECT_ITERATIONS):
        ratio, slope = _equidistant_polynomial(theta, params)
        step = (wanted - theta * ratio) / torch.where(slope.abs() < 1e-9, torch.ones_like(slope), slope)
        theta = torch.minimum((theta + step).clamp(min=0.0), inside)
    ratio, _ = _equidistant_polynomial(theta, params)
    converged = ((theta * ratio - wanted).abs() < tolerance) & (theta < limit)
    side = (theta.sin() / radius).unsqueeze(-1) * target
    return torch.cat((side, theta.cos().unsqueeze(-1)), -1), finite & converged
