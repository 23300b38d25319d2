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

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pixloc_ros.alignment import TemporalPrior, damping_of
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation import offline
from pixloc_ros.evaluation.altered_bag import AlteredBag
from pixloc_ros.evaluation.degradation import CONDITIONS, degraded
from pixloc_ros.evaluation.metrics import absolute_errors, run_figures
from pixloc_ros.evaluation.runs import TRUTH_GAP_NS, BagRun
from pixloc_ros.features import Extractor, load_extractor
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.files import write_text
from pixloc_ros.io.frames import CameraFrame, Event
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.localization import Localizer
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.tracking.frame_aligner import LocalizerOptions
from pixloc_ros.tracking.types import PreparedFrame, TrackState

SCENES = ("kitti07", "kitti01", "tum_fr1_rpy")
MAP_STRIDE = 3
"""Every third image of a scene's drive is in its map; simulated drives take part in no map."""
DAMPINGS = ("fixed", "constant", "conditional")
FACTORS = ("none", "given", "learned")
LIMIT_95 = 12.592
"""Of chi² with six degrees of freedom."""
FIXED_DAMPING = 0.01
"""Where the adaptive optimizer starts without learned damping."""


@dataclass(frozen=True)
class Variant:
    """One row. damping: one of DAMPINGS; factor: one of FACTORS."""

    damping: str
    factor: str

    def __str__(self) -> str:
        return f"{self.damping} damping, prior factor {self.factor}"


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

    def __init__(self, bag: AlteredBag, localizer: Localizer, progress) -> None:
        self._bag, self._events = bag, []
        for event in bag.events():
            if isinstance(event, CameraFrame):
                event = PreparedFrame.of(event, localizer.aligner.prepare(event.image, event.camera))
                progress(len(self._events), 0)
            self._events.append(event)

    def __getattr__(self, name: str) -> object:
        return getattr(self._bag, name)

    def events(self) -> Iterator[Event]:
        return iter(self._events)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of scenes with map/, images/ and drive/")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/temporal"))
    parser.add_argument("--scenes", nargs="*", default=list(SCENES))
    parser.add_argument("--simulations", nargs="*", type=Path, default=[], help="folders made by pixloc simulate")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--conditional", required=True, help="weights with a temporal prior that depends on the motion")
    parser.add_argument("--constant", required=True, help="likewise, learned constants only")
    args = parser.parse_args()
    learned = {"conditional": load_extractor(args.conditional), "constant": load_extractor(args.constant)}
    for name, extractor in learned.items():
        damping = damping_of(extractor)
        if not isinstance(damping, TemporalPrior) or (damping.network is None) != (name == "constant"):
            raise InputError(
                f"--{name}: {extractor.name} holds no such prior: train it with network.temporal and "
                f"network.conditional {str(name == 'conditional').lower()}"
            )
    results: dict[str, dict] = {}
    drives = [(name, args.data / name, MAP_STRIDE) for name in args.scenes]
    drives += [(folder.name, folder, 0) for folder in args.simulations]
    for name, folder, skip in drives:
        with show_progress(f"{name}: map") as progress:
            map_, _ = build_map_from_colmap(folder / "map", folder / "images", learned["constant"], progress=progress)
        for condition in args.conditions:
            for variant, stats in measure(name, folder / "drive", condition, skip, map_, learned).items():
                results.setdefault(str(variant), {}).setdefault(condition, {})[name] = stats
            write_text(args.output / "temporal.json", json.dumps(results, indent=1) + "\n")
    table = markdown(results, args.conditions)
    write_text(args.output / "temporal.md", table)
    print(table)
    return 0


def localizer_of(variant: Variant, map_: Map, learned: dict[str, Extractor]) -> Localizer:
    """The running system with that variant."""
    source = learned["conditional" if variant.damping == "conditional" else "constant"]
    localizer = Localizer(map_, source, LocalizerOptions(use_prior_factor=variant.factor != "none"))
    learned_prior = localizer.aligner.damping
    if variant.damping == "fixed" and variant.factor != "learned":
        localizer.aligner.damping = None
    else:
        localizer.aligner.damping = Mixed(learned_prior, variant.damping != "fixed", variant.factor == "learned")
    return localizer


def measure(name: str, drive: Path, condition: str, skip: int, map_: Map, learned: dict[str, Extractor]) -> dict[Variant, dict]:
    """Figures of one drive under one condition, per variant."""
    variants = [Variant(damping, factor) for damping in DAMPINGS for factor in FACTORS]
    results = {}
    with BagReader(drive) as bag:
        with show_progress(f"{name}, {condition}: features") as progress:
            prepared = Prepared(degraded(bag, condition), localizer_of(variants[0], map_, learned), progress)
        for variant in variants:
            run = offline.run_bag(localizer_of(variant, map_, learned).tracker(relocalization=False), prepared)
            stats = run_figures(run, 0 if condition == "every fourth image" else skip)
            stats["errors"] = [list(values) for values in errors_of(run)]
            results[variant] = stats
    return results


def errors_of(run: BagRun) -> list[tuple[float, float, float, bool]]:
    """Per published frame with truth: metres, degrees, normalised squared error, whether tracked."""
    estimate, truth = run.estimate, run.truth
    errors = absolute_errors(Trajectory(*_known(truth, estimate.stamps_ns)), estimate, 0)
    tracked = {r.stamp_ns for r in run.records if r.state is TrackState.TRACKING}
    if errors.nees is None:
        return []
    found = np.isfinite(errors.translation_m)
    return [
        (float(t), float(np.degrees(r)), float(n), int(s) in tracked)
        for t, r, n, s in zip(
            errors.translation_m[found], errors.rotation_rad[found], errors.nees[found], errors.stamps_ns[found]
        )
    ]


def _known(truth: Trajectory, stamps_ns: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    poses, known = truth.at(stamps_ns, TRUTH_GAP_NS)
    return stamps_ns[known], poses[known]


def markdown(results: dict[str, dict], conditions: list[str]) -> str:
    """A table per condition: a row per variant, all drives together, then the median errors per drive."""
    lines = []
    for condition in conditions:
        names = list(next(iter(results.values()))[condition])
        columns = [
            "variant",
            "frames",
            "tracked %",
            "lost",
            "false",
            "NEES mean",
            "NEES median",
            "in 95 %",
            *(f"{name}: median / p95 cm, median deg" for name in names),
        ]
        lines += [f"\n### {condition}\n", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for variant, by_condition in results.items():
            drives = by_condition[condition]
            frames = sum(d["frames"] for d in drives.values())
            tracked = sum(d["tracked_frames"] for d in drives.values())
            nees = np.array([e[2] for d in drives.values() for e in d["errors"] if e[3]])
            consistency = (f"{nees.mean():.2f}", f"{np.median(nees):.2f}", f"{100 * np.mean(nees <= LIMIT_95):.0f} %")
            cells = [
                variant,
                frames,
                f"{100 * tracked / frames:.1f}",
                sum(d["losses"] for d in drives.values()),
                sum(d["false_tracked_frames"] for d in drives.values()),
                *(consistency if len(nees) else "–––"),
            ]
            for d in drives.values():
                values = [
                    d.get(key) for key in ("translation_error_median_m", "translation_error_p95_m", "rotation_error_median_deg")
                ]
                cells.append("–" if None in values else f"{100 * values[0]:.2f} / {100 * values[1]:.2f}, {values[2]:.3f}")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"temporal_ablation: error: {error}", file=sys.stderr)
        sys.exit(2)
