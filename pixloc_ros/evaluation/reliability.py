# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Whether probabilities can be believed: of poses that are said to be right in nine cases of ten, nine of ten should be."""

import numpy as np

from ..tracking.alignment_judge import RIGHT
from ..tracking.types import TrackState
from .metrics import Evaluation


def reliability(probabilities: np.ndarray, right: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of right ones, and number of those that fall into each bin that is not empty.

    Args:
        probabilities: float64 [N], 0 to 1.
        right: bool [N].
        bins: Of equal width.
    """
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    used, counts = np.unique(which, return_counts=True)
    means = [[values[which == b].mean() for b in used] for values in (probabilities, right)]
    return np.array(means[0]), np.array(means[1]), counts


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: the mean distance of probability and share of right ones over bins of equal width, weighted by
    how many fall into each."""
    likely, share, counts = reliability(probabilities, right, bins)
    return float(np.abs(likely - share) @ counts / max(len(right), 1))


def judged(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Of the scored images whose alignment was believed: probabilities float64 [N], and whether the pose is right, bool [N]."""
    errors, found = evaluation.errors, []
    at = {stamp: k for k, stamp in enumerate(evaluation.run.stamps_ns.tolist()) if evaluation.scored[k]}
    for record in evaluation.run.records:
        k = at.get(record.stamp_ns)
        # Other states give poses that are not the alignment's.
        if k is None or record.state is not TrackState.TRACKING or not np.isfinite([record.probability, record.depth]).all():
            continue
        right = errors.rotation_deg[k] < RIGHT[0] and errors.translation_m[k] < RIGHT[1] * record.depth
        found.append((record.probability, right))
    probabilities, right = np.array(found, float).reshape(-1, 2).T
    return probabilities, right.astype(bool)
