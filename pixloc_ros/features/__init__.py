# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Dense features: image to pyramid, and their values at points."""

from .execution import Execution
from .extractor import Extractor, load_extractor
from .pyramid import FeatureLevel, FeaturePyramid

__all__ = ["Execution", "Extractor", "FeatureLevel", "FeaturePyramid", "load_extractor"]
