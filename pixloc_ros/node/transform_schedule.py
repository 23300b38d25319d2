# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""When the localizer's transform is sent, and with which stamps. Pure arithmetic on stamps: no clock, no ROS.

As nav2_amcl does, the transform found at an image's stamp is dated `tolerance` into the future, because consumers ask
for times at which no newer image has been processed yet. Three things go beyond it:

- It is sent again, with later stamps, when the data seen (images, odometry) have come within half a tolerance of the
  last stamp sent, so that it never runs out between two slow frames. The stamps follow the data, not the wall clock, so
  that a recorded drive works with and without simulated time.
- It is also sent for the image's own stamp: a lookup at that stamp gives exactly the published pose, and the very first
  lookup finds something to interpolate from.
- What earlier transforms said of times after the image is overruled: each of those stamps is sent again. Asked for
  exactly that time, tf2 answers with the last of equal stamps, but for earlier times it interpolates TOWARDS the first;
  hence one more just before each.
"""

from __future__ import annotations

from geometry_msgs.msg import Transform


class TransformSchedule:
    """Holds the current transform and says what to send."""

    def __init__(self) -> None:
        self._current: Transform | None = None
        self._sent: dict[int, int] = {}  # future stamps in use, and how many times each was overruled

    def found(self, transform: Transform, image_ns: int, tolerance_ns: int) -> list[tuple[int, Transform]]:
        """A new transform, found from the image of that stamp: (stamp, transform) to send, in the order of stamps."""
        self._current = transform
        future_ns = image_ns + tolerance_ns
        # The stamp that is about to be sent belongs to this image, not to those that overrule.
        self._sent = {stamp_ns: overruled + 1 for stamp_ns, overruled in self._sent.items() if stamp_ns > image_ns}
        stamps = {image_ns, future_ns, *self._sent, *(stamp_ns - overruled for stamp_ns, overruled in self._sent.items())}
        self._sent.setdefault(future_ns, 0)
        return [(stamp, transform) for stamp in sorted(stamps) if stamp >= image_ns]

    def due(self, newest_data_ns: int, tolerance_ns: int) -> list[tuple[int, Transform]]:
        """What to send again, given the newest stamp of any data seen: at most one."""
        if self._current is None or not self._sent:
            return []
        if newest_data_ns + tolerance_ns // 2 <= max(self._sent):
            return []
        stamp_ns = newest_data_ns + tolerance_ns
        self._sent[stamp_ns] = 0
        return [(stamp_ns, self._current)]

    def clear(self) -> None:
        """Sends nothing more until the next `found`."""
        self._current = None
        self._sent = {}
