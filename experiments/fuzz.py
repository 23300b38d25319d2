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
import multiprocessing
import os
import queue
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from fuzz_parsers import Files, Parser, make_parsers

from pixloc_ros.cli.scripts import run_script
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.usage import UsageMeter

MEMORY_BOUND_MB = 300
"""A parser may take at most this much more memory than before its first input."""
TIME_BOUND_S = 10.0
NUMBERS = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WORDS = (b"nan", b"inf", b"-inf", b"1e308", b"-0", b"", b"99999999999999999999", b"4294967296", b"-1", b"\x00", b"\xff")
NUMBER = re.compile(rb"-?\d+(\.\d+)?")


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


# ---- running


def put(files: Files, folder: Path) -> None:
    """Writes an input to a folder, which then holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


def run_batch(parser: Parser, seed: int, numbers: range, folder: Path, results: multiprocessing.Queue) -> None:
    """In a process of its own: a crash of the interpreter is a finding, not the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # image libraries complain of every broken image by themselves
    put(parser.seeds[0], folder)
    attempt(parser, folder)
    before = peak_mb()
    for number in numbers:
        put(changed(parser.seeds, seed, number), folder)
        results.put((number, None))
        problem = attempt(parser, folder)
        if not problem and peak_mb() - before > MEMORY_BOUND_MB:
            problem = f"took {peak_mb() - before:.0f} MB"
            before = peak_mb()
        if problem:
            results.put((number, problem))
    results.put((None, peak_mb() - before))


def fuzz(parser: Parser, seed: int, inputs: int, batch: int = 500) -> Iterator[tuple[int, str] | float]:
    """(number, problem) of each failure, and the memory that each batch took, in MB."""
    context = multiprocessing.get_context("fork")
    number = 0
    while number < inputs:
        results = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            numbers = range(number, min(number + batch, inputs))
            child = context.Process(target=run_batch, args=(parser, seed, numbers, Path(folder), results))
            child.start()
            current = number
            while True:
                try:
                    current_or_none, problem = next_result(child, results)
                except queue.Empty:
                    dead = not child.is_alive()
                    yield current, f"ended the process ({child.exitcode})" if dead else "hung"
                    child.kill()
                    number = current + 1
                    break
                if current_or_none is None:
                    yield float(problem)
                    number = numbers.stop
                    break
                current = current_or_none
                if problem is not None:
                    yield current, problem
            child.join()


def next_result(child: multiprocessing.Process, results: multiprocessing.Queue) -> tuple:
    """The child's next message. Raises queue.Empty if it has died, or computes for too long without one."""
    meter = UsageMeter(child.pid)
    while True:
        alive = child.is_alive()
        try:
            return results.get(timeout=0.2)
        except queue.Empty:
            # Processor time: time by the clock says nothing on a busy machine.
            if not alive or (meter.read().cpu_s or 0.0) > 2 * TIME_BOUND_S:
                raise


def main() -> int:
    split = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=split)
    arguments.add_argument("--inputs", type=int, default=10_000, help="inputs per parser")
    arguments.add_argument("--parser", action="append", help="only this one; may be repeated")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("out/fuzz"), help="where inputs that fail are kept")
    arguments.add_argument("--reproduce", type=int, help="run only the input of this number, in this process")
    given = arguments.parse_args()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        parsers = make_parsers(Path(folder))
        unknown = set(given.parser or ()) - set(parsers)
        if unknown:
            arguments.error(f"no parser {', '.join(sorted(unknown))}: give one of {', '.join(parsers)}")
        print(f"{'parser':18} {'inputs':>7} {'failures':>8} {'memory':>8} {'time':>7}")
        for name in given.parser or parsers:
            parser = parsers[name]
            if given.reproduce is not None:
                at = given.out / name / str(given.reproduce)
                put(changed(parser.seeds, given.seed, given.reproduce), at)
                print(attempt(parser, at) or "nothing wrong", f"\ninput: {at}")
                continue
            began, count, memory = time.monotonic(), 0, 0.0
            for finding in fuzz(parser, given.seed, given.inputs):
                if isinstance(finding, float):
                    memory = max(memory, finding)
                    continue
                number, problem = finding
                count += 1
                at = given.out / name / str(number)
                put(changed(parser.seeds, given.seed, number) | {"problem.txt": problem.encode()}, at)
                if count <= 5:
                    print(f"  {name} {number}: {problem.strip().splitlines()[-1]} (kept in {at})", file=sys.stderr)
            failures += count
            print(f"{name:18} {given.inputs:7d} {count:8d} {memory:5.0f} MB {time.monotonic() - began:5.0f} s", flush=True)
    print(f"{failures} failures" + (f", kept in {given.out}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    run_script(main)
