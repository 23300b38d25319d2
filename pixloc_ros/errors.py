# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, and how to fix it."""
