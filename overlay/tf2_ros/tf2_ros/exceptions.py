# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Why a lookup fails."""


class TransformException(Exception):
    """Base class of the exceptions below."""


class ConnectivityException(TransformException):
    """Both frames are known, but no chain of transforms connects them."""


class LookupException(TransformException):
    """A frame is unknown, or the frames form a loop."""


class ExtrapolationException(TransformException):
    """The requested time is outside the stored range."""


class InvalidArgumentException(TransformException):
    """A frame name is empty or begins with a slash."""
