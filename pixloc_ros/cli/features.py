# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc features`: write an image's features and confidences of every level.

Writes, per level k from coarse to fine, features_k float32 [C, H, W] (unit length over C) and confidence_k float32 [H, W] (ones
where the network has none), with strides [levels], image_size and original_size (width, height). Pixel p of the image of
image_size is at (p + 0.5) / stride - 0.5 on a level.

example:
  pixloc features photo.jpg --weights vgg.safetensors -o features.npz
"""

import argparse

from ..errors import InputError
from ..io.files import replacing
from .arguments import add_verb, add_weights, option, path
from .lazy import io, pixloc


def add_parser(subparsers) -> None:
    parser = add_verb(subparsers, "features", run, __doc__)
    path(parser, "image IMAGE")
    add_weights(parser, "a .safetensors file, or the name of a shipped network")
    path(parser, "-o --output FILE.npz")
    option(parser, "--max-side PX", "shrink the image to this longer side first (default: what the network works at)", type=int)


def run(args: argparse.Namespace) -> int:
    import cv2
    import numpy as np

    if args.output.suffix != ".npz":
        raise InputError(f"{args.output} must end in .npz: features are written in that format")
    image = io.images.load_image(args.image)
    extractor = pixloc.load_extractor(args.weights)
    height, width = image.shape[:2]
    scale = min(1.0, (extractor.working_side if args.max_side is None else args.max_side) / max(width, height))
    size = (round(width * scale), round(height * scale))
    if min(size) < 1:
        raise InputError(f"--max-side {args.max_side} leaves nothing of the image: give some hundred pixels")
    if size != (width, height):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pyramid = extractor.suited_to(*size).extract(image)

    arrays = {
        "strides": np.array([level.stride for level in pyramid.levels]),
        "image_size": np.array(pyramid.image_size),
        "original_size": np.array((width, height)),
        "fingerprint": np.array(extractor.fingerprint),
    }
    print(f"{'stride':>8}{'channels':>10}{'size':>12}{'confidence':>12}")
    for k, level in enumerate(pyramid.levels):
        features = level.features[0].numpy()
        confidence = np.ones(features.shape[1:], np.float32)
        mean = "-"
        if level.confidence is not None:
            confidence = level.confidence[0].numpy()
            mean = f"{confidence.mean():.3f}"
        arrays[f"features_{k}"], arrays[f"confidence_{k}"] = np.ascontiguousarray(features), confidence
        extent = f"{features.shape[2]}x{features.shape[1]}"
        print(f"{level.stride:>8g}{level.channels:>10}{extent:>12}{mean:>12}")
    with replacing(args.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return 0
