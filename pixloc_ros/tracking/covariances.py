# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Covariances [6, 6] of poses, (translation, rotation), float64: made, compared, bounded.

The arithmetic is NumPy's on the tensors' memory: for matrices of this size it takes a third of the time, and unlike torch's it
never waits for compute threads that are busy elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3


def isotropic(translation_std: float, rotation_std: float) -> torch.Tensor:
    """Independent axes with these standard deviations."""
    return from_variances([translation_std**2] * 3 + [rotation_std**2] * 3)


def from_variances(variances: list[float] | np.ndarray) -> torch.Tensor:
    """Diagonal covariance."""
    return torch.from_numpy(np.diag(np.asarray(variances, np.float64)))


def check_covariance(covariance: torch.Tensor, what: str) -> None:
    """Raises `InputError` naming `what` for anything but a positive definite [6, 6]."""
    values = covariance.numpy()
    try:
        if values.shape != (6, 6) or not np.allclose(values, values.T, rtol=1e-6, atol=0.0) or not np.isfinite(values).all():
            raise np.linalg.LinAlgError
        np.linalg.cholesky(values)
    except np.linalg.LinAlgError:
        raise InputError(f"{what} must be [6, 6], symmetric and positive definite (translation, rotation)") from None


def given_covariance(covariance: torch.Tensor | None, translation_std: float, rotation_std: float) -> torch.Tensor:
    """A covariance that somebody gives, or with these standard deviations where it is None or zeros. Raises `InputError` for one
    that cannot be."""
    if covariance is None or not bool(covariance.any()):
        return isotropic(translation_std, rotation_std)
    if not bool(torch.isfinite(covariance).all()) or float(torch.linalg.eigvalsh(covariance.double())[0]) < -1e-9:
        raise InputError("initial pose covariance is NaN or not positive: give variances, or zeros for unknown")
    return covariance.double()


def mahalanobis(
    map_from_base: torch.Tensor, covariance: torch.Tensor, other: torch.Tensor, other_covariance: torch.Tensor
) -> float:
    """Distance between two poses [4, 4] in standard deviations of their difference; body perturbations."""
    error = se3.se3_log(se3.inverse(map_from_base) @ other).numpy()
    return math.sqrt(max(error @ np.linalg.solve(covariance.numpy() + other_covariance.numpy(), error), 0.0))


def not_worse_than(covariance: torch.Tensor, prior_covariance: torch.Tensor) -> torch.Tensor:
    """Along directions the image does not determine, the prior's variance stands; along the others the image's.

    They are not multiplied as independent measurements would be: successive images see the same wrong map.
    """
    return _clamped_against(covariance, prior_covariance, 0.0, 1.0)


def not_better_than(covariance: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """At least the floor's variance in every direction."""
    return _clamped_against(covariance, floor, 1.0, np.inf)


def _clamped_against(covariance: torch.Tensor, reference: torch.Tensor, least: float, most: float) -> torch.Tensor:
    """Covariance with its variances, in units of the reference's and along their common axes, clamped."""
    root = np.linalg.cholesky(reference.numpy())
    back = np.linalg.inv(root)
    values, axes = np.linalg.eigh(back @ covariance.numpy() @ back.T)
    basis = root @ axes
    return torch.from_numpy((basis * values.clip(least, most)) @ basis.T)
