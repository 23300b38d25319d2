# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Feeds broken and hostile inputs to everything that reads what came from outside, and looks for crashes, hangs and memory.

    python experiments/fuzz.py                          # 10 000 inputs per parser
    python experiments/fuzz.py --parser map --inputs 500 --seed 3

Each input is a valid one with a few changes: bits, bytes, numbers (also in text), pieces cut out, doubled or taken from another
valid input. A parser may accept it or raise InputError (other refusals of ROS parameters count as well); all else is a failure,
kept in the output folder to be run again with --reproduce. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pixloc_ros.cli.arguments import read_priors
from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.metrics import evaluate
from pixloc_ros.evaluation.runs import BagRun, FrameRecord, read_run, write_run
from pixloc_ros.evaluation.usage import UsageMeter
from pixloc_ros.features import load_extractor
from pixloc_ros.features.weights import Weights
from pixloc_ros.geometry.cameras import Camera
from pixloc_ros.io import trajectory
from pixloc_ros.io.bags import BagReader
from pixloc_ros.io.camera_files import read_cameras, read_names
from pixloc_ros.io.colmap import read_colmap_model
from pixloc_ros.io.image_format import check_layout, decode_compressed, decode_raw
from pixloc_ros.io.trajectory import Trajectory
from pixloc_ros.io.tum import read_camera, read_rgbd_sequence
from pixloc_ros.mapping import Map
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_ros.mapping.local_points import LocalPointSelector
from pixloc_ros.node.parameters import BY_NAME, PARAMETERS, check_values
from pixloc_ros.tracking.last_pose import LastPose, load_last_pose, save_last_pose
from pixloc_ros.tracking.types import TrackState
from pixloc_ros.training.config import read_config
from pixloc_sim.recordings import SimulationOptions, simulate

MEMORY_BOUND_MB = 300
"""A parser may take at most this much more memory than before its first input."""
TIME_BOUND_S = 10.0
NUMBERS = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WORDS = (b"nan", b"inf", b"-inf", b"1e308", b"-0", b"", b"99999999999999999999", b"4294967296", b"-1", b"\x00", b"\xff")
NUMBER = re.compile(rb"-?\d+(\.\d+)?")
Files = dict[str, bytes]
"""An input: contents by file name."""

ENCODINGS = ("mono8", "mono16", "rgb8", "bgra8", "bayer_rggb8", "yuv422", "yuyv", "nonsense")
CONFIG = Path(__file__).resolve().parents[1] / "config" / "training" / "compact.json"


class Parser(NamedTuple):
    """Valid inputs, and what parses one that was written to a folder."""

    seeds: list[Files]
    read: Callable[[Path], object]


# ---- changes


def changed(seeds: list[Files], seed: int, number: int) -> Files:
    """A valid input with one to four changes, always the same for a seed and a number."""
    random = np.random.default_rng((seed, number))
    files = dict(seeds[random.integers(len(seeds))])
    for _ in range(random.integers(1, 5)):
        name = sorted(files)[random.integers(len(files))]
        others = [seed[name] for seed in seeds if name in seed]
        files[name] = change(files[name], others[random.integers(len(others))], random)
    return files


def change(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """One change somewhere, more often near the beginning, where headers are."""
    if not data:
        return WORDS[random.integers(len(WORDS))]

    def place(length: int) -> int:
        return int(length * random.random() ** (4 if random.random() < 0.5 else 1))

    at, kind = place(len(data)), random.integers(8)
    end = at + int(random.integers(1, 64))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << random.integers(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        width = int(2 ** random.integers(4))
        number = NUMBERS[random.integers(len(NUMBERS))] % 2 ** (8 * width)
        return data[:at] + number.to_bytes(width, "little") + data[at + width :]
    if kind in (3, 4):
        return data[:at] + data[end:] if kind == 3 else data[:end] + data[at:]
    if kind == 5:
        start = place(len(other)) if other else 0
        return data[:at] + other[start : start + int(random.integers(1, 256))] + data[at:]
    words = list(NUMBER.finditer(data, at, at + 400)) or list(NUMBER.finditer(data, 0, 400))
    if not words:
        return data[:at] + WORDS[random.integers(len(WORDS))] + data[at:]
    word = words[random.integers(len(words))]
    new = WORDS[random.integers(len(WORDS))] if random.random() < 0.5 else b"%d" % NUMBERS[random.integers(len(NUMBERS))]
    return data[: word.start()] + new + data[word.end() :]


# ---- valid inputs, and what parses them


def make_parsers(folder: Path) -> dict[str, Parser]:
    """All of them, by name."""
    scene = folder / "scene"
    simulate(scene, SimulationOptions(seconds=1.0, rate_hz=4.0, width=160, height=120, texel=0.05, rgbd=True))
    build_map_from_colmap(scene / "map", scene / "images", load_extractor())[0].save(folder / "site.pixmap")
    # The head of the shipped weights would be lost in their megabytes: a few of their tensors.
    shipped = Weights.open("compact")
    Weights(dict(list(shipped.network.items())[:4]), shipped.card).save(folder / "w.safetensors")
    identities = (torch.eye(n, dtype=torch.float64) for n in (4, 6))
    save_last_pose(folder / "last.json", LastPose("site.pixmap", 10**18, *identities))
    write_run(scene / "run", short_run())
    tum = [f"{n}.5 {n} 2 3 0 0 0 1" for n in range(30)]
    named = [f"image{n}.jpg 1 0 0 0 {n} 2 3" for n in range(30)]
    cameras = "".join(f"my image {n}.jpg PINHOLE 320 240 {200 + n} 200 160 120\n" for n in range(9))
    values = {p.name: p.default for p in PARAMETERS}
    model = {name: b"\n".join(data.split(b"\n")[:40]) + b"\n" for name, data in contents(scene / "map", "*.txt").items()}
    return {
        "map": Parser([contents(folder, "site.pixmap")], read_map),
        "weights": Parser([contents(folder, "w.safetensors")], lambda at: Weights.open(at / "w.safetensors")),
        "colmap_text": Parser([model], read_colmap_model),
        "colmap_binary": Parser([binary_model()], read_colmap_model),
        "rgbd": Parser([contents(scene / "rgbd", "*.txt")], lambda at: (read_rgbd_sequence(at), read_camera(at))),
        "image_raw": Parser([raw_image(encoding) for encoding in ENCODINGS], read_raw_image),
        "image_compressed": Parser(compressed_images(), lambda at: decode_compressed((at / "image").read_bytes())),
        "poses_tum": Parser([{"poses": "\n".join(tum).encode()}], read_poses),
        "poses_named": Parser([{"poses": "\n".join(named).encode()}], lambda at: trajectory.read_benchmark_poses(at / "poses")),
        "priors": Parser(
            [{"poses": "\n".join(f"{pose} 5 10%" for pose in named).encode()}],
            lambda at: read_priors(argparse.Namespace(prior=at / "poses", prior_std=None)),
        ),
        "cameras": Parser([{"list": cameras.encode()}], lambda at: (read_cameras(at / "list"), read_names(at / "list"))),
        "parameters": Parser([{"values": json.dumps(values).encode()}], read_parameters),
        "last_pose": Parser([contents(folder, "last.json")], lambda at: load_last_pose(at / "last.json", "site.pixmap")),
        "run": Parser([contents(scene / "run")], lambda at: evaluate(read_run(at))),
        "bag": Parser([contents(scene / "drive")], read_bag),
        "training_config": Parser([contents(CONFIG.parent, CONFIG.name)], lambda at: read_config(at / CONFIG.name)),
    }


def read_poses(at: Path) -> None:
    """As `pixloc evaluate` reads a file."""
    {"tum": trajectory.read_tum, "kitti": trajectory.read_kitti, "benchmark": trajectory.read_benchmark_poses}[
        trajectory.pose_format(at / "poses")
    ](at / "poses")


def contents(folder: Path, pattern: str = "*") -> Files:
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def short_run() -> BagRun:
    """Twelve images, two without a pose."""
    truth = Trajectory.from_poses((n * 10**8, torch.eye(4, dtype=torch.float64)) for n in range(12))
    covariance, ms = torch.eye(6, dtype=torch.float64), {"total": 10.0}
    records = [FrameRecord(n * 10**8, TrackState.TRACKING, truth.map_from_body[n], covariance, ms, 0.8, "") for n in range(10)]
    records += [FrameRecord(n * 10**8, TrackState.LOST, None, None, ms, 0.1, "lost") for n in (10, 11)]
    return BagRun(records, truth, truth, findings={"way_ratio": 1.0, "way_ratio_std": 0.1})


def read_map(at: Path) -> None:
    """Opens it and uses it as a frame would: a hostile map must not get further than InputError there either."""
    map_ = Map.open(at / "site.pixmap")
    camera = Camera("pinhole", 160, 120, torch.tensor([100.0, 100.0, 79.5, 59.5], dtype=torch.float64))
    selector = LocalPointSelector(map_)
    for pose in map_.map_from_keyframe[:2]:
        selector.select(pose, camera, 256)


def binary_model() -> Files:
    """One camera, two images, two points, as COLMAP writes them."""
    i4, u8, f8 = (lambda *v, dtype=dtype: np.array(v, dtype).tobytes() for dtype in ("<i4", "<u8", "<f8"))
    cameras = u8(1) + i4(1, 1) + u8(160, 120) + f8(100, 100, 80, 60)
    images, points = u8(2), u8(2)
    for n in (1, 2):
        images += i4(n) + f8(1, 0, 0, 0, 0.1 * n, 0, 0) + i4(1) + f"image{n}.jpg".encode() + b"\0" + u8(2)
        images += b"".join(f8(20.0 * p, 30.0) + np.array([p], "<i8").tobytes() for p in (1, 2))
        points += u8(n) + f8(n, 1, 4) + bytes((10, 20, 30)) + f8(0.5) + u8(2) + i4(1, n - 1, 2, n - 1)
    return {"cameras.bin": cameras, "images.bin": images, "points3D.bin": points}


def raw_image(encoding: str) -> Files:
    """A message's numbers and encoding, and its data."""
    step = 16 * {"mono8": 1, "bayer_rggb8": 1, "rgb8": 3, "bgra8": 4}.get(encoding, 2)
    fields = struct.pack("<III?", 8, 16, step, False) + encoding.encode()
    return {"fields": fields, "data": bytes(range(256)) * (8 * step // 256) + bytes(8 * step % 256)}


def read_raw_image(at: Path) -> None:
    fields, data = ((at / name).read_bytes() for name in ("fields", "data"))
    if len(fields) >= 13:  # else not what a ROS message can hold
        height, width, step, bigendian = struct.unpack("<III?", fields[:13])
        encoding = fields[13:].decode(errors="replace")
        check_layout(height, width, encoding, step, bigendian, len(data))
        decode_raw(data, height, width, encoding, step, bigendian)


def compressed_images() -> list[Files]:
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8), (0, 0), 3)
    sorts = ((".jpg", picture), (".png", picture), (".png", picture.astype(np.uint16) * 200))
    return [{"image": cv2.imencode(suffix, pixels)[1].tobytes()} for suffix, pixels in sorts]


def read_parameters(at: Path) -> None:
    try:
        values = json.loads((at / "values").read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        check_values({name: value for name, value in values.items() if name in BY_NAME})


def read_bag(at: Path) -> None:
    """Reads what a tracker would read."""
    with BagReader(at) as bag:
        bag.truth()
        for _ in bag.events():
            pass


# ---- running


def put(files: Files, folder: Path) -> None:
    """Writes an input to a folder, which then holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def attempt(parser: Parser, folder: Path) -> str:
    """What went wrong with the input in the folder; empty if nothing."""
    began = time.process_time()
    try:
        parser.read(folder)
    except InputError as error:
        if not str(error).strip():
            return "InputError without a word"
    except BaseException:
        return traceback.format_exc()
    seconds = time.process_time() - began
    return f"took {seconds:.1f} s" if seconds > TIME_BOUND_S else ""


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attempt_all(parser: Parser, seed: int, numbers: range, folder: Path, current, memory_mb, findings) -> None:
    """In a process of its own: a crash of the interpreter is a finding, not the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # image libraries complain of every broken image by themselves
    put(parser.seeds[0], folder)
    attempt(parser, folder)
    before = peak_mb()
    for number in numbers:
        current.value = number
        put(changed(parser.seeds, seed, number), folder)
        problem, took_mb = attempt(parser, folder), peak_mb() - before
        memory_mb.value = max(memory_mb.value, took_mb)
        if not problem and took_mb > MEMORY_BOUND_MB:
            problem, before = f"took {took_mb:.0f} MB", peak_mb()
        if problem:
            findings.put((number, problem))
    current.value = numbers.stop


def fuzz(parser: Parser, seed: int, inputs: int) -> tuple[dict[int, str], float]:
    """The problem of each input that failed, by number, and the most memory that was taken, in MB."""
    context, problems = multiprocessing.get_context("fork"), {}
    current, memory_mb = context.Value("q", 0), context.Value("d", 0.0)
    while current.value < inputs:
        findings, began, hung = context.SimpleQueue(), current.value, False
        with tempfile.TemporaryDirectory() as folder:
            work = (parser, seed, range(began, inputs), Path(folder), current, memory_mb, findings)
            child = context.Process(target=attempt_all, args=work)
            child.start()
            at, meter = began, UsageMeter(child.pid)
            while child.is_alive() and not hung:
                child.join(0.2)
                while not findings.empty():
                    problems.update([findings.get()])
                if current.value != at:
                    at, meter = current.value, UsageMeter(child.pid)
                # Processor time: time by the clock says nothing on a busy machine.
                hung = (meter.read().cpu_s or 0.0) > 2 * TIME_BOUND_S
            child.kill()
            child.join()
            while not findings.empty():
                problems.update([findings.get()])
        if current.value < inputs:
            problems[current.value] = "hung" if hung else f"ended the process ({child.exitcode})"
            current.value += 1
    return problems, memory_mb.value


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--inputs", type=int, default=10_000, help="inputs per parser")
    arguments.add_argument("--parser", nargs="+", help="only these")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("out/fuzz"), help="where inputs that fail are kept")
    arguments.add_argument("--reproduce", type=int, help="run only the input of this number, in this process")
    given = arguments.parse_args()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        parsers = make_parsers(Path(folder))
        if unknown := set(given.parser or ()) - set(parsers):
            raise InputError(f"no parser {', '.join(sorted(unknown))}: give one of {', '.join(parsers)}")
        print(f"{'parser':18} {'inputs':>7} {'failures':>8} {'memory':>8} {'time':>7}")
        for name in given.parser or parsers:
            parser, kept = parsers[name], given.out / name
            if given.reproduce is not None:
                put(changed(parser.seeds, given.seed, given.reproduce), kept / str(given.reproduce))
                print(attempt(parser, kept / str(given.reproduce)) or "nothing wrong", f"\ninput: {kept / str(given.reproduce)}")
                continue
            began, (problems, memory_mb) = time.monotonic(), fuzz(parser, given.seed, given.inputs)
            for number, problem in problems.items():
                put(changed(parser.seeds, given.seed, number) | {"problem.txt": problem.encode()}, kept / str(number))
            for number, problem in list(problems.items())[:5]:
                print(f"  {name} {number}: {problem.strip().splitlines()[-1]} (kept in {kept / str(number)})", file=sys.stderr)
            failures += len(problems)
            took = f"{memory_mb:5.0f} MB {time.monotonic() - began:5.0f} s"
            print(f"{name:18} {given.inputs:7d} {len(problems):8d} {took}", flush=True)
    print(f"{failures} failures" + (f", kept in {given.out}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
