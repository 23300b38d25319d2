# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Errors that a user can fix."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, and how to fix it."""


_REASONS = 3


def none_left(what: str, left_out: dict[str, str]) -> InputError:
    """The error where too little is left of many things: `what`, and the first reasons by the things' names."""
    first = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:_REASONS])
    more = f"; and {len(left_out) - _REASONS} more" if len(left_out) > _REASONS else ""
    return InputError(f"{what} ({first}{more})" if first else what)
