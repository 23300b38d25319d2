# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
