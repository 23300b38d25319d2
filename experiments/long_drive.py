#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""A long drive becomes a map, as in docs/evidence/maps.md: what it takes of time, memory and disk, and how exact it is.

A robot drives laps through the simulated workshop (images as JPEG, wheels that slip, transforms; no truth in the bag).
'pixloc map bag' runs on it as a user would run it; what its line of progress says tells the stages apart, and the memory of the
process and of all its children is read while it runs. Then the keyframes are compared with the truth.

Work that was stopped goes on when the same command is given again: rendering after the last whole minute, the map where it was.
--kill kills the map's command (kill -9) once in each stage and gives it again; seconds then count what was done twice.

examples:
    experiments/long_drive.py --minutes 30 -o out/long --docs docs/evidence/maps.md
    experiments/long_drive.py --minutes 3 --size 640x480 -o out/short
    experiments/long_drive.py --minutes 1 --kill -o out/killed
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import common
import numpy as np
from drive_maps import similarity

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.datasets.odometry import OdometryErrors
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.evaluation.usage import memory_mib
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io.bag_writer import RecordedDrive, encode_image, write_drive_bag
from pixloc_ros.io.files import write_text
from pixloc_ros.io.work_folder import WorkFolder
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build.drive import SPARE
from pixloc_sim.drives import START_NS, DriveOptions, SimulatedDrive, camera_mount, wheel_odometry
from pixloc_sim.recordings import MAPPING_LIGHT, SimulationOptions
from pixloc_sim.rendering import Renderer
from pixloc_sim.sensor import Sensor
from pixloc_sim.world import build_world

SPEED_M_S, PART = 0.25, 600
"""Half of a usual speed indoors, as the tutorial asks for; images rendered between checkpoints."""
SUMMARY = (
    "minutes | images | way, m | keyframes | in the map | map, MB | minutes to the map | peak, MB | RMSE, cm | median, cm | "
    "end to start, cm | % of the way"
)
STAGES = "stage | seconds | peak, MB"
_SAMPLE_S = 0.25
_LINE = re.compile(r"map (\d+)/(\d+) ?(.*)")
_FEATURES = "features of the map"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/long_drive"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="also put the tables between their markers in this page")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="of the drive (default: %(default)g)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="images a second (default: %(default)g)")
    parser.add_argument("--size", default="320x240", metavar="WxH", help="of the images (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that render (default: %(default)s)")
    parser.add_argument("--kill", action="store_true", help="kill the map's command once in each stage")
    args = parser.parse_args()
    drive = LongDrive(args.minutes, *(int(word) for word in args.size.split("x")), args.rate)
    bag = drive.write(args.output, args.workers)
    run = Run(bag, args.output / "long.pixmap", args.output / "map.json", args.output / "stages.json", args.kill)
    if not run.report.is_file():
        run.finish()
    results = {"summary": summary(drive, run), "stages": run.stages, "size": args.size, "killed": args.kill}
    common.save(args, "long_drive", results, tables(results))
    return common.finish(args, tables(results))


@dataclass(frozen=True)
class LongDrive:
    """Laps through the workshop; size of the images in pixels, and how many a second."""

    minutes: float
    width: int
    height: int
    rate_hz: float = 10.0

    def path(self) -> SimulatedDrive:
        return SimulatedDrive(DriveOptions(60 * self.minutes, SPEED_M_S))

    def stamps(self) -> np.ndarray:
        """int64 [N], of the images."""
        count = round(60 * self.minutes * self.rate_hz)
        return START_NS + np.rint((0.003 + np.arange(count) / self.rate_hz) * 1e9).astype(np.int64)

    def truth(self) -> np.ndarray:
        """map_from_base float64 [N, 4, 4] at the images."""
        return self.path().at((self.stamps() - START_NS) * 1e-9).numpy()

    @property
    def camera(self) -> Camera:
        return SimulationOptions(width=self.width, height=self.height).make_camera()

    def write(self, folder: Path, workers: int) -> Path:
        """The bag, rendered unless it is there."""
        rendered = {"size": [self.width, self.height], "rate": self.rate_hz}
        bag, work = folder / "drive", WorkFolder(folder / "rendered", rendered | {"part": PART})
        parts = np.split(np.arange(len(self.stamps())), np.arange(PART, len(self.stamps()), PART))
        with show_progress("rendering") as progress, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            missing = [part for part in parts if not work.path(f"{part[0]:06d}.npz").is_file()]
            for n, _ in enumerate(pool.map(self._render, [work.folder] * len(missing), missing)):
                progress(n + 1, len(missing), "parts")
        if not WorkFolder(folder / "of", rendered | {"minutes": self.minutes}).resumed or not bag.is_dir():
            recorded = RecordedDrive("jpeg", self.camera, camera_mount(), wheel_odometry(self.path(), OdometryErrors(), 0), None)
            write_drive_bag(bag, self._images(work, parts), recorded)
        return bag

    def _render(self, folder: Path, part: np.ndarray) -> None:
        drive, renderer, mount, images = self.path(), _renderer(self.width), camera_mount(), []
        work = WorkFolder(folder, json.loads((folder / "work.json").read_text()))
        for k in part.tolist():
            at, rng = (self.stamps()[k] - START_NS) * 1e-9, np.random.default_rng([1, k])
            poses = lambda offset, at=at: drive.at(at + offset) @ mount  # noqa: E731
            images.append(encode_image(Sensor().capture(renderer, self.camera, poses, rng), "jpeg"))
        made = {"lengths": np.array([len(image) for image in images]), "bytes": np.concatenate(images)}
        work.arrays(f"{part[0]:06d}", lambda: made)

    def _images(self, work: WorkFolder, parts: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        for part in parts:
            stored = work.arrays(f"{part[0]:06d}", dict)
            yield from zip(self.stamps()[part].tolist(), np.split(stored["bytes"], np.cumsum(stored["lengths"])[:-1]))


@functools.cache
def _renderer(width: int) -> Renderer:
    texel = 0.004 * 640 / width
    return Renderer(build_world(0, texel), replace(MAPPING_LIGHT, spacing=30 * texel))


@dataclass
class Run:
    """'pixloc map bag' on a bag, watched.

    Attributes:
        bag, output, report: Of the command.
        log: Keeps `stages`.
        kill: Whether it is killed once in each stage.
        stages: Seconds and peak memory (MiB) of each, by what the line of progress says, in the order they began.
    """

    bag: Path
    output: Path
    report: Path
    log: Path
    kill: bool = False
    stages: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.log.is_file():
            self.stages = json.loads(self.log.read_text())

    def finish(self) -> None:
        """Run the command to its end. Raises InputError where it fails."""
        killed: set[str] = set()
        while (ended := self._once(killed))[0] != 0:
            if ended[0] != -signal.SIGKILL or not self.kill:
                raise InputError("'pixloc map bag' ended with {}: {}".format(*ended))

    def _once(self, killed: set[str]) -> tuple[int, str]:
        """How the command ended, and the last that it wrote to its terminal."""
        command = [sys.executable, "-m", "pixloc_ros.cli.main", "map", "bag", self.bag, "-o", self.output, "--poses", "images"]
        terminal, its_end = pty.openpty()
        fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        child = subprocess.Popen([*map(str, command), "--report", str(self.report)], stderr=its_end, env=_environment())
        os.close(its_end)
        stage, text, last = "begin", "", time.monotonic()
        while True:
            ready, _, _ = select.select([terminal], [], [], _SAMPLE_S)
            if ready:
                try:
                    read = os.read(terminal, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    read = ""
                text = (text + read)[-4096:]
            new = stage_of(text) or stage
            now = time.monotonic()
            seconds, peak = self.stages.get(stage, (0.0, 0.0))
            self.stages[stage] = [seconds + now - last, max(peak, resident_mib(child.pid))]
            code = child.poll()
            if new != stage or code is not None:
                write_text(self.log, json.dumps(self.stages))
            self._keep_spare()
            stage, last = new, now
            if code is not None:
                os.close(terminal)
                return code, text[-1000:].strip()
            seconds = self.stages.get(stage, (0.0, 0.0))[0]
            if self.kill and stage not in killed and seconds > _SAMPLE_S:
                killed.add(stage)
                child.send_signal(signal.SIGKILL)
            time.sleep(_SAMPLE_S / 5)

    @property
    def spare(self) -> Path:
        """Poses of the keyframes that are not in the map, as the work folder has them."""
        return self.report.with_name("spare.npz")

    def _keep_spare(self) -> None:
        """The work folder goes when the map is there."""
        with contextlib.suppress(OSError):
            if not self.spare.exists():
                os.link(self.output.with_name(f"{self.output.name}.work") / f"{SPARE}.npz", self.spare)


def stage_of(text: str) -> str | None:
    """What a progress line says is done now; None: nothing yet."""
    lines = [match for part in re.split(r"\r|\n", text.replace("\033[K", "")) if (match := _LINE.fullmatch(part.strip()))]
    if not lines:
        return None
    note = lines[-1][3].strip()
    return _FEATURES if not note or note.endswith(".png") else note


def resident_mib(pid: int) -> float:
    """Memory of a process and all its descendants, mapped files included."""
    pids, total = [pid], 0.0
    while pids:
        one = pids.pop()
        total += sum(memory_mib(one).values())
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids += map(int, task.read_text().split())
    return total


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "COLUMNS"}


def summary(drive: LongDrive, run: Run) -> dict[str, object]:
    """The figures of one drive."""
    map_, report = Map.open(run.output), json.loads(run.report.read_text())
    with np.load(run.spare) as spare:
        names, poses = [*map_.keyframe_names, *spare["name"].tolist()], np.concatenate((map_.map_from_keyframe, spare["pose"]))
    stamps = np.array([int(Path(name).stem) for name in names])
    order, truth = np.argsort(stamps), drive.truth()
    rows, base = np.searchsorted(drive.stamps(), stamps[order]), poses[order] @ np.linalg.inv(camera_mount().numpy())
    scale, rotation, shift = similarity(base[:, :3, 3], truth[rows, :3, 3])
    off = np.linalg.norm(scale * base[:, :3, 3] @ rotation.T + shift - truth[rows, :3, 3], axis=1)
    found, right = (np.linalg.inv(p[0]) @ p[-1] for p in (base, truth[rows]))
    way = float(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum())
    end = float(np.linalg.norm(scale * found[:3, 3] - right[:3, 3]))
    return {
        "minutes": drive.minutes,
        "images": len(truth),
        "way_m": way,
        "keyframes": report["posed"],
        "in_map": len(map_.keyframe_names),
        "map_mb": run.output.stat().st_size / 1e6,
        "map_minutes": sum(seconds for seconds, _ in run.stages.values()) / 60,
        "peak_mb": max(peak for _, peak in run.stages.values()) * 1.048576,
        "rmse_m": float(np.sqrt((off**2).mean())),
        "median_m": float(np.median(off)),
        "end_m": end,
        "end_share": end / way,
        "scale_off": 1 / scale - 1,
    }


def tables(results: dict) -> dict[str, str]:
    """Two: the drive, and the stages of its map."""
    s = results["summary"]
    row = [format_number(s["minutes"]), s["images"], format_number(s["way_m"]), "{} of {}".format(*s["keyframes"]), s["in_map"]]
    row += [format_number(s[name]) for name in ("map_mb", "map_minutes")] + [f"{s['peak_mb']:.0f}"]
    row += [format_number(factor * s[name]) for name, factor in (("rmse_m", 100), ("median_m", 100), ("end_m", 100))]
    row.append(format_number(100 * s["end_share"]))
    stages = [(name, f"{seconds:.0f}", f"{1.048576 * peak:.0f}") for name, (seconds, peak) in results["stages"].items()]
    return {"long drive": markdown_table(SUMMARY, [row]), "long drive stages": markdown_table(STAGES, stages)}


if __name__ == "__main__":
    run_script(main)
