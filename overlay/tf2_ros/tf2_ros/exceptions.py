# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Why a transform cannot be had."""


class TransformException(Exception):
    """Any of the reasons below."""


class ConnectivityException(TransformException):
    """Both frames are known, but no chain of transforms connects them."""


class LookupException(TransformException):
    """A frame is unknown, or the frames form a loop."""


class ExtrapolationException(TransformException):
    """The time asked for lies outside of what is stored."""


class InvalidArgumentException(TransformException):
    """A frame's name is empty or begins with a slash."""


class TimeoutException(TransformException):
    """Nothing arrived in the time allowed."""
