# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`python -m pixloc_ros.node`: the node as a program."""

import os
import signal
import sys

# What is ignored stays so, as Ctrl-C in the background of a script.
SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]

# Importing takes seconds, in which Python would answer Ctrl-C with a traceback and SIGTERM with an error code.
for number in SIGNALS:
    signal.signal(number, lambda *_: os._exit(0))

from .localization_node import main  # noqa: E402

# rclpy takes the signals over, and would call those functions as well.
for number in SIGNALS:
    signal.signal(number, signal.SIG_DFL)
sys.exit(main())
