# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`python -m pixloc_ros.node`: the node as a program."""

import signal
import sys

# Importing takes seconds, in which Python would answer Ctrl-C late or with a traceback. rclpy takes the signal over later.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background of a script
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from .localization_node import main  # noqa: E402

sys.exit(main())
