# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The damping of the optimizer's steps, learned per level and degree of freedom: PixLoc's motion prior, and ours on top of it.

PixLoc's is one constant per level and degree of freedom of the camera. The temporal one depends on what is known before the
image is seen, acts along the axes of the robot's base, and comes with a weight for the prior factor, learned the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from ..features import Extractor
from ..geometry import se3

LOG10_RANGE = (-6.0, 5.0)
LOG10_TRUST = (-4.0, 4.0)
TENSORS = "damping."
"""What the names of the damping's tensors in a weights file begin with."""
_PER_AXIS = ("moved", "turned", "unsure", "unsure turn")
CUES = ("time step", *(f"{cue} {axis}" for cue in _PER_AXIS for axis in "xyz"), "last inliers")
DIAGONAL_FLOOR = 1e-9
"""Least that is added to the Hessian's diagonal, as a share of the trace of its part for the translation, or the rotation. These
have different units: the one for the translation is that of the map, which may be anything."""
NEVER_SINGULAR = 1e-30
"""Added to that, so that a Hessian of zeros, of a pose that sees nothing, has a step of zero, and a gradient that is a number."""
ADAPTIVE_START = 1e-2
"""Factor of the adaptive strategy where nothing was learned; a step that lowers the cost divides it by 10, another multiplies
it."""
ADAPTIVE_DOWN, ADAPTIVE_UP = 0.1, 10.0
ADAPTIVE_LEAST, ADAPTIVE_MOST = 1e-7, 1e4
PAPER_START = 10**-0.5
"""Factor of the paper's strategy where nothing was learned: that of theta = 0."""
LEAST_SHARED_VIEW = 0.5
"""A step that pushes more than this share of the visible points out of the image is refused."""
_SHARE_RANGE = (1e-4, 1.0)
_SECONDS_RANGE = (1e-2, 10.0)
HIDDEN = 16


@dataclass(frozen=True)
class MotionCues:
    """What is known of a frame before it is seen, in the form that the learned prior takes.

    Attributes:
        values: float32 [..., 14], the entries of `CUES`, each between -2 and 2.
        camera_from_base: float64 [..., 4, 4]; damping and prior act along the axes of this base.
    """

    values: torch.Tensor
    camera_from_base: torch.Tensor

    @classmethod
    def of(
        cls,
        seconds: torch.Tensor,
        motion: torch.Tensor,
        covariance: torch.Tensor,
        inlier_fraction: torch.Tensor,
        depth: torch.Tensor,
        camera_from_base: torch.Tensor,
    ) -> MotionCues:
        """The cues of a frame.

        Args:
            seconds: [...] since the last pose.
            motion: [..., 6] of the base since then (translation, rotation).
            covariance: [..., 6, 6] of the predicted pose, base axes.
            inlier_fraction: [...] of the last image.
            depth: [...] of the map's points in view, which translations are divided by: a prior of 10 cm is far in a room
                and near on a road.
            camera_from_base: [..., 4, 4].
        """
        unit = torch.stack((depth,) * 3 + (torch.ones_like(depth),) * 3, -1)
        shares = torch.cat((motion.abs() / unit, covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt() / unit), -1)
        time = seconds.abs().clamp(*_SECONDS_RANGE).log10()[..., None] + 0.5
        values = torch.cat((time, shares.clamp(*_SHARE_RANGE).log10() + 2, (4 * inlier_fraction - 2)[..., None]), -1)
        return cls(values.clamp(-2, 2).float(), camera_from_base)


def typical_cues() -> torch.Tensor:
    """Float32 [14] of a robot at 10 Hz that moved by 2 % of the depth forwards and turned by half a degree, with odometry a
    tenth of that uncertain and a good last image: where to look at a prior for people."""
    motion = torch.tensor([0.02, 0, 0, 0, 0, 0.01], dtype=torch.float64)
    std = torch.tensor([0.002] * 3 + [0.001] * 3, dtype=torch.float64)
    number = torch.tensor
    return MotionCues.of(number(0.1), motion, torch.diag(std**2), number(0.7), number(1.0), torch.eye(4)).values


class LearnedDamping(nn.Module):
    """lambda = 10^(-6 + 11 sigmoid(theta)), one theta in R^6 for each level (PixLoc, section 4.2 of the paper).

    Order (translation, rotation) along the query camera's axes. theta = 0 gives 0.32.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(levels, 6))

    def forward(self, level: int) -> torch.Tensor:
        """Factors [6] of the Hessian's diagonal for a level (0 is the coarsest)."""
        return _power(self.theta[level], LOG10_RANGE)


class TemporalPrior(LearnedDamping):
    """Damping and trust in the prior factor, per level and degree of freedom of the base, from `MotionCues`.

    Trust multiplies the information of the prior factor: 10^(-4 + 8 sigmoid(phi)), 1 where phi = 0. theta and phi are
    constants plus, where there are cues, the output of a small network whose last layer begins at zero; without a network
    this is PixLoc's learned constant, in the axes of the base.

    Args:
        levels: Of the pyramid.
        conditional: Whether there is a network.
    """

    def __init__(self, levels: int, conditional: bool = True) -> None:
        super().__init__(levels)
        self.phi = nn.Parameter(torch.zeros(levels, 6))
        self.network = None
        if conditional:
            self.network = nn.Sequential(nn.Linear(len(CUES), HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, levels * 12))
            nn.init.zeros_(self.network[-1].weight)
            nn.init.zeros_(self.network[-1].bias)

    def predict(self, cues: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Damping factors and trust, both [..., levels, 6], for cues [..., 14]; without cues, or without a network, the
        constants."""
        theta, phi = self.theta, self.phi
        if cues is not None and self.network is not None:
            change = self.network(cues).unflatten(-1, (len(theta), 2, 6))
            theta, phi = theta + change[..., 0, :], phi + change[..., 1, :]
        return _power(theta, LOG10_RANGE), _power(phi, LOG10_TRUST)


def _power(theta: torch.Tensor, log10_range: tuple[float, float]) -> torch.Tensor:
    low, high = log10_range
    return 10 ** (low + (high - low) * torch.sigmoid(theta))


_CAMERA_FROM_BASE = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
"""Of a base at the camera: x forward, y left, z up."""


@dataclass(frozen=True)
class Damping:
    """Damping of one level.

    Attributes:
        factors: Of the Hessian's diagonal, float64 [1, 6] or [B, 6].
        axes: [1, 6, 6] or [B, 6, 6], along whose columns it acts; None for the camera's axes.
    """

    factors: torch.Tensor
    axes: torch.Tensor | None = None

    def step(self, hessian: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
        """The damped step [B, 6], factors times a scale [B, 1]; zero where the system is not positive definite.

        The host waits for no device here.
        """
        if self.axes is not None:
            hessian, gradient = self.axes.mT @ hessian @ self.axes, (self.axes.mT @ gradient[..., None])[..., 0]
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        traces = diagonal.unflatten(-1, (2, 3)).sum(-1, keepdim=True).expand(-1, 2, 3).flatten(-2)
        least = DIAGONAL_FLOOR * traces + NEVER_SINGULAR
        damped = hessian + torch.diag_embed(torch.maximum(diagonal * (self.factors * scale), least))
        factor, failed = torch.linalg.cholesky_ex(damped)
        step = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        step = torch.where((failed == 0)[:, None] & torch.isfinite(step), step, torch.zeros_like(step))
        return step if self.axes is None else (self.axes @ step[..., None])[..., 0]


def level_dampings(
    learned: LearnedDamping | None, cues: MotionCues | None, levels: int, constant: float, device: torch.device
) -> tuple[list[Damping], torch.Tensor | None, torch.Tensor]:
    """Damping of each level, trust [..., levels, 6] in prior factors, and camera_from_base [..., 4, 4] of their axes.

    Args:
        learned: None for the same factor everywhere.
        cues: Batched; what a `TemporalPrior` takes.
        levels: Of the pyramid.
        constant: That factor.
        device: Of the result.
    """
    camera_from_base = _CAMERA_FROM_BASE.to(device)[None] if cues is None else cues.camera_from_base
    if isinstance(learned, TemporalPrior):
        # A body perturbation of map_from_base is, but for its sign, a left one of camera_from_map by this matrix.
        axes = se3.adjoint(camera_from_base)
        factors, trust = learned.predict(None if cues is None else cues.values)
        return [Damping(factors[..., k, :].double().reshape(-1, 6), axes) for k in range(levels)], trust, camera_from_base
    if learned is None:
        same = Damping(torch.full((1, 6), constant, dtype=torch.float64, device=device))
        return [same] * levels, None, camera_from_base
    return [Damping(learned(k).double()[None]) for k in range(levels)], None, camera_from_base


def damping_tensors(damping: LearnedDamping) -> dict[str, torch.Tensor]:
    """What a weights file keeps of it, among `features.weights.Weights.companions`."""
    return {TENSORS + name: value.detach().clone() for name, value in damping.state_dict().items()}


def damping_of(extractor: Extractor) -> LearnedDamping | None:
    """The damping that was learned together with an extractor's features, on its device; None where none was.

    Raises InputError where its tensors do not fit the extractor's levels.
    """
    damping = damping_from(extractor.companions, len(extractor.strides), f"weights '{extractor.name}'")
    return None if damping is None else damping.to(extractor.execution.device)


def damping_from(companions: Mapping[str, torch.Tensor], levels: int, source: str) -> LearnedDamping | None:
    """The damping that a weights file holds; None where it holds none.

    Args:
        companions: As of `features.weights.Weights`.
        levels: Of the network's pyramid.
        source: Named in the error.

    Raises:
        InputError: The tensors are of other shapes or not finite.
    """
    tensors = {name.removeprefix(TENSORS): value for name, value in companions.items() if name.startswith(TENSORS)}
    if not tensors:
        return None
    plain = tensors.keys() == {"theta"}
    damping = LearnedDamping(levels) if plain else TemporalPrior(levels, any(n.startswith("network.") for n in tensors))
    wanted = {name: tuple(value.shape) for name, value in damping.state_dict().items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted or not all(
        bool(value.isfinite().all()) for value in tensors.values()
    ):
        shapes = ", ".join(f"'{TENSORS}{name}' {'x'.join(map(str, shape))}" for name, shape in wanted.items())
        raise InputError(f"{source}: the damping must hold finite numbers, {shapes}: import or train it again")
    damping.load_state_dict(tensors)
    return damping.requires_grad_(False)
