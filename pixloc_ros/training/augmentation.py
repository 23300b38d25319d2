# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What cameras and light do to images: drawn anew for each image, so that reference and query differ.

All work on float32 [H, W], grey levels 0 to 255, and never move anything: a pixel stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class AugmentationOptions:
    """How often each change happens to a query; a reference, being chosen with care, gets `reference_share` of that.

    Attributes:
        clean: Share of images that are left as they are.
        blank: Share of queries that show nothing: a wall, a covered lens.
        change: Share of queries in which something else stands, grows or lies in front of what the reference saw.
        relight: Share of images under another sun: brighter and darker areas with soft and hard borders.
        tone: Share of images with another camera's tone curve.
        turned: Share of images in which what was bright may be dark, in all of the image or in areas: skies, windows and lamps by
            day and by night.
        night: Share of images in which a few lamps are all the light.
        blur_px: Longest streak of motion blur in an image of 640 pixels' width.
        covered: Largest share of an image that things in front of it cover.
    """

    clean: float = 0.15
    light: float = 0.7
    dark: float = 0.2
    shadow: float = 0.25
    occlusion: float = 0.25
    blur: float = 0.25
    defocus: float = 0.15
    half_resolution: float = 0.2
    vignetting: float = 0.25
    noise: float = 0.5
    jpeg: float = 0.2
    blank: float = 0.0
    reference_share: float = 0.3
    change: float = 0.0
    relight: float = 0.0
    tone: float = 0.0
    turned: float = 0.0
    night: float = 0.0
    blur_px: float = 15.0
    covered: float = 0.33

    def __post_init__(self) -> None:
        if any(not 0 <= value <= 1 for name, value in vars(self).items() if name != "blur_px") or not self.blur_px >= 2:
            raise InputError("augmentation: all numbers are shares between 0 and 1, and blur_px at least 2")


def augment(image: np.ndarray, rng: np.random.Generator, options: AugmentationOptions, reference: bool = False) -> np.ndarray:
    """Changed copy of a uint8 [H, W] image, in the order light takes: scene, lens, motion, sensor, file."""
    share = options.reference_share if reference else 1.0
    if options.blank and not reference and rng.random() < options.blank:
        return _blank(image, rng)
    if rng.random() < options.clean:
        return image
    x = image.astype(np.float32)
    for chance, change in (
        (0.0 if reference else options.change, _change),
        (options.relight, _relight),
        # Left out where they are not wanted: earlier recipes draw the same numbers.
        *(((options.turned, _turned),) if options.turned else ()),
        *(((options.night, _night),) if options.night else ()),
        (options.shadow, _shadow),
        (0.0 if reference else options.occlusion, lambda x, rng: _occlusion(x, rng, options.covered)),
        (options.light, _light),
        (options.tone, _tone),
        (options.dark, _dark),
        (options.vignetting, _vignetting),
        (options.defocus, _defocus),
        (options.blur, lambda x, rng: _motion_blur(x, rng, options.blur_px)),
        (options.half_resolution, _half_resolution),
        (options.noise, _noise),
    ):
        if rng.random() < chance * share:
            x = change(x, rng)
    x = np.clip(np.round(x), 0, 255).astype(np.uint8)
    return _jpeg(x, rng) if rng.random() < options.jpeg * share else x


def _blank(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One grey level, or a soft ramp, with noise."""
    height, width = image.shape
    ramp = cv2.resize(rng.uniform(-20, 20, (2, 2)), (width, height)) * rng.integers(0, 2)
    noise = rng.normal(0, rng.uniform(0, 4), image.shape)
    return np.clip(np.round(rng.uniform(0, 255) + ramp + noise), 0, 255).astype(np.uint8)


def _light(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, gamma and black level; overexposed parts saturate."""
    gain, gamma, offset = np.exp(rng.uniform(-0.6, 0.5)), np.exp(rng.uniform(-0.4, 0.4)), rng.uniform(-15, 15)
    return np.clip(255 * gain * (np.clip(x, 0, 255) / 255) ** gamma + offset, 0, 255)


def _dark(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Low light: little signal, and noise that does not shrink with it."""
    dim = 255 * rng.uniform(0.12, 0.5) * (np.clip(x, 0, 255) / 255) ** rng.uniform(1.0, 1.6)
    return np.clip(dim + rng.normal(0, rng.uniform(1, 4), x.shape), 0, 255).astype(np.float32)


def _shadow(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the image or a polygon of it darker, with a border from sharp to soft."""
    height, width = x.shape
    mask = np.zeros((height, width), np.uint8)
    corners = rng.uniform(-0.3, 1.3, (int(rng.integers(3, 6)), 2)) * (width, height)
    cv2.fillPoly(mask, [cv2.convexHull(corners.astype(np.int32))], 255)
    soft = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), rng.uniform(0.5, 0.05 * width))
    return x * (1 - rng.uniform(0.2, 0.7) * soft)


def _soft_mask(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random field [H, W] from 0 to 1 with large and small shapes, borders from soft to hard."""
    cells = tuple(int(n) for n in rng.integers(2, 12, 2))
    field = cv2.resize(rng.uniform(-1, 1, cells).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
    return 1 / (1 + np.exp(-field * np.float32(np.exp(rng.uniform(0, 4)))))


def _change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Parts of the image mixed with others of the same image, mirrored and moved: new leaves, posters, cars, snow."""
    other = np.roll(x[:: rng.choice((-1, 1)), ::-1], tuple(rng.integers(0, n) for n in x.shape), (0, 1))
    share = rng.uniform(0.2, 0.8) * _soft_mask(x.shape, rng)
    return x + share * (other - x)


def _relight(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from elsewhere: up to eight times as much in one area as in another; slopes may turn their sign near borders."""
    strength = rng.uniform(0.3, 2.0)
    light = np.exp(strength * (_soft_mask(x.shape, rng) - 0.5)) * np.exp(strength * (_soft_mask(x.shape, rng) - 0.5))
    return x * light


def _tone(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random rising curve through seven grey levels."""
    rises = np.exp(rng.normal(0, 0.8, 6))
    curve = np.concatenate(([0.0], np.cumsum(rises) / rises.sum())) * 255
    return np.interp(np.clip(x, 0, 255), np.linspace(0, 255, 7), curve).astype(np.float32)


def _turned(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random smooth curve of grey levels, which may fall, in areas with soft and hard borders or everywhere."""
    knots = int(rng.integers(3, 6))
    levels = rng.uniform(0, 255, knots)
    curve = np.interp(np.arange(256), np.linspace(0, 255, knots), np.sort(levels)[::-1] if rng.random() < 0.5 else levels)
    curve = cv2.GaussianBlur(curve.astype(np.float32)[None], (0, 0), 12.0, borderType=cv2.BORDER_REPLICATE)[0]
    turned = np.interp(np.clip(x, 0, 255), np.arange(256), curve).astype(np.float32)
    return turned if rng.random() < 0.3 else x + _soft_mask(x.shape, rng) * (turned - x)


def _night(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Little light everywhere and pools of it, which burn out in the middle; lamps and lit windows; the exposure follows."""
    height, width = x.shape
    v, u = np.mgrid[0:height, 0:width].astype(np.float32)
    light = np.full(x.shape, rng.uniform(0.01, 0.1), np.float32)
    for _ in range(rng.integers(1, 6)):
        left, top, radius = *rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.05, 0.5) * width
        fall = (1 + ((u - left) ** 2 + (v - top) ** 2) / np.float32(radius**2)) ** np.float32(-rng.uniform(0.7, 1.5))
        light += np.float32(rng.uniform(0.2, 1.5)) * fall
    x = 255 * (np.clip(x, 0, 255) / 255) ** np.float32(rng.uniform(0.8, 1.6)) * light
    for _ in range(rng.integers(0, 7)):
        left, top, a, b = rng.uniform(0, 1, 4) * (width, height, 0.07 * width, 0.07 * width) + (0, 0, 3, 3)
        across, down = np.abs(u - np.float32(left)) / np.float32(a), np.abs(v - np.float32(top)) / np.float32(b)
        away = np.maximum(across, down) if rng.random() < 0.5 else np.hypot(across, down)
        x += np.float32(rng.uniform(80, 255)) / (1 + away ** np.float32(rng.uniform(2, 6)))
    bright = max(float(np.percentile(x, rng.uniform(90, 99.8))), 1.0)
    x = np.clip(x * np.float32(255 * rng.uniform(0.4, 1.1) / bright), 0, 255)
    return np.clip(x + rng.normal(0, rng.uniform(1, 6), x.shape), 0, 255).astype(np.float32)


def _occlusion(x: np.ndarray, rng: np.random.Generator, most: float) -> np.ndarray:
    """Textured blocks over up to a share of the image."""
    x = x.copy()
    height, width = x.shape
    covered, wanted = np.zeros(x.shape, bool), rng.uniform(min(0.03, most), most)
    while covered.mean() < wanted:
        w, h = (int(min(height, width) * rng.uniform(0.08, 0.4)) for _ in range(2))
        left, top = int(rng.integers(-w // 2, width - w // 2)), int(rng.integers(-h // 2, height - h // 2))
        rows, columns = slice(max(top, 0), top + h), slice(max(left, 0), left + w)
        shape = x[rows, columns].shape
        cells = rng.integers(1, 10, 2)
        low, high = np.sort(rng.uniform(0, 255, 2))
        texture = rng.uniform(low, high, tuple(cells)).astype(np.float32)
        way = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_NEAREST
        x[rows, columns] = cv2.resize(texture, shape[::-1], interpolation=way)
        covered[rows, columns] = True
    return x


def _vignetting(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = x.shape
    v, u = np.meshgrid(np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij")
    return x * (1 - np.float32(rng.uniform(0.1, 0.4)) * (u * u + v * v))


def _defocus(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.6) * x.shape[1] / 320)


def _motion_blur(x: np.ndarray, rng: np.random.Generator, longest_px: float) -> np.ndarray:
    """A straight streak, centred, so that the image does not move: the pose is that of the middle of the exposure."""
    length = rng.uniform(2.0, longest_px) * max(x.shape[1] / 640, 0.5)
    radius = int(np.ceil(length / 2)) + 1
    angle = rng.uniform(0, np.pi)
    end = 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
    kernel = np.zeros((2 * radius + 1,) * 2, np.float32)
    for t in np.linspace(-1, 1, 4 * radius + 1):  # bilinear splats along the streak keep its centre exact
        column, row = radius + t * end
        c, r = int(np.floor(column)), int(np.floor(row))
        a, b = column - c, row - r
        kernel[r : r + 2, c : c + 2] += np.outer((1 - b, b), (1 - a, a)).astype(np.float32)
    return cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _half_resolution(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As a camera of fewer pixels saw it, enlarged again. Rounded sizes scale both axes by themselves: nothing moves."""
    height, width = x.shape
    share = rng.uniform(0.4, 0.8)
    small = cv2.resize(x, (round(width * share), round(height * share)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _noise(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Read noise, and shot noise that grows with the root of the signal."""
    read, shot = rng.uniform(0, 4), rng.uniform(0, 0.5)
    sigma = np.sqrt(read**2 + shot**2 * np.clip(x, 0, 255))
    return x + (sigma * rng.standard_normal(x.shape, dtype=np.float32)).astype(np.float32)


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))))
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
