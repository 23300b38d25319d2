# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What a node does before its first image: everything is compiled by then."""

import subprocess
import sys

import pytest

from pixloc_ros.features import load_extractor
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_sim.recordings import SimulationOptions, simulate

# A process of its own: in this one other tests have compiled everything already.
DRIVE = """
import sys
import torch
from numba.core.registry import CPUDispatcher
from pixloc_ros.io.bags import BagReader
from pixloc_ros.evaluation.offline import initial_covariance
from pixloc_ros.node.engine import Engine
from pixloc_ros.tracking.types import CameraFrame, TrackState


def compiled():
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("pixloc_ros")]
    functions = [value for module in modules for value in vars(module).values() if isinstance(value, CPUDispatcher)]
    return {(function.__module__, function.__name__, signature) for function in functions for signature in function.signatures}


with torch.inference_mode(), BagReader(sys.argv[2]) as bag:
    engine = Engine(sys.argv[1], "compact", "balanced", 0)
    engine.warm_up()
    before = compiled()
    tracker = engine.tracker()
    truth = bag.truth()
    tracker.initialize(truth.map_from_body[0], initial_covariance(), int(truth.stamps_ns[0]))
    states = []
    for event in bag.events():
        if not isinstance(event, CameraFrame):
            tracker.add_odometry(event.stamp_ns, event.odom_from_base, event.twist_covariance)
            continue
        if len(states) == 4:
            tracker.relocalize()
        states.append(tracker.track(event, bag.base_from_camera).state)
assert TrackState.TRACKING in states[:4] and TrackState.RELOCALIZING in states and states[-1] is TrackState.TRACKING, states
assert before and compiled() == before, compiled() - before
"""


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """(map file, bag) of a short simulated drive."""
    folder = tmp_path_factory.mktemp("drive")
    simulate(folder / "scene", SimulationOptions(seconds=2.0, rate_hz=6.0, width=320, height=240, texel=0.02))
    map_, _ = build_map_from_colmap(folder / "scene" / "map", folder / "scene" / "images", load_extractor())
    map_.save(folder / "site.pixmap")
    return folder / "site.pixmap", folder / "scene" / "drive"


def test_no_image_waits_for_the_compiler(drive):
    """Tracked from a pose, and found in the whole map, after the warm-up: nothing new is compiled."""
    run = subprocess.run([sys.executable, "-c", DRIVE, *map(str, drive)], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
