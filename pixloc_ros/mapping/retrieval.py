# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Which keyframes of a map look like an image: global descriptors, and the places that similar keyframes belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..errors import InputError
from ..features.pyramid import FeaturePyramid
from .map_file import POOLED_FEATURES, Map

COVISIBLE_SHARE = 0.05
"""Two keyframes show one place where they share at least this share of the points of the one that sees fewer."""


class GlobalDescriptor(Protocol):
    """What a whole image looks like, as one vector; images of one place have a large scalar product.

    Attributes:
        name: Maps carry it, so that vectors of two kinds are never compared.
    """

    name: str

    def describe(self, image: np.ndarray, pyramid: FeaturePyramid) -> np.ndarray:
        """Describe an image.

        Args:
            image: uint8 [H, W] or [H, W, 3] RGB.
            pyramid: Its features, batch size 1.

        Returns:
            float32 [G], unit length.
        """
        ...


class PooledFeatures:
    """The mean of the coarsest features, which costs nothing more and needs no other network.

    On the validation scenes, with their own and hundreds of foreign images to choose from, it finds a near keyframe first
    as often as second-order, power-mean and gridded pooling of one or two levels do (docs/evidence/design_choices.md).
    """

    name = POOLED_FEATURES

    def describe(self, image: np.ndarray, pyramid: FeaturePyramid) -> np.ndarray:
        coarse = pyramid.levels[0].features[0].mean((1, 2)).cpu()
        return torch.nn.functional.normalize(coarse, dim=0).numpy()


class KeyframeIndex:
    """The keyframes of a map by what they look like. Exact: one product with all descriptors, some 0.3 ms for 10 000."""

    def __init__(self, map_: Map, descriptor: GlobalDescriptor | None = None) -> None:
        """`descriptor` is `PooledFeatures` by default. Raises `InputError` where the map was made with another one."""
        self.descriptor = descriptor or PooledFeatures()
        if self.descriptor.name != map_.global_descriptor_name:
            raise InputError(
                f"map '{map_.name}' describes its keyframes by '{map_.global_descriptor_name}', not by "
                f"'{self.descriptor.name}': use that one or build the map again"
            )
        self._map = map_
        self._descriptors = map_.global_descriptors.astype(np.float32)

    def most_similar(self, description: np.ndarray, count: int, among: np.ndarray | None = None) -> np.ndarray:
        """The keyframes that look most similar.

        Args:
            description: float32 [G], of the image.
            count: At most so many.
            among: bool [K], the keyframes in question; None for all.

        Returns:
            Indices int64, the most similar first.
        """
        likeness = self._descriptors @ description
        if among is not None:
            likeness = np.where(among, likeness, -np.inf)
        if count < len(likeness):
            # Keyframes beyond the wanted number need not be sorted; equal ones keep the map's order.
            least = np.partition(likeness, -count)[-count]
            best = np.flatnonzero(likeness >= least)
        else:
            best = np.arange(len(likeness))
        best = best[np.argsort(-likeness[best], kind="stable")][:count]
        return best[np.isfinite(likeness[best])]

    def by_place(self, keyframes: np.ndarray) -> np.ndarray:
        """The same keyframes, int64 [n] best first, ordered so that places take turns: the best keyframe of each place, then each
        place's second, and so on. Keyframes that see the same points belong to one place."""
        if len(keyframes) < 3:
            return keyframes
        place = self._places(keyframes)
        rank, seen = np.empty(len(keyframes), int), np.zeros(len(keyframes), int)
        for i, p in enumerate(place):
            rank[i] = seen[p]
            seen[p] += 1
        return keyframes[np.argsort(rank, kind="stable")]

    def _places(self, keyframes: Sequence[int]) -> np.ndarray:
        """int [n]: numbers of the connected components of covisibility."""
        points = [self._map.observation_point[self._map.observations(k)] for k in keyframes]
        used, column = np.unique(np.concatenate(points), return_inverse=True)
        rows = np.cumsum([0] + [len(p) for p in points])
        sees = csr_array((np.ones(len(column), np.int32), column, rows), shape=(len(points), len(used)))
        shared = (sees @ sees.T).toarray()
        fewer = np.minimum.outer(np.diff(rows), np.diff(rows))
        return connected_components(shared >= np.maximum(COVISIBLE_SHARE * fewer, 1), directed=False)[1]
