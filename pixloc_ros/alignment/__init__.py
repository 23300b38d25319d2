# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Featuremetric alignment: the pose at which the image's features agree with the map's."""

from .damping import LearnedDamping, damping_of
from .level_weights import LevelWeights
from .likeness import Likeness
from .optimizer import AlignmentOptions, align
from .prior import PriorFactor
from .robust import RobustLoss
from .types import AlignmentResult, ReferencePoints, View

__all__ = [
    "AlignmentOptions",
    "AlignmentResult",
    "LearnedDamping",
    "LevelWeights",
    "Likeness",
    "PriorFactor",
    "ReferencePoints",
    "RobustLoss",
    "View",
    "align",
    "damping_of",
]
