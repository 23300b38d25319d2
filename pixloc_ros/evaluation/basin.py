# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The convergence basin: from how far away the alignment still finds the pose.

Each query's true pose is turned, shifted, or both, by amounts that grow step by step in fixed random directions, and the
alignment starts from there. The image is prepared once a query and the map is what it is: only the alignment runs again.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..geometry.cameras import Camera
from ..io.text import read_text
from ..mapping.local_points import LocalPointSelector
from ..mapping.map_file import Map
from ..tracking.frame_aligner import FrameAligner
from .tables import format_number, format_table

KINDS = ("rotation", "translation", "together")
SUCCESS_DEG, SUCCESS_DEPTH = 0.5, 0.01
"""A start succeeds where the pose ends up within both: degrees, and a share of the depth."""
RADIUS_SHARES = (0.9, 0.5)


@dataclass(frozen=True)
class BasinOptions:
    """Which starts are tried.

    Attributes:
        rotation_deg: The largest initial turn.
        translation: The largest initial shift, as a share of the depth; "together" takes both at the same step.
        steps: Equal steps from zero to there.
        directions: Starts per query and step.
        seed: Of the directions.
    """

    rotation_deg: float = 40.0
    translation: float = 0.5
    steps: int = 8
    directions: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.rotation_deg <= 180 and 0 < self.translation < math.inf) or min(self.steps, self.directions) < 1:
            raise InputError(
                "basin: the rotation must lie above 0 and up to 180 degrees, the translation above 0, steps and "
                "directions must be at least 1"
            )

    def sizes(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Degrees and shares of the depth [steps + 1] of each step of a kind of start."""
        ramp = np.linspace(0, 1, self.steps + 1)
        return ramp * self.rotation_deg * (kind != "translation"), ramp * self.translation * (kind != "rotation")


@dataclass(frozen=True)
class BasinQuery:
    """An image of known pose.

    Attributes:
        name: Decides the directions of the starts.
        image: uint8 [H, W] or [H, W, 3], or what loads it.
        camera: Its calibration.
        map_from_camera: float64 [4, 4].
        depth: What translations are shares of, in the map's unit.
    """

    name: str
    image: np.ndarray | Callable[[], np.ndarray]
    camera: Camera
    map_from_camera: torch.Tensor
    depth: float


@dataclass(frozen=True)
class BasinCurve:
    """What became of one kind of starts.

    Attributes:
        rotation_deg: Of the start, float64 [S].
        translation: Of the start, as a share of the depth, float64 [S].
        final_deg: Errors of the poses found, float64 [S, starts]; infinite where none was.
        final_depth: Likewise, as a share of the depth.
    """

    rotation_deg: np.ndarray
    translation: np.ndarray
    final_deg: np.ndarray
    final_depth: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """Share [S] of the starts that end within the limits."""
        return ((self.final_deg < SUCCESS_DEG) & (self.final_depth < SUCCESS_DEPTH)).mean(1)

    def radius(self, share: float) -> float:
        """Up to which step, of all steps but counted from 0 to 1, at least `share` succeed: 1 where the curve never falls
        below, else where the line between two steps crosses; 0 where it lies below from the start."""
        success = self.success
        below = np.flatnonzero(success < share)
        k = int(below[0]) if len(below) else len(success)
        if k in (0, len(success)):
            return float(k > 0)
        crossing = (success[k - 1] - share) / (success[k - 1] - success[k])
        return float((k - 1 + crossing) / (len(success) - 1))

    def to_json(self) -> dict[str, object]:
        """One entry per step; medians are None where half of the starts or more found no pose."""
        medians = (np.median(errors, 1) for errors in (self.final_deg, self.final_depth))
        starts = self.final_deg.shape[1]
        steps = [
            {"initial_deg": float(degrees), "initial_depth": float(depth), "starts": starts, "success": float(success)}
            | {key: float(v) if np.isfinite(v) else None for key, v in zip(("median_deg", "median_depth"), ends)}
            for degrees, depth, success, *ends in zip(self.rotation_deg, self.translation, self.success, *medians)
        ]
        radii = {}
        for share in RADIUS_SHARES:
            reached, ends = self.radius(share), {"deg": self.rotation_deg[-1], "depth": self.translation[-1]}
            radii[f"{share:.0%}"] = {**{key: reached * float(end) for key, end in ends.items()}, "reached_end": reached == 1.0}
        return {"steps": steps, "radius": radii}


@dataclass(frozen=True)
class Basin:
    """A curve for each kind of start. label: what was measured."""

    label: str
    options: BasinOptions
    queries: int
    curves: Mapping[str, BasinCurve] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "label": self.label,
            "options": asdict(self.options),
            "queries": self.queries,
            "success_limits": {"deg": SUCCESS_DEG, "depth": SUCCESS_DEPTH},
            "curves": {kind: curve.to_json() for kind, curve in self.curves.items()},
        }


def measure_basin(
    localizer: FrameAligner,
    queries: Iterable[BasinQuery],
    options: BasinOptions = BasinOptions(),
    label: str = "",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Basin:
    """Localize every query from every start. The same input gives the same figures.

    Raises InputError where there is no query, or an image does not fit its camera.
    """
    queries = list(queries)
    if not queries:
        raise InputError("the convergence basin needs at least one image of known pose")
    errors = {kind: np.full((2, options.steps + 1, len(queries), options.directions), np.inf) for kind in KINDS}
    for q, query in enumerate(queries):
        progress(q, len(queries))
        prepared = localizer.prepare(query.image() if callable(query.image) else query.image, query.camera)
        for j in range(options.directions):
            axis, way = _directions(options.seed, query.name, j)
            for kind in KINDS:
                for k, (degrees, share) in enumerate(zip(*options.sizes(kind))):
                    turn = se3.so3_exp(axis * math.radians(degrees))
                    start = query.map_from_camera @ se3.from_rotation_translation(turn, way * (share * query.depth))
                    found = localizer.localize_prepared(prepared, start)
                    if found.success:
                        distance, angle = se3.pose_difference(query.map_from_camera, found.map_from_camera)
                        errors[kind][:, k, q, j] = math.degrees(float(angle)), float(distance) / query.depth
    progress(len(queries), len(queries))
    curves = {kind: BasinCurve(*options.sizes(kind), *errors[kind].reshape(2, options.steps + 1, -1)) for kind in KINDS}
    return Basin(label, options, len(queries), curves)


def median_depth(map_: Map, map_from_camera: torch.Tensor, camera: Camera) -> float:
    """Of the map's points that a camera at a pose should see. Raises InputError where there are none."""
    chosen = LocalPointSelector(map_).select(map_from_camera, camera, 1024)
    if len(chosen.points) == 0:
        raise InputError("the map has no points where an image was taken: check that the true poses belong to this map")
    return chosen.median_depth(map_from_camera)


def read_basin(path: Path) -> dict[str, object]:
    """What `Basin.to_json` gave. Raises InputError where the file holds something else."""
    remedy = "give a file that 'pixloc basin' wrote"
    try:
        values = json.loads(read_text(path, remedy))
        if not all(values["curves"][kind]["steps"] and values["curves"][kind]["radius"] for kind in KINDS):
            raise KeyError("curves")
        return values
    except InputError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a convergence basin: {remedy}") from None


def format_basin(basin: Mapping[str, object]) -> str:
    """What `Basin.to_json` gave as text: a line per step, then the radii."""
    blocks = []
    for kind, curve in basin["curves"].items():
        rows = [(kind, "% of depth", "successes", "median deg", "median % of depth")]
        for step in curve["steps"]:
            depth = None if step["median_depth"] is None else 100 * step["median_depth"]
            start = (f"{step['initial_deg']:.1f}°", f"{100 * step['initial_depth']:.1f}", f"{100 * step['success']:.0f} %")
            rows.append((*start, format_number(step["median_deg"]), format_number(depth)))
        radii = [f"{name} succeed up to {format_radius(radius, kind)}" for name, radius in curve["radius"].items()]
        blocks += [format_table(rows), "; ".join(radii), ""]
    return "\n".join(blocks)


def format_radius(radius: Mapping[str, float], kind: str) -> str:
    """A radius in the units of its kind; with ≥ where the curve never fell below."""
    parts = {"rotation": f"{radius['deg']:.0f}°", "translation": f"{100 * radius['depth']:.0f} %"}
    value = parts.get(kind) or " & ".join(parts.values())
    return f"≥ {value}" if radius["reached_end"] else value


def _directions(seed: int, name: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An axis and a direction of travel, unit vectors [3] along the camera's axes; functions of the query's name alone."""
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), number))
    axis, way = torch.from_numpy(rng.standard_normal((2, 3)))
    return axis / axis.norm(), way / way.norm()
