# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Drives made worse while they are read: images blurred, dark, noisy, compressed, covered or missing, odometry noisy, calibration
or stamps wrong. docs/evidence/robustness.md says what each kind and its severity mean.

Severity 0 is the bag itself, and more is worse. What happens to a message depends on its stamp, the severity and the seed alone;
the random numbers are the same at every severity: a streak of blur gets longer but keeps its direction. 15 pixels of blur,
darkness 2 and 30 % covered are what the single-image tables of docs/evidence/results.md use.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..errors import InputError
from ..geometry import se3
from ..io.bags import BagReader
from ..io.trajectory import Trajectory
from .altered_bag import AlteredBag, Change, OdometryChange

CLEAR_S = 1.0
"""Images of the first second stay as they are, so that every drive begins tracking."""
_BLANK_EVERY_S = 2.5

ImageChange = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """One way to make a drive worse.

    Attributes:
        title: For people.
        unit: Of the severity.
        text: With the {severity} in it, or what that {leaves} of 100.
        severities: The suite's.
        most: The largest severity that means something.
        image: How one image changes, None where something else does.
    """

    title: str
    unit: str
    text: str
    severities: tuple[float, ...]
    most: float = math.inf
    image: ImageChange | None = None


@dataclass(frozen=True)
class Degradation:
    """A kind (a name in `KINDS` or of a condition) and how much of it. Raises InputError for what does not exist."""

    kind: str
    severity: float

    def __post_init__(self) -> None:
        if self.kind not in _ALL_KINDS:
            raise InputError(f"no kind of degradation '{self.kind}': choose of {', '.join(KINDS)}")
        most = _ALL_KINDS[self.kind].most
        if not 0 <= self.severity <= most or not math.isfinite(self.severity):
            limit = f"from 0 to {most:g}" if math.isfinite(most) else "not negative"
            raise InputError(
                f"severity {self.severity:g} of {self.kind} makes no sense: it is {limit}, in {_ALL_KINDS[self.kind].unit}"
            )

    def __str__(self) -> str:
        """ "15 px of blur"; "as recorded" where nothing changes."""
        text = _ALL_KINDS[self.kind].text.format(severity=f"{self.severity:g}", leaves=f"{100 - self.severity:g}")
        return text if self.severity else "as recorded"


def degraded(
    bag: BagReader, condition: str | Degradation, seed: int = 0, clear_s: float = CLEAR_S, truth: Trajectory | None = None
) -> AlteredBag:
    """A drive made worse; its `cause` is the degradation.

    Args:
        bag: As recorded.
        condition: One of `CONDITIONS`, or a kind and severity.
        seed: Of the random numbers.
        clear_s: Images and frame drops begin so much after the first image; odometry, calibration and stamps are wrong from
            the start.
        truth: Replaces the bag's.
    """
    if isinstance(condition, str) and condition not in CONDITIONS:
        raise InputError(f"no condition '{condition}': choose one of {', '.join(CONDITIONS)}")
    degradation = CONDITIONS[condition] if isinstance(condition, str) else condition
    change = _change(bag, degradation, seed, clear_s) if degradation.severity else None
    return AlteredBag(bag, change, truth, degradation)


def _change(bag: BagReader, degradation: Degradation, seed: int, clear_s: float) -> Change:
    kind, severity = degradation.kind, degradation.severity
    if kind == "odometry":
        return Change(odometry=lambda: _noisy_odometry(severity, seed))
    if kind == "calibration":
        return Change(focal=1 + severity / 100)
    if kind == "time":
        return Change(late_ns=round(severity * 1e6))
    if kind == "thinned":
        left = set(sorted(bag.image_stamps())[:: round(severity)])
        return Change(keeps=lambda stamp_ns, is_image: not is_image or stamp_ns in left)
    clear_ns = min(bag.image_stamps(), default=0) + round(clear_s * 1e9)
    if kind == "drops":

        def keeps(stamp_ns: int, is_image: bool) -> bool:
            clear = not is_image or stamp_ns < clear_ns
            return clear or 100 * np.random.default_rng((seed, stamp_ns)).random() >= severity

        return Change(keeps=keeps)

    def changed(image: np.ndarray, stamp_ns: int) -> np.ndarray:
        since_ns = stamp_ns - clear_ns
        since_s = since_ns * 1e-9
        over = (kind == "blank" and since_s % _BLANK_EVERY_S >= severity) or (kind == "inverted" and since_s > severity)
        if since_ns < 0 or over:
            return image
        return _ALL_KINDS[kind].image(image, severity, np.random.default_rng((seed, stamp_ns)))

    return Change(image=changed)


def _noisy_odometry(percent: float, seed: int) -> OdometryChange:
    """Adds a random walk in x, y and yaw of the base: standard deviations of `percent` cm along x and y after a metre of way, and
    of `percent` hundredths of a radian after a radian of turning, growing with the square roots of both."""
    last: tuple[torch.Tensor, torch.Tensor] | None = None

    def noisy(stamp_ns: int, odom_from_base: torch.Tensor) -> torch.Tensor:
        nonlocal last
        if not bool(torch.isfinite(odom_from_base).all()):
            return odom_from_base
        pose = odom_from_base
        if last is not None:
            before, noisy_before = last
            way, turn = (float(v) for v in se3.pose_difference(before, odom_from_base))
            x, y, yaw = percent / 100 * np.random.default_rng((seed, stamp_ns)).standard_normal(3)
            error = torch.tensor([x * math.sqrt(way), y * math.sqrt(way), 0, 0, 0, yaw * math.sqrt(turn)], dtype=torch.float64)
            pose = noisy_before @ (se3.inverse(before) @ odom_from_base) @ se3.se3_exp(error)
        last = odom_from_base, pose
        return pose

    return noisy


# ---- what happens to an image


def _blurred(image: np.ndarray, length_px: float, rng: np.random.Generator) -> np.ndarray:
    """A straight streak in a random direction, centred."""
    reach = math.ceil(length_px / 2) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-length_px / 2, length_px / 2, max(2, math.ceil(8 * length_px)))
    rows, columns = (np.round(reach + along * part).astype(int) for part in (np.sin(angle), np.cos(angle)))
    np.add.at(kernel, (rows, columns), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _dark(image: np.ndarray, stops: float, rng: np.random.Generator) -> np.ndarray:
    """Grey values halve with each stop, shadows more than that, and noise takes over."""
    dim = 255 * 0.5**stops * (np.arange(256) / 255.0) ** (1 + stops / 4)
    return _to_bytes(dim[image] + rng.normal(0, 1.5 * stops, image.shape))


def _noisy(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(image + sigma * rng.standard_normal(image.shape, np.float32))


def _compressed(image: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Through JPEG. Which channel is red does not matter."""
    quality = max(1, round(100 - percent))
    _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def _occluded(image: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    """Textured blocks until so much is covered."""
    image = image.copy()
    height, width = image.shape[:2]
    covered = np.zeros((height, width), bool)
    while covered.mean() < percent / 100:
        size = (int(min(height, width) * rng.uniform(0.15, 0.4)), int(min(height, width) * rng.uniform(0.15, 0.4)))
        top, left = int(rng.integers(0, height - size[0])), int(rng.integers(0, width - size[1]))
        texture = cv2.resize(rng.integers(0, 256, (6, 6)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
        area = (slice(top, top + size[0]), slice(left, left + size[1]))
        image[area] = texture if image.ndim == 2 else texture[..., None]
        covered[area] = True
    return image


def _blank(image: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(128 + rng.normal(0, 3, image.shape))


def _inverted(image: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    return 255 - image


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


KINDS: dict[str, Kind] = {
    "blur": Kind("Motion blur", "px", "{severity} px of blur", (5, 15, 30, 45), 200, _blurred),
    "dark": Kind("Darkness", "stops", "{severity}-stop darkness", (1, 2, 3, 4), 8, _dark),
    "noise": Kind("Image noise", "grey levels", "noise of {severity} grey levels", (10, 20, 40, 80), 255, _noisy),
    "compression": Kind("Compression", "100 − JPEG quality", "JPEG quality {leaves}", (70, 90, 95, 98), 99, _compressed),
    "occlusion": Kind("Occlusion", "% covered", "{severity} % covered", (15, 30, 50, 70), 90, _occluded),
    "drops": Kind("Frame drops", "% missing", "{severity} % of the images missing", (50, 75, 90, 95), 99),
    "odometry": Kind("Odometry noise", "cm after 1 m", "odometry ± {severity} cm after 1 m", (5, 10, 20, 40), 100),
    "calibration": Kind("Calibration error", "% of the focal length", "focal length + {severity} %", (0.5, 1, 2, 5), 50),
    "time": Kind("Time offset", "ms", "stamps late by {severity} ms", (10, 20, 50, 100), 1000),
}
"""What the robustness suite measures."""

_ALL_KINDS = KINDS | {
    "blank": Kind("Blank bursts", f"s every {_BLANK_EVERY_S:g} s", "blank for {severity} s", (0.8,), _BLANK_EVERY_S, _blank),
    "inverted": Kind("Inverted contrast", "s", "contrast inverted for {severity} s", (5, 9), math.inf, _inverted),
    "thinned": Kind("Fewer images", "images apart", "every {severity}th image", (4,)),
}

CONDITIONS: dict[str, Degradation] = {
    "nominal": Degradation("blur", 0),
    "blurred": Degradation("blur", 15),
    "dark": Degradation("dark", 2),
    "occluded": Degradation("occlusion", 30),
    "blank bursts": Degradation("blank", 0.8),
    "every fourth image": Degradation("thinned", 4),
}
"""Named ones, for comparisons at one severity."""
