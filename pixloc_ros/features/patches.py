# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Intensity patches as features: the exact levels of the compact network.

What the classical direct methods compare: the 5x5 patch around each pixel, blurred a little, without its mean. In the cosine
basis a few coefficients of low frequency say nearly all of it; after division by their length they are independent of contrast.
The last channel is constant and takes the unit length where there is no contrast, so that noise is not blown up.

Every coefficient is a filter along the rows, then one along the columns. `patch_features` is differentiable and serves any
device, `patch_features_compiled` the CPU: one pass over the image instead of a convolution, a transposition and a division.
"""

import math

import numba
import numpy as np
import torch
from torch.nn import functional as F

from ..geometry.single import FAST_JIT

BLANK_CONTRAST = 0.3
"""Root of the summed squares of a patch, in standard deviations of the image, below which it counts as blank."""
_PATCH = 5
_TAPS = 7
_MARGIN = _TAPS // 2
_ORDERS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1))
"""Frequencies of the channels but the last, along columns and along rows."""
_FILTERS = len(_ORDERS)
CHANNELS = _FILTERS + 1


def _lines() -> np.ndarray:
    """[3, 7]: the first three cosines over a patch, each blurred."""
    place = np.arange(_PATCH) + 0.5
    cosines = [np.cos(np.pi * place * k / _PATCH) * math.sqrt((2 if k else 1) / _PATCH) for k in range(3)]
    return np.array([np.convolve(line, (0.25, 0.5, 0.25)) for line in cosines], np.float32)


LINES = _lines()
_COLUMN_ORDER, _ROW_ORDER = (np.array(order) for order in zip(*_ORDERS))


def patch_features(image: torch.Tensor) -> torch.Tensor:
    """float32 [B, 1, H, W] to unit descriptors [B, 8, H, W], channels last."""
    lines = torch.from_numpy(LINES).to(image)
    filters = lines[_COLUMN_ORDER][:, None, :, None] * lines[_ROW_ORDER][:, None, None, :]
    values = F.conv2d(F.pad(image, (_MARGIN,) * 4, mode="replicate"), filters)
    values = torch.cat((values, torch.full_like(values[:, :1], BLANK_CONTRAST)), 1)
    return F.normalize(values.contiguous(memory_format=torch.channels_last), dim=1)


def patch_features_compiled(image: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
    """float32 [H, W] to what `patch_features` gives for it, [H, W, 8], in that array where one is given."""
    features = np.empty((*image.shape, CHANNELS), np.float32) if features is None else features
    _fill(image, np.float32(BLANK_CONTRAST), features)
    return features


_EVEN, _ODD, _SECOND = (tuple(line[: _MARGIN + 1]) for line in LINES)


@numba.njit(**FAST_JIT)
def _along(a, b, c, d, e, f, g):
    """The three filters at seven neighbours: the first and the third are symmetric, the second is antisymmetric."""
    near, middle, far = c + e, b + f, a + g
    return (
        _EVEN[0] * far + _EVEN[1] * middle + _EVEN[2] * near + _EVEN[3] * d,
        _ODD[0] * (a - g) + _ODD[1] * (b - f) + _ODD[2] * (c - e),
        _SECOND[0] * far + _SECOND[1] * middle + _SECOND[2] * near + _SECOND[3] * d,
    )


@numba.njit(**FAST_JIT)
def _fill(image, blank, features):
    rows, columns = image.shape
    padded = np.empty(columns + 2 * _MARGIN, np.float32)
    ring = np.empty((_TAPS, 3, columns), np.float32)  # the last rows, filtered along x
    values, gain = np.empty((_FILTERS, columns), np.float32), np.empty(columns, np.float32)
    v0, v1, v2, v3, v4, v5, v6 = values[0], values[1], values[2], values[3], values[4], values[5], values[6]
    for step in range(rows + 2 * _MARGIN):
        row = min(max(step - _MARGIN, 0), rows - 1)
        padded[:_MARGIN], padded[columns + _MARGIN :] = image[row, 0], image[row, columns - 1]
        padded[_MARGIN : columns + _MARGIN] = image[row]
        x0, x1, x2 = ring[step % _TAPS, 0], ring[step % _TAPS, 1], ring[step % _TAPS, 2]
        for x in range(columns):
            x0[x], x1[x], x2[x] = _along(
                padded[x], padded[x + 1], padded[x + 2], padded[x + 3], padded[x + 4], padded[x + 5], padded[x + 6]
            )
        y = step - 2 * _MARGIN
        if y < 0:
            continue
        # One loop for each frequency along x, so that what its columns have in common is read and added once: see `_ORDERS`.
        for k in range(3):
            a, b, c, d = ring[y % _TAPS, k], ring[(y + 1) % _TAPS, k], ring[(y + 2) % _TAPS, k], ring[(y + 3) % _TAPS, k]
            e, f, g = ring[(y + 4) % _TAPS, k], ring[(y + 5) % _TAPS, k], ring[(y + 6) % _TAPS, k]
            if k == 0:
                for x in range(columns):
                    _, odd, second = _along(a[x], b[x], c[x], d[x], e[x], f[x], g[x])
                    v1[x], v4[x] = odd, second
                    gain[x] = blank * blank + odd * odd + second * second
            elif k == 1:
                for x in range(columns):
                    even, odd, second = _along(a[x], b[x], c[x], d[x], e[x], f[x], g[x])
                    v0[x], v2[x], v6[x] = even, odd, second
                    gain[x] += even * even + odd * odd + second * second
            else:
                for x in range(columns):
                    even, odd, _ = _along(a[x], b[x], c[x], d[x], e[x], f[x], g[x])
                    v3[x], v5[x] = even, odd
                    gain[x] += even * even + odd * odd
        out = features[y]
        for x in range(columns):
            scale = np.float32(1) / np.sqrt(gain[x])
            out[x, 0], out[x, 1], out[x, 2], out[x, 3] = v0[x] * scale, v1[x] * scale, v2[x] * scale, v3[x] * scale
            out[x, 4], out[x, 5], out[x, 6], out[x, 7] = v4[x] * scale, v5[x] * scale, v6[x] * scale, blank * scale
