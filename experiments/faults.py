# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Injects faults into the running node over DDS and reports what it did: the table of docs/evidence/reliability.md.

    python experiments/faults.py -o out/faults                    # all of them, about a quarter of a minute each
    python experiments/faults.py -o out/faults --only "garbage images" --only "odometry jumps 5 m"
    python experiments/faults.py -o out/soak --soak-minutes 60    # random faults at 15 Hz, one after the other, on one node
    python experiments/faults.py -o out/rig --cameras front,left,right,back --rate 8    # of one of several cameras, or of all

Each run starts a node on a simulated drive, lets it track, injects the fault for a while, and goes on. The table has the states
that the node went through, the time until it was right again, wrong poses given as TRACKING (further off than 0.25 m or 2
degrees), the growth of its memory, and whether it survived. The exit code is 1 if a node died, gave a wrong pose as TRACKING or
did not recover, or if its memory grew by more than 2 % in a soak, once all faults had been there. With several cameras the table
also has what diagnostics said of each, and when they had nothing left to say of those that failed.

With --scheduler each worker plays the robot by itself: start one on a machine, or give each a ROS_DOMAIN_ID of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import textwrap
import threading
import time
from array import array
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path

import common
import cv2
import numpy as np
import torch
from fault_stage import BEGIN_S, END_S, SECONDS, Drive, Event, Fault, Run, Stage, make_drive, read_drive
from geometry_msgs.msg import TwistWithCovariance
from scipy.spatial.transform import Rotation

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.evaluation.tables import markdown_table, write_section
from pixloc_ros.io.files import write_text
from pixloc_ros.node import conversions
from pixloc_ros.rig.node_process import NodeProcess

RATE_HZ, SOAK_RATE_HZ = 10.0, 15.0
GROWTH_PERCENT = 2.0
IDENTITY = torch.eye(4, dtype=torch.float64)


def pixels(change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    return Fault("image", lambda e: e.showing(change(e.pixels)))


def calibration(**fields) -> Fault:
    """Another calibration while the fault is present; values are functions of the right one."""

    def infos(drive: Drive) -> list[tuple[float, str, object]]:
        wrong = Event(BEGIN_S, "info", drive.info).having(**{name: of(drive.info) for name, of in fields.items()})
        return [(BEGIN_S, "info", wrong.message), (END_S, "info", drive.info)]

    return Fault(extra=infos)


def covered(picture: np.ndarray) -> np.ndarray:
    picture = picture.copy()
    picture[:, : picture.shape[1] * 2 // 3] = 10
    return picture


def load_broken_map(stage: Stage) -> None:
    broken = stage.folder / "broken.pixmap"
    broken.write_bytes(stage.drive.map_path.read_bytes()[:5000])
    answer = stage.load_map(broken)
    assert answer is not None and not answer.success and answer.message, answer
    stage.notes.append(answer.message)


def kill_and_restart(stage: Stage) -> None:
    stage.process.send(signal.SIGKILL)
    stage.process.process.wait()
    stage.start_node()


def start_second(stage: Stage) -> None:
    """Another localizer with the same name on the same robot, for a while."""
    second = stage.started(NodeProcess(stage.parameters, stage.folder / "second.log"))
    threading.Timer(END_S - BEGIN_S + 2.0, second.send, (signal.SIGINT,)).start()


def frozen() -> Fault:
    """The camera repeats its last good picture with new stamps."""
    shown: dict[str, np.ndarray] = {}

    def change(event: Event) -> Event:
        return event.showing(shown.setdefault(event.camera, event.pixels))

    return Fault("image", change)


def cycle(drive: Drive) -> list[tuple[float, str, object]]:
    """The camera's parent is published again afterwards; base_link keeps its own parent if odometry's TF says so."""
    links = (("camera_optical", "elsewhere"), ("elsewhere", "base_link"))
    transforms = [conversions.transform_stamped(parent, child, 0, IDENTITY) for parent, child in links]
    return [(BEGIN_S, "static", transforms), (END_S, "static", drive.mount)]


def mount(turn: str | None, degrees: float = 0.0) -> Fault:
    """Another rotation of the camera on the robot from the start on, until the right one is published.

    turn: axis of the camera that the true rotation is turned about; None: the camera's body is given for its optical frame.
    """

    def transforms(drive: Drive) -> list[tuple[float, str, object]]:
        right = conversions.transform_to_matrix(drive.mount.transform, "mount")
        wrong = right.clone()
        about = torch.from_numpy(Rotation.from_euler(turn or "x", degrees, degrees=True).as_matrix())
        wrong[:3, :3] = right[:3, :3] @ about if turn else IDENTITY[:3, :3]
        return [
            (0.0, "static", conversions.transform_stamped("base_link", drive.mount.child_frame_id, 0, wrong)),
            (END_S, "static", drive.mount),
        ]

    return Fault(extra=transforms)


def faults() -> dict[str, Fault]:
    """By name, in the order of the table."""
    noise, chance = np.random.default_rng(0), random.Random(0)
    return {
        "none": Fault(),
        "images dropped (70 %)": Fault("image", lambda e: e if chance.random() > 0.7 else None),
        "images duplicated": Fault("image", lambda e: [e, e.late(0.003)]),
        "images reordered": Fault("image", lambda e: e.late(0.15 if int(e.at_s * 10) % 2 else 0.0)),
        "images late by 0.6 s": Fault("image", lambda e: e.late(0.6)),
        "images from the future (5 s)": Fault("image", lambda e: e.moved(5.0)),
        "camera stops": Fault("image", lambda e: None),
        "camera stops for 7 s": Fault("image", lambda e: None, until_s=BEGIN_S + 7.0),
        "clock jumps ahead by 60 s": Fault("image odom", lambda e: e.moved(60.0), until_s=SECONDS + 1),
        "clock jumps back by 60 s": Fault("image odom", lambda e: e.moved(-60.0), until_s=SECONDS + 1),
        "odometry is NaN": Fault("odom", lambda e: e.along(float("nan"), IDENTITY)),
        "odometry is infinite": Fault("odom", lambda e: e.along(float("inf"), IDENTITY)),
        "odometry stops": Fault("odom", lambda e: None),
        "odometry jumps 5 m": Fault("odom", lambda e: e.along(5.0), until_s=SECONDS + 1),
        "odometry's twist is empty": Fault("odom", lambda e: e.having(twist=TwistWithCovariance()), until_s=SECONDS + 1),
        "no calibration at first": Fault(extra=lambda drive: [(END_S, "info", drive.info)], missing="info"),
        "calibration of another lens": calibration(k=lambda i: i.k * np.array([1.3, 1, 1, 1, 1.3, 1, 1, 1, 1])),
        "calibration of another size": calibration(width=lambda i: 640, height=lambda i: 480),
        "unknown encoding": Fault("image", lambda e: e.having(encoding="jpegish")),
        "empty images": Fault("image", lambda e: e.having(width=0, height=0, data=array("B"))),
        "images cut short": Fault("image", lambda e: e.having(data=e.message.data[: len(e.message.data) // 3])),
        "garbage images": pixels(lambda p: noise.integers(0, 256, p.shape, np.uint8)),
        "black images": pixels(np.zeros_like),
        "white images": pixels(lambda p: np.full_like(p, 255)),
        "frozen images": frozen(),
        "blurred images": pixels(lambda p: cv2.blur(p, (25, 25))),
        "lens covered by two thirds": pixels(covered),
        "camera transform late": Fault(extra=lambda drive: [(END_S, "static", drive.mount)], missing="static"),
        "mount of the camera's body": mount(None),
        "mount upside down": mount("z", 180.0),
        "mount turned by 90 degrees": mount("z", 90.0),
        "mount turned sideways by 30 degrees": mount("y", 30.0),
        "calibration of a rectified topic": calibration(
            p=lambda i: np.insert(i.k.reshape(3, 3), 3, 0.0, axis=1).ravel(),
            k=lambda i: i.k * np.array([1.06, 1, 0.98, 1, 1.06, 1.02, 1, 1, 1]),
            d=lambda i: np.array([-0.28, 0.07, 0.0, 0.0, 0.0]),
        ),
        "transforms make a cycle": Fault(extra=cycle),
        "broken map through the service": Fault(act=load_broken_map),
        "flood of images (10 times)": Fault("image", lambda e: [e.late(0.009 * n).moved(1e-3 * n) for n in range(10)]),
        "kill -9 and restart": Fault(act=kill_and_restart, ends_node=True),
        "two nodes at once": Fault(act=start_second, ends_node=True),
    }


OF_ONE = (
    "images from the future (5 s)", "calibration of another lens", "unknown encoding", "garbage images",
    "lens covered by two thirds", "camera transform late", "mount turned sideways by 30 degrees",
)  # fmt: skip
OF_ALL = (
    "camera stops", "frozen images", "clock jumps back by 60 s", "flood of images (10 times)", "kill -9 and restart"
)  # fmt: skip
"""Faults that one of several cameras may have, and those of all."""


def swapped(event: Event, other: str) -> Event:
    """As if the cables of two cameras were mixed up: it comes from the other camera."""
    header = copy(event.message.header)
    header.frame_id = f"{other}_optical"
    return replace(event.having(header=header), camera=other)


def rig_faults(cameras: tuple[str, ...]) -> dict[str, Fault]:
    """As `faults`, of several cameras: of the last, of the first, which leads, and of all."""
    alone, lead, last = faults(), cameras[0], cameras[-1]
    of_either = {
        "stops for 4 s": Fault("image", lambda e: None, until_s=BEGIN_S + 4.0),
        "no images for 4.5 s": Fault("image", lambda e: None, since_s=0.0),
        "images late by 0.3 s": Fault("image", lambda e: e.late(0.3)),
        "images of another size": pixels(lambda p: cv2.resize(p, (160, 120))),
        "clock ahead by 0.4 s": Fault("image", lambda e: e.moved(0.4)),
        "clock back by 3 s": Fault("image", lambda e: e.moved(-3.0)),
        **{name: alone[name] for name in ("no calibration at first", "black images", "frozen images")},
    }
    found = {"none": Fault()}
    for name, fault in of_either.items():
        found |= {f"{camera}: {name}": replace(fault, cameras=(camera,)) for camera in (last, lead)}
    found |= {f"{last}: {name}": replace(alone[name], cameras=(last,)) for name in OF_ONE}
    names = {cameras[1]: last, last: cameras[1]} if len(cameras) > 2 else {lead: last, last: lead}
    found[f"{' and '.join(names)}: swapped"] = Fault("image", lambda e: swapped(e, names[e.camera]), cameras=tuple(names))
    found[f"all but {last}: black images"] = replace(alone["black images"], cameras=cameras[:-1])
    return found | {f"all: {name}": alone[name] for name in OF_ALL}


def known_faults(cameras: tuple[str, ...]) -> dict[str, Fault]:
    """Of one camera, or of several."""
    return rig_faults(cameras) if cameras else faults()


# ---- each fault on a node of its own


def run_one(job: tuple[str, Path, float, tuple[str, ...]]) -> Run:
    """A fault, by name, in a folder of its own."""
    name, folder, rate_hz, cameras = job
    drive, folder = read_drive(folder, rate_hz, cameras), folder / re.sub(r"\W+", "_", name)
    folder.mkdir(exist_ok=True)
    with Stage(drive, folder) as stage:
        run = stage.play(name, known_faults(cameras)[name])
    run.exit_code = stage.process.process.returncode
    return run


def run_all(names: list[str], args: argparse.Namespace, rate_hz: float) -> tuple[bool, str]:
    """Whether all runs were good, and the table."""
    folder, found = args.out, {}
    for number, run in common.run_jobs(args, run_one, [(name, folder, rate_hz, args.cameras) for name in names]):
        found[number] = run
        print(f"{len(found):2d}/{len(names)}  {run.name:36} {run.problem() or 'good'}", flush=True)
    runs = [found[number] for number in range(len(names))]
    write_text(folder / "faults.json", json.dumps([vars(r) for r in runs], indent=1) + "\n")
    rows = []
    for r in runs:
        lived = "" if r.exit_code == 0 else f" **(ended with {r.exit_code})**"
        said = [r.said] if not args.cameras else [f"{camera}: {text}" for camera, text in r.named.items()]
        said = "; ".join(textwrap.shorten(text.replace("|", "/"), 110, placeholder="...") for text in said)
        figures = (f"{r.tracked}/{r.images}", r.wrong, f"{r.growth_mb:+.0f} MB")
        again = (seconds(r.recovered_s), *([seconds(r.well_s)] if args.cameras else []))
        rows.append((r.name + lived, ", ".join(r.states).lower(), *again, *figures, said))
    head = "fault, for 2 s | states | right again after | tracked | wrong as TRACKING | memory | what it said"
    if args.cameras:
        head = head.replace("| tracked", "| cameras well after | tracked").replace(
            "what it said", "what diagnostics said of cameras"
        )
    return not any(r.problem() for r in runs), markdown_table(head, rows)


# ---- random faults on one node


def soak(drive: Drive, folder: Path, minutes: float, rate_hz: float, seed: int) -> tuple[bool, str]:
    """Faults on one node for so long, all of them in a random order, then again; soak.json has the figures so far. Faults that
    are there from the start of a node, or end it or start another, are left out. Returns whether all was good, and the table."""
    choice, rounds, waiting, problem = random.Random(seed), [], [], ""
    cameras = tuple(name for name in drive.infos if name)
    names = sorted(name for name, fault in known_faults(cameras).items() if not fault.missing and not fault.ends_node)
    with Stage(drive, folder) as stage:
        began, memory_mb = time.monotonic(), [stage.memory_mb()]
        while time.monotonic() - began < 60 * minutes and not problem:
            waiting = waiting or choice.sample(names, len(names))
            name = waiting.pop()
            # Each round is later than all of the one before, whichever way its fault moved the clock.
            run = stage.play(name, known_faults(cameras)[name], 200.0 * len(rounds))
            if stage.process.process.poll() is not None:
                problem = f"the node ended in round {len(rounds) + 1}: {name}"
                break
            rounds.append(run)
            memory_mb.append(stage.memory_mb())
            figures = {"minutes": (time.monotonic() - began) / 60, "rate_hz": rate_hz, "seed": seed}
            figures |= summary(rounds, memory_mb, len(names))
            write_text(folder / "soak.json", json.dumps(figures, indent=1) + "\n")
            outcome = f"right again {seconds(run.recovered_s)}  tracked {run.tracked}/{run.images}  wrong {run.wrong}"
            print(f"{figures['minutes']:5.1f} min  {name:34} {outcome}  memory {memory_mb[-1]:.1f} MB", flush=True)
    if not rounds:
        return False, problem
    figures |= {"exit_code": stage.process.process.returncode, "problem": problem}
    write_text(folder / "soak.json", json.dumps(figures, indent=1) + "\n")
    return is_good(figures), soak_table(figures) + problem


def summary(rounds: list[Run], memory_mb: list[float], kinds: int) -> dict[str, object]:
    """The figures, ready for JSON. Memory settles once each of the kinds of faults was there (the first search makes its index),
    or after half of a short soak: medians of a tenth of the rounds, from then on and at the end."""
    tenth, settled = max(len(memory_mb) // 10, 1), min(kinds, len(memory_mb) // 2)
    warm, end = (float(np.median(v)) for v in (memory_mb[settled : settled + tenth], memory_mb[-tenth:]))

    def counts(runs: list[Run]) -> dict[str, object]:
        found = [run.recovered_s for run in runs if run.recovered_s is not None]
        figures = {"injected": len(runs), "missed": len(runs) - len(found), "wrong_poses": sum(run.wrong for run in runs)}
        return figures | {"worst_recovery_s": max(found, default=None)}

    return {
        "images": sum(run.images for run in rounds),
        "tracked": sum(run.tracked for run in rounds),
        "memory_mb": {"start": memory_mb[0], "after_warm_up": warm, "end": end, "most": max(memory_mb)},
        "growth_percent": 100 * (end / warm - 1),
        **counts(rounds),
        "by_fault": {name: counts([r for r in rounds if r.name == name]) for name in sorted({r.name for r in rounds})},
    }


def is_good(figures: dict) -> bool:
    """Whether the node lived, always recovered, was never wrong, and did not grow."""
    failed = figures["exit_code"] or figures["problem"] or figures["missed"] or figures["wrong_poses"]
    return not failed and figures["growth_percent"] <= GROWTH_PERCENT


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def soak_table(figures: dict) -> str:
    """The summary, and a row per fault."""
    memory = figures["memory_mb"]
    text = (
        f"{figures['minutes']:.0f} minutes at {figures['rate_hz']:g} Hz, {figures['images']} images, {figures['injected']} "
        f"faults on one node: {figures['missed']} recoveries missed, {seconds(figures['worst_recovery_s'])} for the slowest, "
        f"{figures['wrong_poses']} wrong poses given as TRACKING. Memory {memory['start']:.0f} MB before the first image, "
        f"{memory['after_warm_up']:.1f} MB once each kind of fault had been there, {memory['end']:.1f} MB at "
        f"the end (of the last tenth): {figures['growth_percent']:+.1f} %; {memory['most']:.1f} MB at most. "
        f"Exit code {figures['exit_code']}."
    )
    rows = [
        (name, row["injected"], row["missed"], seconds(row["worst_recovery_s"]), row["wrong_poses"])
        for name, row in figures["by_fault"].items()
    ]
    return text + "\n\n" + markdown_table("fault | injected | recoveries missed | slowest | wrong as TRACKING", rows)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("-o", "--out", type=common.absolute, required=True, help="folder for data, logs and results")
    arguments.add_argument("--only", action="append", metavar="FAULT", help="only this fault; may be repeated")
    names = "several of front, left, right, back: faults of one of them, or of all"
    arguments.add_argument("--cameras", type=lambda text: tuple(text.split(",")), default=(), metavar="NAME,NAME", help=names)
    arguments.add_argument("--soak-minutes", type=float, help="random faults on one node for so long")
    arguments.add_argument("--rate", type=float, help=f"images per second; default {RATE_HZ:g}, in a soak {SOAK_RATE_HZ:g}")
    arguments.add_argument("--seed", type=int, default=0, help="of the soak's choices")
    arguments.add_argument("--docs", type=Path, help="a page whose table between its markers (faults, or soak) is replaced")
    common.add_scheduler(arguments)
    given = arguments.parse_args()
    # When it is terminated, it stops its nodes as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.soak_minutes and given.scheduler:
        arguments.error("--scheduler is for faults, each on a node of its own; a soak is one node")
    if len(given.cameras) == 1:
        arguments.error("--cameras takes two or more")
    known = list(known_faults(given.cameras))
    if unknown := [name for name in given.only or () if name not in known]:
        arguments.error(f"--only {unknown[0]}: choose among {', '.join(known)}")
    given.out.mkdir(parents=True, exist_ok=True)
    print("making the drive ...", flush=True)
    rate_hz = given.rate or (SOAK_RATE_HZ if given.soak_minutes else RATE_HZ)
    drive, section = make_drive(given.out, rate_hz, given.cameras), "soak" if given.soak_minutes else "faults"
    if given.soak_minutes:
        good, text = soak(drive, given.out, given.soak_minutes, rate_hz, given.seed)
    else:
        good, text = run_all(given.only or known, given, rate_hz)
    print(text)
    if given.docs is not None:
        write_section(given.docs, section, text)
    log = given.out / ("node.log" if given.soak_minutes else "FAULT/node.log")
    print(f"results: {given.out / section}.json; the node's log: {log}")
    return 0 if good else 1


if __name__ == "__main__":
    run_script(main)
