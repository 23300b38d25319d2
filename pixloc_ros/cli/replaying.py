# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `replay` and `demo` share: a bag through the live node, its figures and files."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ..evaluation import offline
from ..evaluation import replay as evaluation
from ..evaluation.bags import BagReader
from ..evaluation.trajectory import write_text, write_tum
from ..node.replay import ReplayOptions, replay


def replay_and_report(map_path: Path, bag: BagReader, initial_pose: torch.Tensor | None, output: Path,
                      options: ReplayOptions, skip_map_frames: int, progress: Callable[..., None]) -> dict[str, object]:
    """Replay a bag and write poses.tum, summary.json, recording.jsonl and node.log to a folder → the summary."""
    truth, odometry = bag.truth(), bag.odometry()
    start_ns, start = offline.first_pose(bag, truth, initial_pose)
    recording = replay(map_path, bag, start_ns, start, output / "node.log", options, progress)
    run = evaluation.as_run(recording, truth, odometry)
    stats = evaluation.summarize(recording, run, bag.base_from_camera, skip_map_frames)
    recording.write(output / "recording.jsonl")
    write_tum(output / "poses.tum", run.estimate)
    write_text(output / "summary.json", json.dumps(stats, indent=2) + "\n")
    return stats
