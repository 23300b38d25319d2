# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives a live node with a bag over DDS: starts `localization_node`, plays, records, stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..evaluation.live_run import Recording
from ..evaluation.offline import initial_covariance
from ..evaluation.usage import UsageMeter
from ..io.bags import BagReader
from .bag_player import BagPlayer
from .node_process import NODE, NodeProcess, spinning_node
from .recorder import Recorder

MAP_FRAME = "map"
_SILENCE_S = 5.0
"""`replay` stops waiting for the outcome of images when nothing has come for so long."""
_ODOMETRY_WAIT_S, _LONGEST_ODOMETRY_WAIT_S = 0.5, 5.0
_DISCOVERY_S = 1.0


@dataclass(frozen=True)
class ReplayOptions:
    """How a bag is played.

    Attributes:
        rate: seconds of the bag per second.
        all_frames: the node processes every image instead of the newest one.
        weights: feature network, by name or path.
        preset: name of the preset.
        parameters: further node parameters, as (name, value).
    """

    rate: float = 1.0
    all_frames: bool = False
    weights: str = "compact"
    preset: str = "balanced"
    parameters: tuple[tuple[str, str], ...] = ()


def replay(
    map_path: Path,
    bag: BagReader,
    start_ns: int,
    map_from_base: torch.Tensor,
    log: Path,
    options: ReplayOptions,
    progress: Callable[..., None] = lambda done, of, note="": None,
) -> Recording:
    """Plays the bag to a fresh node and records what it publishes.

    Args:
        map_path: the map file.
        bag: the opened bag.
        start_ns: stamp at which the drive begins.
        map_from_base: float64 [4, 4], pose at that stamp.
        log: file for the node's output.
        options: how the bag is played.
        progress: called with the number of images sent and of all images.

    Raises:
        NodeDied: the node ended by itself.
        InputError: the node does not come up.
    """
    log.unlink(missing_ok=True)
    # Started first: it loads while the player is made.
    with NodeProcess(_parameters(map_path, bag, options), log) as process:
        with spinning_node("pixloc_replay") as node:
            recorder = Recorder(node, NODE, MAP_FRAME, bag.base_frame, bag.camera_frame)
            player = BagPlayer(node, bag, MAP_FRAME, recorder.sent)
            process.wait_for(player.is_heard, f"did not listen to {player.image_topic}")
            process.wait_for(recorder.hears_node, "did not publish poses")
            # Discovery is one-sided: the other side may need a moment more.
            time.sleep(_DISCOVERY_S)
            meter = UsageMeter(process.pid)
            player.play(options.rate, start_ns, map_from_base, initial_covariance(), process.check, progress)
            _wait_for_reports(recorder, process)
            recorder.recording.usage = meter.read()
        return recorder.finish(player.last_odometry_ns)


def _parameters(map_path: Path, bag: BagReader, options: ReplayOptions) -> dict[str, object]:
    source = {None: "none", "tf": "tf"}.get(bag.odometry_topic, "topic")
    # The node waits by the wall clock: if the bag is played slowly, odometry comes later, and a machine that also plays and
    # records may hold a message up. A pose from extrapolated odometry would not agree with the TF that follows.
    odometry_wait_s = min(_ODOMETRY_WAIT_S / min(options.rate, 1.0), _LONGEST_ODOMETRY_WAIT_S)
    parameters = {
        "map": map_path.resolve(),
        "weights": options.weights,
        "preset": options.preset,
        "use_sim_time": True,
        "image_topic": bag.image_topic.removesuffix("/compressed"),
        "camera_info_topic": bag.camera_info_topic,
        "image_transport": "compressed" if bag.image_compressed else "raw",
        "image_reliability": "reliable",
        "odom_source": source,
        "global_frame_id": MAP_FRAME,
        "odom_frame_id": bag.odom_frame,
        "base_frame_id": bag.base_frame,
        "process_all_frames": options.all_frames,
        "odometry_wait_s": f"{odometry_wait_s:.3f}",
        "time_offset": f"{bag.options.time_offset_s:.9f}",
    }
    if source == "topic":
        parameters["odom_topic"] = bag.odometry_topic
    return parameters | dict(options.parameters)


def _wait_for_reports(recorder: Recorder, process: NodeProcess) -> None:
    left, changed_s = recorder.outstanding(), time.monotonic()
    while left and time.monotonic() - changed_s < _SILENCE_S:
        process.check()
        time.sleep(0.05)
        now = recorder.outstanding()
        if now != left:
            left, changed_s = now, time.monotonic()
