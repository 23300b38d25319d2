#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Does the temporal prior pay in the tracker? Damping fixed, learned constant, learned conditional; prior factor none, with the
odometry's own information, with learned information. Drives with nominal and degraded images.

Every drive is tracked by every variant under every condition (features are computed once). Writes JSON and Markdown tables.

    pixloc train config/training/temporal.json -o runs/temporal
    experiments/temporal_ablation.py ../shared/data --simulations out/sim1 --conditional runs/temporal/best.safetensors \\
        --constant runs/temporal_constant/best.safetensors -o out/temporal
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import common
import numpy as np
import torch

from pixloc_ros.alignment import TemporalPrior, damping_of
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.altered_bag import AlteredBag
from pixloc_ros.evaluation.degradation import CONDITIONS, degraded
from pixloc_ros.evaluation.metrics import run_figures
from pixloc_ros.evaluation.tables import markdown_table
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.frames import CameraFrame, Event
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.tracking.frame_aligner import AlignerOptions
from pixloc_ros.tracking.types import PreparedFrame

SCENES = (*common.VALIDATION_DRIVES, "tum_fr1_rpy")
FIXED_DAMPING = 0.01
"""Where the adaptive optimizer starts without learned damping."""


class Variant(NamedTuple):
    """One row."""

    damping: str
    factor: str

    def __str__(self) -> str:
        return f"{self.damping} damping, prior factor {self.factor}"


VARIANTS = [
    Variant(damping, factor) for damping in ("fixed", "constant", "conditional") for factor in ("none", "given", "learned")
]


class Mixed(TemporalPrior):
    """A learned prior with its damping or its trust replaced by constants."""

    def __init__(self, learned: TemporalPrior, damping: bool, trust: bool) -> None:
        super().__init__(len(learned.theta), learned.network is not None)
        self.load_state_dict(learned.state_dict())
        self.requires_grad_(False)
        self._learned = (damping, trust)

    def predict(self, cues: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        damping, trust = super().predict(cues)
        return (
            damping if self._learned[0] else torch.full_like(damping, FIXED_DAMPING),
            trust if self._learned[1] else torch.ones_like(trust),
        )


class Prepared:
    """A bag with the features of its images, computed once."""

    def __init__(self, bag: AlteredBag, localizer: Localizer) -> None:
        self._bag = bag
        self._events = [self._prepared(event, localizer) for event in bag.events()]

    @staticmethod
    def _prepared(event: Event, localizer: Localizer) -> Event:
        if not isinstance(event, CameraFrame):
            return event
        return PreparedFrame.of(event, localizer.aligner.prepare(event.image, event.camera))

    def __getattr__(self, name: str) -> object:
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        return iter(self._events)


def main() -> int:
    parser = common.parser(__doc__, "out/temporal", SCENES, drives=True, weights=False)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--conditional", required=True, help="weights with a temporal prior that depends on the motion")
    parser.add_argument("--constant", required=True, help="weights with a temporal prior of learned constants")
    args = parser.parse_args()
    learned = {name: load_extractor(getattr(args, name)) for name in ("conditional", "constant")}
    for name, extractor in learned.items():
        damping = damping_of(extractor)
        if not isinstance(damping, TemporalPrior) or (damping.network is None) != (name == "constant"):
            conditional = str(name == "conditional").lower()
            raise InputError(
                f"--{name}: {extractor.name} holds no such prior: train it with network.temporal and network.conditional "
                f"{conditional}"
            )
    results: dict[str, dict] = {str(variant): {} for variant in VARIANTS}
    for scene in common.scenes_of(args):
        map_, stride = scene.build_map(learned["constant"]), common.map_stride(scene, args)
        for condition in args.conditions:
            for variant, stats in measure(scene.drive, condition, stride, map_, learned):
                results[str(variant)].setdefault(condition, {})[scene.name] = stats
            common.save(args, "temporal", results, {})
    tables = {"": report(results, args.conditions)}
    common.save(args, "temporal", results, tables)
    return common.finish(args, tables)


def localizer_of(variant: Variant, map_: Map, learned: dict[str, Extractor]) -> Localizer:
    """The running system with that variant."""
    source = learned["conditional" if variant.damping == "conditional" else "constant"]
    localizer = Localizer(map_, source, AlignerOptions(use_prior_factor=variant.factor != "none"))
    fixed = variant.damping == "fixed" and variant.factor != "learned"
    mixed = Mixed(localizer.aligner.damping, variant.damping != "fixed", variant.factor == "learned")
    localizer.aligner.damping = None if fixed else mixed
    return localizer


def measure(drive: Path, condition: str, skip: int, map_: Map, learned: dict[str, Extractor]) -> Iterator[tuple[Variant, dict]]:
    """Figures of one drive under one condition, by variant."""
    with BagReader(drive) as bag, show_progress(f"{drive.parent.name}, {condition}:") as progress:
        progress(0, len(VARIANTS), "features")
        prepared = Prepared(degraded(bag, condition), localizer_of(VARIANTS[0], map_, learned))
        for count, variant in enumerate(VARIANTS):
            progress(count, len(VARIANTS), str(variant))
            run = offline.run_bag(localizer_of(variant, map_, learned).tracker(relocalization=False), prepared)
            stats = run_figures(run, 0 if condition == "every fourth image" else skip)
            yield variant, stats | {"nees": common.tracked_nees(run).tolist()}


def report(results: dict[str, dict], conditions: list[str]) -> str:
    """A table for each condition: a row for each variant, all drives together, then the errors for each drive."""
    parts = []
    for condition in conditions:
        names, rows = list(next(iter(results.values()))[condition]), []
        for variant, by_condition in results.items():
            drives = by_condition[condition].values()
            frames, tracked, lost, false = (
                sum(d[key] for d in drives) for key in ("frames", "tracked_frames", "losses", "false_tracked_frames")
            )
            nees = np.array([value for d in drives for value in d["nees"]])
            cells = [f"{nees.mean():.2f}", f"{np.median(nees):.2f}", f"{100 * np.mean(nees <= common.NEES_95):.0f} %"]
            rows.append([variant, frames, f"{100 * tracked / frames:.1f}", lost, false, *(cells if len(nees) else "–––")])
            for d in drives:
                keys = ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg")
                median, p95, degrees = (d.get(key) for key in keys)
                known = None not in (median, p95, degrees)
                rows[-1].append(f"{100 * median:.2f} / {100 * p95:.2f}, {degrees:.3f}" if known else "–")
        head = "variant | frames | tracked % | lost | false | NEES mean | NEES median | in 95 %"
        columns = (f" | {name}: median / p95 cm, median deg" for name in names)
        parts.append(f"### {condition}\n\n{markdown_table(head + ''.join(columns), rows)}")
    return "\n".join(parts)


if __name__ == "__main__":
    run_script(main)
