# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Learns what alignments are worth (`tracking.AlignmentJudge`), from right and wrong ones.

A logistic regression of whether the pose is right, and a covariance under which the errors of the right ones are most likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from ..alignment import AlignmentOptions, AlignmentResult, LevelWeights, align
from ..errors import InputError
from ..geometry import se3
from ..tracking.alignment_judge import RIGHT, AlignmentJudge, statistics_of
from ..tracking.frame_aligner import inverse_information
from .alignment_samples import ELSEWHERE, FOREIGN, AlignmentSample, SampleOptions, draw_prior, with_foreign_image

JUDGE_POWERS = (-5.0, 4.0)


@dataclass(frozen=True)
class JudgeSection:
    """The judge's training: alignments per sample; how many of them with a foreign image, which looks like the sample's own where
    there are such; share of samples of places whose prior is elsewhere; how strongly slopes are drawn to zero; how often all
    samples are drawn, one draw after the other, so that memory holds one."""

    alignments: int = 6
    foreign: int = 2
    elsewhere: float = 0.3
    ridge: float = 3.0
    rounds: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.foreign < self.alignments or self.ridge <= 0 or not 0 <= self.elsewhere < 1 or self.rounds < 1:
            raise InputError(
                "judge: of the alignments, 1 or more but not all must be foreign; ridge and rounds above 0; elsewhere below 1"
            )


@dataclass(frozen=True)
class Outcome:
    """One alignment: its statistics (`statistics_of`), whether its pose is right, its error [6] and claimed covariance [6, 6]
    (translations as shares of the depth), its sample's number and the kind of its source."""

    statistics: np.ndarray
    right: bool
    error: np.ndarray
    claimed: np.ndarray
    sample: int
    source: str

    def nees(self, judge: AlignmentJudge) -> float:
        """Squared error by the judge's covariance: 6 on average where that is right."""
        covariance = judge.covariance(torch.from_numpy(self.claimed), self.statistics, 1.0) * judge.elsewhere
        return float(self.error @ np.linalg.solve(covariance.numpy(), self.error))


@torch.inference_mode()
def outcomes(
    samples: Sequence[AlignmentSample], weights: LevelWeights, options: SampleOptions, section: JudgeSection, seed: int
) -> list[Outcome]:
    """Alignments of all samples: as drawn, with further priors of all kinds, and with the images of others."""
    found, rng = [], np.random.default_rng((seed, 1))
    for number, sample in enumerate(samples):
        tried = [sample]
        centre = sample.start if sample.kind == ELSEWHERE else sample.truth
        for _ in range(section.alignments - 1 - section.foreign):
            kind, start, information = draw_prior(centre, sample.depth, options, rng)
            tried.append(replace(sample, start=start, information=information, kind=kind))
        # Photos among photos, places among places: what looks like it is hardest to tell from it.
        others = [one for one in samples if bool(one.shows) == bool(sample.shows) and one is not sample]
        others = [one for one in others if not sample.shows or one.shows != sample.shows] or samples
        for _ in range(section.foreign):
            foreign = with_foreign_image(sample, others[int(rng.integers(len(others)))])
            tried += [foreign] if foreign is not None else []
        for one in tried:
            result = align(one.view, one.start, AlignmentOptions(), None, one.prior, weights)
            outcome = _outcome(one, result, number)
            found += [] if outcome is None else [outcome]
    return found


def _outcome(sample: AlignmentSample, result: AlignmentResult, number: int) -> Outcome | None:
    covariance = inverse_information(result.information)
    if not bool(result.converged) or not bool(covariance.isfinite().all()):
        return None
    pose = result.camera_from_map.double()
    depths = se3.transform(pose, sample.view.points.xyz.double())[:, 2][result.visible]
    depth = float(depths.median())
    prior = torch.linalg.inv(sample.information).numpy()
    statistics = statistics_of(result, covariance.numpy(), sample.start.numpy(), depth, prior)
    error = se3.se3_log(sample.truth @ se3.inverse(pose)).numpy()
    unit = np.r_[[1 / max(abs(depth), 1e-12)] * 3, [1.0] * 3]
    degrees, percent = sample.error(pose)
    right = sample.kind != FOREIGN and degrees < RIGHT[0] and percent < 100 * RIGHT[1]
    kind = sample.source.rstrip(" 0123456789")  # buddha0 and buddha1 are one place
    return Outcome(statistics, right, error * unit, covariance.numpy() * np.outer(unit, unit), number, kind)


def fit_judge(found: Sequence[Outcome], ridge: float) -> AlignmentJudge:
    """Logistic regression of the outcome, and the covariance under which the errors of the right ones are most likely; slopes are
    drawn to zero in units of the statistics' standard deviations."""
    values, right = np.array([one.statistics for one in found]), np.array([one.right for one in found])
    good = torch.from_numpy(right)
    errors = torch.from_numpy(np.array([one.error for one in found])[right])
    claimed = torch.from_numpy(np.array([one.claimed for one in found])[right])

    def unlikely(power: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(torch.where(good, -1.0, 1.0) * power[:, 0]).sum()

    def far(power: torch.Tensor) -> torch.Tensor:
        noise, turn, shift = (10 ** power[good].clamp(*JUDGE_POWERS)).unbind(-1)
        common = torch.stack((shift,) * 3 + (turn,) * 3, -1) ** 2
        root = torch.linalg.cholesky(noise[:, None, None] * claimed + torch.diag_embed(common))
        white = torch.linalg.solve_triangular(root, errors[..., None], upper=False)[..., 0]
        return (white**2).sum() / 2 + root.diagonal(dim1=-2, dim2=-1).log().sum()

    def solved(inputs: np.ndarray, cost: Callable[[torch.Tensor], torch.Tensor], begin: list[float]) -> np.ndarray:
        """Constants and slopes [rows, 1 + inputs] that make the cost of their sums [N, rows] least."""
        centre, unit = inputs.mean(0), inputs.std(0) + 1e-9
        scaled = torch.from_numpy(np.c_[np.ones(len(inputs)), (inputs - centre) / unit])

        def with_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.from_numpy(flat).reshape(len(begin), -1).requires_grad_()
            total = cost(scaled @ x.mT) + ridge / 2 * (x[:, 1:] ** 2).sum()
            total.backward()
            return float(total.detach()), x.grad.flatten().numpy()

        first = np.zeros((len(begin), scaled.shape[1]))
        first[:, 0] = begin
        x = minimize(with_gradient, first.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 600}).x
        x = x.reshape(len(begin), -1)
        slopes = x[:, 1:] / unit
        return np.c_[x[:, 0] - slopes @ centre, slopes]

    # What a wide prior changes: a constant and a slope for each statistic, times its width.
    values, width = values[:, :-1], values[:, -1:]
    narrow, change = np.split(solved(np.c_[values, width, width * values], unlikely, [0.0])[0], 2)
    return AlignmentJudge(np.stack((narrow, narrow + change)), *solved(values, far, [0.5, -3.0, -3.0]))


def honest_elsewhere(judge: AlignmentJudge, found: Sequence[Outcome], ridge: float) -> AlignmentJudge:
    """The judge with the factor for places unlike those that taught it.

    A judge is fitted to all kinds of sources but one, and tried on that one. With the factor the squared errors of the right ones
    there are 6 on average. 1 where there is one kind only.
    """
    kinds = sorted({one.source for one in found})
    if len(kinds) < 2:
        return judge
    nees = []
    for kind in kinds:
        others = fit_judge([one for one in found if one.source != kind], ridge)
        nees += [one.nees(others) for one in found if one.source == kind and one.right]
    return replace(judge, elsewhere=max(float(np.mean(nees)) / 6, 1.0))
