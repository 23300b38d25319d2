# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What surrounds a node under test: its process, a bag that is played to it, and a recorder of what it publishes."""
