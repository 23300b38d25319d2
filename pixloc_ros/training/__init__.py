# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Learning features, confidences and damping from nothing but poses, through the unrolled alignment."""
