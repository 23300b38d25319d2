#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What `pixloc map bag` makes of two drives of one place, as in docs/evidence/maps.md.

Real: a drive cut into two that overlap, of which one has the even images and the other the odd ones. Simulated: two drives on
different paths through the workshop, by day, or the second one with the lamps on and no daylight, or at night with one lamp.

Error: of the keyframes after one similarity alignment of both drives to the truth. Seam: where a keyframe of the second drive is
seen from the nearest one of the first, against the truth; what a drift of both does to a map does not show there.

    experiments/several_drives.py ../shared/data -o out/several --docs docs/evidence/maps.md
"""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import common
import numpy as np
from drive_maps import similarity
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from pixloc_ros.cli.main import main as pixloc
from pixloc_ros.cli.progress import show_progress
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import format_number, markdown_table
from pixloc_ros.io.bags import BagOptions, BagReader
from pixloc_ros.io.files import replacing_folder
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.map_file import keyframe_of_observations
from pixloc_sim.lighting import Lighting
from pixloc_sim.recordings import SimulationOptions, simulate_drive

LIGHTS = {
    "day": Lighting(lamps=(1.0, 0.9, 1.1, 1.0, 0.95), daylight=0.5, ambient=0.30),
    "lamps": Lighting(lamps=(1.1, 1.0, 0.9, 1.0, 0.9, 1.1), daylight=0.0, ambient=0.10, seed=1),
    "night": Lighting(lamps=(0.0, 0.0, 1.6, 0.0, 0.0, 0.0), daylight=0.0, ambient=0.05, seed=2),
}
SECONDS, RATE_HZ = 12.0, 5.0
OVERLAP = 0.25  # of the drive, on each side of its middle
LATER_S = 3600  # that the second half seems to be driven
HEAD = (
    "drives | odometry | keyframes posed | ties | error: RMSE, cm | median deg | seam: median cm | 90 %, cm | median deg "
    "| points that both see, % | CPU s"
)


def main() -> int:
    parser = common.parser(__doc__, "out/several", ("kitti07",), drives=True)
    parser.add_argument("--cases", nargs="*", metavar="NAME", help="only these")
    args = parser.parse_args()
    cases = {f"{scene.name}, two halves": lambda scene=scene: halves(scene, args.output) for scene in common.scenes_of(args)}
    for number, light in enumerate(LIGHTS, 2):
        both = ("day", 1), (light, number)
        cases[f"simulated, day and {light}"] = lambda both=both: tuple(simulated(args.output, *one) for one in both)
    results: dict[str, dict] = {}
    for name, make in cases.items():
        if args.cases and name not in args.cases:
            continue
        bags = make()
        for odometry in (True, False) if "halves" in name else (True,):
            results[f"{name}{'' if odometry else ', images alone'}"] = one_map(bags, odometry, args.output / "both.pixmap")
            common.save(args, "several_drives", results, {"several drives": table(results)})
    return common.finish(args, {"several drives": table(results)})


# ---- drives


def simulated(folder: Path, light: str, number: int) -> Path:
    """The bag of a simulated drive, made where it is not there."""
    path = folder / f"{light}_{number}"
    if not path.is_dir():
        with show_progress(path.name) as progress:
            said = lambda what, done, of: progress(done, of, what)  # noqa: E731
            simulate_drive(path, SimulationOptions(seconds=SECONDS, rate_hz=RATE_HZ), LIGHTS[light], number, said)
    return path


def halves(scene: common.Scene, folder: Path) -> tuple[Path, Path]:
    """The even images of a drive's beginning and the odd ones of its end, an hour later, as bags."""
    paths = folder / f"{scene.name}_begin", folder / f"{scene.name}_end"
    with BagReader(scene.drive) as bag:
        stamps = sorted(set(bag.image_stamps()))
        middle, more = len(stamps) // 2, round(OVERLAP * len(stamps))
        for path, chosen, later in zip(paths, (stamps[: middle + more : 2], stamps[middle - more + 1 :: 2]), (0, LATER_S)):
            if not path.is_dir():
                cut(bag, path, chosen, later)
    return paths


def cut(bag: BagReader, path: Path, stamps: list[int], later_s: int) -> None:
    """A bag with some images, and with the odometry and the truth of that time; all of it seems to be so much later."""
    store, connections, chosen = get_typestore(Stores.ROS2_HUMBLE), {}, set(stamps)
    topics = (bag.image_topic, bag.camera_info_topic, bag.odometry_topic, bag.options.truth or "/ground_truth/pose", "/tf_static")
    with replacing_folder(path) as place, Writer(place, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for message in bag.raw_messages(topics):
            cdr, when = message.cdr, message.time_ns
            if message.topic != "/tf_static":
                stamp = int.from_bytes(cdr[4:8], "little") * 10**9 + int.from_bytes(cdr[8:12], "little")
                if message.topic == bag.image_topic and stamp not in chosen:
                    continue
                if not stamps[0] - 10**9 < stamp < stamps[-1] + 10**9:
                    continue
                cdr = cdr[:4] + (stamp // 10**9 + later_s).to_bytes(4, "little") + cdr[8:]
            if message.topic not in connections:
                connections[message.topic] = writer.add_connection(message.topic, message.type_name, typestore=store)
            writer.write(connections[message.topic], when + later_s * 10**9, cdr)


# ---- figures


def one_map(bags: tuple[Path, Path], odometry: bool, output: Path) -> dict[str, object]:
    """Make the map, and its figures."""
    begin, report = cpu_seconds(), output.with_suffix(".json")
    shutil.rmtree(f"{output}.work", ignore_errors=True)
    words = ["map", "bag", *bags, "--poses", "images", "-o", output, "--report", report]
    code = pixloc([str(word) for word in (*words, *([] if odometry else ["--odometry-topic", "none"]))])
    result: dict[str, object] = {"seconds": round(cpu_seconds() - begin, 1), "odometry": odometry}
    if code:
        return result | {"failed": True}
    made, map_ = json.loads(report.read_text()), Map.open(output)
    truth, drive = true_poses(bags, map_)
    found = map_.map_from_keyframe.numpy()
    scale, rotation, shift = similarity(found[:, :3, 3], truth[:, :3, 3])
    placed = found.copy()
    placed[:, :3, :3] = rotation @ found[:, :3, :3]
    placed[:, :3, 3] = scale * found[:, :3, 3] @ rotation.T + shift
    off, turned = difference(placed, truth)
    owner = keyframe_of_observations(map_)
    seen = np.zeros((len(map_.xyz), 2), bool)
    seen[map_.observation_point, drive[owner]] = True
    return result | {
        "posed": made["posed"],
        "ties": made["ties"],
        "rmse_m": float(np.sqrt((off**2).mean())),
        "median_deg": float(np.median(turned)),
        **seam(placed, truth, drive),
        "shared": float(seen.all(1).mean()),
    }


def cpu_seconds() -> float:
    """Of this process and its children: other work on the machine does not count."""
    return sum(
        usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def true_poses(bags: tuple[Path, Path], map_: Map) -> tuple[np.ndarray, np.ndarray]:
    """map_from_camera [K, 4, 4] of the keyframes as the bags have it, and which bag each is from, [K]."""
    poses, drive = np.full((len(map_.keyframe_names), 4, 4), np.nan), np.zeros(len(map_.keyframe_names), int)
    for number, path in enumerate(bags):
        with BagReader(path, BagOptions()) as bag:
            stamps = set(bag.image_stamps())
            mine = np.flatnonzero([stamp in stamps for stamp in map_.keyframe_stamp_ns.tolist()])
            pose, _ = bag.truth().at(map_.keyframe_stamp_ns[mine], 10**9)
            poses[mine], drive[mine] = (pose @ bag.base_from_camera).numpy(), number
    return poses, drive


def difference(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres and degrees between poses [K, 4, 4]."""
    trace = np.einsum("nij,nij->n", one[:, :3, :3], other[:, :3, :3])
    return np.linalg.norm((one - other)[:, :3, 3], axis=1), np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def seam(found: np.ndarray, truth: np.ndarray, drive: np.ndarray) -> dict[str, float]:
    """Errors of the second drive's keyframes as seen from the nearest of the first, of those that have one near."""
    first, second = np.flatnonzero(drive == 0), np.flatnonzero(drive == 1)
    apart = np.linalg.norm(truth[second][:, None, :3, 3] - truth[first][None, :, :3, 3], axis=2)
    near = first[apart.argmin(1)]
    close = apart.min(1) < np.median(np.linalg.norm(np.diff(truth[first, :3, 3], axis=0), axis=1)) * 3
    second, near = second[close], near[close]
    relative = [np.linalg.inv(poses[near]) @ poses[second] for poses in (found, truth)]
    off, turned = difference(*relative)
    return {
        "seam_keyframes": len(near),
        "seam_m": float(np.median(off)),
        "seam_90_m": float(np.percentile(off, 90)),
        "seam_deg": float(np.median(turned)),
    }


def table(results: dict[str, dict]) -> str:
    rows = []
    for name, r in results.items():
        odometry = "yes" if r["odometry"] else "no"
        if "failed" in r:
            rows.append((name, odometry, *["–"] * 8, f"{r['seconds']:.0f}"))
            continue
        ties = " + ".join(str(tie[2]) for tie in r["ties"])
        posed, shared = "{} of {}".format(*r["posed"]), f"{100 * r['shared']:.0f}"
        cm = [format_number(100 * r[key]) for key in ("rmse_m", "seam_m", "seam_90_m")]
        figures = (cm[0], format_number(r["median_deg"]), cm[1], cm[2], format_number(r["seam_deg"]))
        rows.append((name, odometry, posed, ties, *figures, shared, f"{r['seconds']:.0f}"))
    return markdown_table(HEAD, rows)


if __name__ == "__main__":
    run_script(main)
