# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Intensity patches as features: the exact levels of the compact network.

What the classical direct methods compare: the 5x5 patch around each pixel, blurred a little, without its mean. In the cosine
basis a few coefficients of low frequency say nearly all of it; after division by their length they are independent of contrast.
The last channel is constant and takes the unit length where there is no contrast, so that noise is not blown up.

Every coefficient is a filter along the rows, then one along the columns. `patch_features` is differentiable and serves any
device, `patch_features_compiled` the CPU: one pass over the image instead of a convolution, a transposition and a division.
"""
from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch.nn import functional as F

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


def patch_features_compiled(image: np.ndarray) -> np.ndarray:
    """float32 [H, W] to what `patch_features` gives for it, [H, W, 8]."""
    features = np.empty((*image.shape, CHANNELS), np.float32)
    _fill(image, LINES, _COLUMN_ORDER, _ROW_ORDER, np.float32(BLANK_CONTRAST), features)
    return features


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
def _fill(image, lines, column_order, row_order, blank, features):
    rows, columns = image.shape
    padded = np.empty(columns + 2 * _MARGIN, np.float32)
    ring = np.empty((_TAPS, len(lines), columns), np.float32)  # the last rows, filtered along x
    values, gain = np.empty((_FILTERS, columns), np.float32), np.empty(columns, np.float32)
    for step in range(rows + 2 * _MARGIN):
        row = min(max(step - _MARGIN, 0), rows - 1)
        padded[:_MARGIN], padded[columns + _MARGIN:] = image[row, 0], image[row, columns - 1]
        padded[_MARGIN:columns + _MARGIN] = image[row]
        for k in range(len(lines)):
            a, b, c, d, e, f, g = lines[k]
            along = ring[step % _TAPS, k]
            for x in range(columns):
                along[x] = (a * padded[x] + b * padded[x + 1] + c * padded[x + 2] + d * padded[x + 3] + e * padded[x + 4]
                            + f * padded[x + 5] + g * padded[x + 6])
        y = step - 2 * _MARGIN
        if y < 0:
            continue
        gain[:] = blank * blank
        for k in range(_FILTERS):
            a, b, c, d, e, f, g = lines[column_order[k]]
            r = row_order[k]
            r0, r1, r2, r3 = ring[y % _TAPS, r], ring[(y + 1) % _TAPS, r], ring[(y + 2) % _TAPS, r], ring[(y + 3) % _TAPS, r]
            r4, r5, r6 = ring[(y + 4) % _TAPS, r], ring[(y + 5) % _TAPS, r], ring[(y + 6) % _TAPS, r]
            value = values[k]
            for x in range(columns):
                value[x] = a * r0[x] + b * r1[x] + c * r2[x] + d * r3[x] + e * r4[x] + f * r5[x] + g * r6[x]
                gain[x] += value[x] * value[x]
        for x in range(columns):
            gain[x] = np.float32(1) / np.sqrt(gain[x])
        for x in range(columns):
            for k in range(_FILTERS):
                features[y, x, k] = values[k, x] * gain[x]
            features[y, x, _FILTERS] = blank * gain[x]
