# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The part of cv_bridge's public Python interface that pixloc_ros uses."""

from .core import CvBridge, CvBridgeError

__all__ = ["CvBridge", "CvBridgeError"]
