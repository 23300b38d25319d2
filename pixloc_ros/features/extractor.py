# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""From an image as it came to a feature pyramid: one network with its weights, ready to run."""
from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import InputError
from .compact import CompactNetwork
from .pyramid import FeaturePyramid
from .weights import load_weights, resolve_weights

NETWORKS = {"compact": CompactNetwork}
WORKING_SIDE_PX = 640
SMALLEST_SIDE_PX = 64


class Extractor:
    """A network in inference mode.

    name: the weights' name. fingerprint: of architecture and weights; maps carry it, so that features of two networks
    are never compared. strides, channels: per level, coarse to fine. working_side: images are shrunk to this longer side.
    """

    def __init__(self, network: torch.nn.Module, name: str, fingerprint: str) -> None:
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name, self.fingerprint = name, fingerprint
        self.strides: tuple[int, ...] = network.strides
        self.channels: tuple[int, ...] = network.channels
        self.working_side = WORKING_SIDE_PX

    @torch.inference_mode()
    def extract(self, image: np.ndarray) -> FeaturePyramid:
        """uint8 [H, W] grey or [H, W, 3] RGB, at the resolution given, to a pyramid with batch size 1.

        Raises InputError where the image is not such an array or smaller than 64 pixels along a side.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or (
                image.ndim == 3 and image.shape[2] != 3):
            raise InputError(f"an image must be uint8 [H, W] or [H, W, 3], not {getattr(image, 'dtype', type(image))} "
                             f"{getattr(image, 'shape', '')}: convert it first")
        if min(image.shape[:2]) < SMALLEST_SIDE_PX:
            raise InputError(f"the image is {image.shape[1]}x{image.shape[0]}: the network needs at least "
                             f"{SMALLEST_SIDE_PX} pixels along each side")
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return self.network(torch.from_numpy(np.ascontiguousarray(grey)).float()[None, None])


def load_extractor(weights: str | Path = "compact") -> Extractor:
    """The network of a shipped name or of a weights file. Raises InputError for missing or unfit files."""
    path = resolve_weights(weights)
    state, card = load_weights(path)
    if card["architecture"] not in NETWORKS:
        raise InputError(f"{path} is of architecture '{card['architecture']}': this version knows {', '.join(NETWORKS)}")
    network = NETWORKS[card["architecture"]]()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the architecture '{card['architecture']}': {str(error).splitlines()[1].strip()}"
                         ) from error
    digest = hashlib.sha256(card["architecture"].encode())
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return Extractor(network, path.stem, digest.hexdigest()[:16])
