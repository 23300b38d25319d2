# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the machine, its load, test data, statistics, tables and files of figures."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pixloc_ros.cli.progress import show_progress
from pixloc_ros.errors import InputError
from pixloc_ros.evaluation.tables import format_number, format_table, markdown_table, write_section
from pixloc_ros.evaluation.usage import machine_name
from pixloc_ros.features import Extractor
from pixloc_ros.io.files import write_text
from pixloc_ros.mapping.build import build_map_from_colmap
from pixloc_sim.recordings import SUMMARY, SimulationOptions, simulate

DATA = Path("out") / "benchmarks"
"""Where simulated drives and their maps are kept between runs."""
DRIVE_SECONDS = 6.0
Figures = TypeVar("Figures")


def describe_machine() -> dict[str, object]:
    """Processor and cores, versions, commit and load: what figures are worth nothing without."""
    command, here = ["git", "describe", "--always", "--dirty"], Path(__file__).parent
    commit = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False).stdout.strip()
    return {
        "processor": machine_name(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "load": round(os.getloadavg()[0], 1),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}


def simulated_drive(width: int, height: int, folder: Path = DATA, rate_hz: float = 10.0) -> Path:
    """A short simulated drive with images of a size, made once."""
    path = folder / f"drive_{width}x{height}{'' if rate_hz == 10.0 else f'_{rate_hz:g}hz'}"
    if not (path / SUMMARY).is_file():
        print(f"making {path} (once)", file=sys.stderr)
        options = SimulationOptions(seconds=DRIVE_SECONDS, width=width, height=height, rate_hz=rate_hz)
        with show_progress("simulation:") as progress:
            simulate(path, options, lambda what, done, of: progress(done, of, what))
    return path


def map_of_drive(drive: Path, extractor: Extractor) -> Path:
    """The drive's map, made once per network."""
    path = drive.with_name(f"{drive.name}_{extractor.fingerprint}.pixmap")
    if not path.is_file():
        build_map_from_colmap(drive / "map", drive / "images", extractor)[0].save(path)
    return path


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take. doc: description of the script."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--weights", default="compact", metavar="NAME|FILE", help="network (default compact)")
    result.add_argument("--data", type=Path, default=DATA, help="where simulated drives and maps are kept (up to 2 GB)")
    add_output_arguments(result)
    old = result.add_mutually_exclusive_group()
    old.add_argument("--compare", type=Path, metavar="OLD.json", help="figures of an earlier run to compare with")
    old.add_argument("--against", metavar="COMMIT", help="run that commit's code first and compare with it")
    return result


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--json, --docs and --section, for `report`."""
    parser.add_argument("--json", type=Path, help="write the figures here")
    markers = "<!-- benchmark SECTION: begin --> and ... end -->"
    parser.add_argument("--docs", type=Path, metavar="PAGE", help=f"put the tables into this page, between {markers}")
    parser.add_argument("--section", default=Path(sys.argv[0]).stem, help="of the page (default: the benchmark's name)")


def in_process(work: Callable[..., Figures], *arguments: object) -> Figures:
    """The result of a call in a fresh process, whose memory, threads and caches are its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def timed_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def report(figures: dict[str, object], args: argparse.Namespace, *tables: Sequence[tuple[str, ...]]) -> int:
    """Print machine and tables; keep figures and tables where asked. The first row of a table is its head."""
    machine = ", ".join(f"{key} {value}" for key, value in figures["machine"].items())
    print("\n\n".join((machine, *map(format_table, tables))))
    if args.json is not None:
        write_text(args.json, json.dumps(figures, indent=2) + "\n")
    if args.docs is not None:
        pages = (markdown_table(" | ".join(head), rows) for head, *rows in tables)
        write_section(args.docs, f"benchmark {args.section}", "\n".join((*pages, f"({machine})")))
    return 0


def earlier(args: argparse.Namespace) -> dict[str, object]:
    """The figures to compare with: read, or taken now with the code of another commit; empty where not asked for."""
    if args.compare:
        return json.loads(args.compare.read_text())
    if not args.against:
        return {}
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ours.add_argument("--against")
    add_output_arguments(ours)
    tree, script = _checked_out(args.against), Path("benchmarks") / Path(sys.argv[0]).name
    print(f"now the code of {args.against}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, tree / script, *ours.parse_known_args()[1], "--json", figures]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise InputError(f"the benchmark of commit {args.against} failed: it may not know these options")
        return json.loads(figures.read_text())


def _checked_out(commit: str) -> Path:
    """The files of a commit, kept in out/benchmarks/commits; what it compiles is kept with them."""

    def git(*words: object) -> bytes:
        done = subprocess.run(["git", *map(str, words)], cwd=Path(__file__).parent, capture_output=True, check=False)
        if done.returncode:
            raise InputError(f"git has no commit {commit}: {done.stderr.decode().strip()}")
        return done.stdout

    tree = DATA.absolute() / "commits" / git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
    if not tree.is_dir():
        part = tree.with_name(f"{tree.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        archive = part.with_suffix(".tar")
        git("-C", "..", "archive", "-o", archive, commit)
        shutil.unpack_archive(archive, part, filter="data")
        archive.unlink()
        part.rename(tree)
    return tree


def compared(new: dict[str, float], old: dict[str, float], *keys: str) -> list[str]:
    """Some figures, and how they compare with earlier ones."""
    return [against(new[key], old.get(key)) for key in keys]


def against(new: float, old: float | None) -> str:
    """A figure, and how it compares with an earlier one."""
    text = format_number(new)
    return text if not old else f"{text} ({100 * (new / old - 1):+.0f} %)"
