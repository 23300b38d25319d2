# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `replay` and `demo` share: a bag through the live node, its figures and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..evaluation import live_run, offline
from ..evaluation.metrics import evaluate
from ..evaluation.runs import write_run
from ..evaluation.usage import machine_name
from ..io.bags import BagReader
from ..io.files import write_text
from ..localization import Localizer
from ..report.run_report import run_report, scene_of
from ..rig.replay import ReplayOptions, replay
from .bag_arguments import about_time_offset


def replay_and_report(
    map_path: Path,
    bag: BagReader,
    initial_pose: torch.Tensor | None,
    output: Path,
    options: ReplayOptions,
    skip_map_frames: int,
    progress: Callable[..., None],
    page: str = "report.html",
    title: str = "pixloc replay",
    lead: str = "",
) -> dict[str, object]:
    """Replay a bag and write the run (`runs.write_run`), summary.json, recording.jsonl, node.log and the page to a folder → the
    summary.

    title, lead: of the page; by default the bag's name and how it was played.
    """
    localizer = Localizer.open(map_path, options.weights, options.preset)  # first: a bad map is told in one line
    truth, odometry = bag.truth(), bag.odometry()
    start_ns, start = offline.first_pose(bag, truth, initial_pose)
    recording = replay(map_path, bag, start_ns, start, output / "node.log", options, progress)
    about = {
        "bag": str(bag.path),
        "map": str(map_path),
        "weights": options.weights,
        "preset": options.preset,
        "played": f"at {options.rate:g} times real time to the live node{', every image' if options.all_frames else ''}",
        "machine": machine_name(),
        **about_time_offset(bag.options.time_offset_s),
    }
    run = replace(live_run.as_run(recording, truth, odometry), skip_map_frames=skip_map_frames, about=about)
    result = evaluate(run)
    stats = live_run.live_figures(recording, result.figures, bag.base_from_camera)
    recording.write(output / "recording.jsonl")
    write_run(output, run)
    write_text(output / "summary.json", json.dumps(stats, indent=2, allow_nan=False) + "\n")
    lead = lead or f"{bag.path}, map {map_path.name}, played {about['played']}."
    write_text(output / page, run_report(title, lead, [result], scene_of(result, localizer, bag), problems=stats["problems"]))
    return stats
