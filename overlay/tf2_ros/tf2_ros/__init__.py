# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The part of tf2_ros' public Python interface that pixloc_ros uses."""
# ruff: noqa: F401

from .buffer import (
    Buffer,
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TransformException,
)
from .topics import StaticTransformBroadcaster, TransformBroadcaster, TransformListener
