# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `replay` and `demo` share: a bag through the live node, its figures and files."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..evaluation import offline
from ..evaluation import replay as evaluation
from ..evaluation.bags import BagReader
from ..evaluation.localize import open_localizer
from ..evaluation.trajectory import write_text, write_tum
from ..node.replay import ReplayOptions, replay
from ..tracking.presets import preset
from ..visualization.drive_report import DriveReport


def replay_and_report(map_path: Path, bag: BagReader, initial_pose: torch.Tensor | None, output: Path,
                      options: ReplayOptions, skip_map_frames: int, progress: Callable[..., None],
                      page: str = "report.html", title: str = "pixloc replay", lead: str = "") -> dict[str, object]:
    """Replay a bag and write poses.tum, summary.json, recording.jsonl, node.log and the page to a folder → the summary.

    title, lead: of the page; by default the bag's name and how it was played.
    """
    localizer = open_localizer(map_path, options.weights, preset(options.preset))  # first: a bad map is told in one line
    truth, odometry = bag.truth(), bag.odometry()
    start_ns, start = offline.first_pose(bag, truth, initial_pose)
    recording = replay(map_path, bag, start_ns, start, output / "node.log", options, progress)
    run = evaluation.as_run(recording, truth, odometry)
    stats = evaluation.summarize(recording, run, bag.base_from_camera, skip_map_frames)
    recording.write(output / "recording.jsonl")
    write_tum(output / "poses.tum", run.estimate)
    write_text(output / "summary.json", json.dumps(stats, indent=2) + "\n")
    lead = lead or (f"{bag.path}, map {map_path.name}, played at {options.rate:g} times real time to the live node"
                    f"{', every image' if options.all_frames else ''}.")
    latency = np.array(evaluation.latencies_ms(recording))
    report = DriveReport(title, lead, stats, run, latency, "From image to pose, over DDS and back")
    write_text(output / page, report.html(localizer, bag))
    return stats
