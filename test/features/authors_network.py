# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The paper's network and optimizer as their authors' files and publication describe them, for tests to compare with."""

import copy
from collections import OrderedDict

import numpy as np
import torch
from torch.nn import functional as F

# The layout of the published files, written out: where the convolutions of an encoder stage sit, and how many channels.
ENCODER = {
    "vgg16": [((0, 2), 64), ((1, 3), 128), ((1, 3, 5), 256), ((1, 3, 5), 512), ((1, 3, 5), 512)],
    "vgg19": [((0, 2), 64), ((1, 3), 128), ((1, 3, 5, 7), 256), ((1, 3, 5, 7), 512), ((1, 3, 5, 7), 512)],
}
DECODER = [(64, 1024), (64, 320), (64, 192), (32, 128)]
HEADS = [(32, 32), (128, 64), (128, 512)]
MODEL = {"name": "two_view_refiner", "success_thresh": 3, "normalize_features": True, "init_target_offset": None}
EXTRACTOR = {"name": "unet", "decoder": [64, 64, 64, 32], "output_scales": [0, 2, 4], "output_dim": [32, 128, 128]}
EXTRACTOR |= {"freeze_batch_normalization": False, "do_average_pooling": False, "compute_uncertainty": True, "checkpointed": True}
OPTIMIZER = {"name": "learned_optimizer", "num_iters": 15, "pad": 2, "lambda_": 0.01, "loss_fn": "scaled_barron(0, 0.1)"}
OPTIMIZER |= {"jacobi_scaling": False, "learned_damping": True, "damping": {"type": "constant", "log_range": [-6, 5]}}


def shapes(encoder):
    inputs = 3
    for stage, (places, channels) in enumerate(ENCODER[encoder]):
        for k in places:
            yield f"extractor.encoder.{stage}.{k}.weight", (channels, inputs, 3, 3)
            yield f"extractor.encoder.{stage}.{k}.bias", (channels,)
            inputs = channels
    for k, (out, into) in enumerate(DECODER):
        yield f"extractor.decoder.{k}.layers.0.weight", (out, into, 3, 3)
        for name in ("weight", "bias", "running_mean", "running_var"):
            yield f"extractor.decoder.{k}.layers.1.{name}", (out,)
        yield f"extractor.decoder.{k}.layers.1.num_batches_tracked", ()
    for k, (out, into) in enumerate(HEADS):
        for head, channels in (("adaptation", out), ("uncertainty", 1)):
            yield f"extractor.{head}.{k}.0.weight", (channels, into, 1, 1)
            yield f"extractor.{head}.{k}.0.bias", (channels,)
        yield f"optimizer.{k}.dampingnet.const", (6,)


def checkpoint(encoder="vgg19", full=False):
    """What the authors' training saves. Unless `full`, every tensor is one number repeated: some kilobytes."""
    torch.manual_seed(0)
    model = OrderedDict()
    for k, (name, shape) in enumerate(shapes(encoder)):
        if name.endswith("num_batches_tracked"):
            model[name] = torch.tensor(7 + k)
        elif full:
            scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1
            model[name] = torch.randn(shape) * scale + (1 if name.endswith(("running_var", "layers.1.weight")) else 0)
        else:
            model[name] = torch.full((1,), 0.01 * (k + 1)).expand(shape)
    settings = copy.deepcopy(MODEL | {"extractor": EXTRACTOR | {"encoder": encoder}, "optimizer": OPTIMIZER})
    conf = {"data": {"name": "megadepth", "crop": 512}, "model": settings, "train": {"lr": 5e-6}}
    adam = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 5e-6}]}
    scheduler = {"last_epoch": 3, "lr_lambdas": [None]}
    figures = {"loss/total": 1.5, "R_error_median": np.nanmedian([0.25, 0.75]), "t_error_median": np.float32(0.5)}
    figures |= {"empty": np.nan, "pairs": np.int64(3)}
    entries = {"model": model, "optimizer": adam, "lr_scheduler": scheduler, "conf": conf}
    return entries | {"epoch": 12, "losses": None, "eval": figures}


def saved(path, content):
    torch.save(content, path)
    return path


def their_forward(model, image):
    """The network as the layout's names say, for RGB [1, 3, H, W] in [0, 1]: features, uncertainty; fine to coarse."""

    def convolved(x, name, padding=0):
        return F.conv2d(x, model[f"extractor.{name}.weight"], model.get(f"extractor.{name}.bias"), padding=padding)

    x = (image - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    maps = []
    for stage, (places, _) in enumerate(ENCODER["vgg19"]):
        x = F.max_pool2d(x, 2) if stage else x
        for k in places:
            x = convolved(x, f"encoder.{stage}.{k}", 1).relu()
        maps.append(x)
    for k in range(4):
        up = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)(x)
        x = convolved(torch.cat((up, maps[3 - k][..., : up.shape[2], : up.shape[3]]), 1), f"decoder.{k}.layers.0", 1)
        norm = f"extractor.decoder.{k}.layers.1"
        x = F.batch_norm(x, *(model[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))).relu()
        maps[3 - k] = x
    return [[convolved(maps[2 * k], f"{head}.{k}.0") for head in ("adaptation", "uncertainty")] for k in range(3)]


def their_samples(values, pixels, stride):
    """Values [N, C] of a map [1, C, H, W] at image pixels [N, 2], float32, and which cells they lie on [N, 2]."""
    cells = (pixels + 0.5) / stride - 0.5
    last = torch.tensor([values.shape[-1] - 1, values.shape[-2] - 1])
    return F.grid_sample(values, (2 * cells / last - 1)[None, None], align_corners=True)[0, :, 0].T, cells


def their_pose(reference, query, points, camera, start, const, iterations, pad=2):
    """The method of the paper with the pinhole camera [fx, fy, cx, cy]: camera_from_map [4, 4] of the query.

    Args:
        reference: Of `their_forward`, fine to coarse, and the pixels [N, 2] where the points are seen there.
        query: Of `their_forward`.
        points: [N, 3] in the map.
        camera: The query's.
        start: camera_from_map [4, 4].
        const: Of the damping, [6] for each level, fine to coarse.
        iterations: For each level.
        pad: Cells at the border of a map that are not used.
    """
    (maps, seen), focal, centre, pose = reference, camera[:2], camera[2:], start.clone()
    for k, stride in ((2, 16), (1, 4), (0, 1)):
        features, uncertainty = query[k]
        features, size = F.normalize(features, dim=1), torch.tensor(features.shape[:1:-1])
        wanted = F.normalize(their_samples(maps[k][0], seen, stride)[0], dim=1)
        trust = their_samples(torch.sigmoid(-maps[k][1]), seen, stride)[0][:, 0]
        factors = 10 ** (-6 + 11 * torch.sigmoid(const[k]))
        for _ in range(iterations):
            xyz = points @ pose[:3, :3].T + pose[:3, 3]
            x, y, z = xyz.unbind(-1)
            pixels = xyz[:, :2] / z[:, None] * focal + centre
            values, cells = their_samples(features, pixels, stride)
            valid = (z > 1e-3) & (cells >= pad).all(-1) & (cells <= size - 1 - pad).all(-1)
            steps = stride * torch.eye(2)
            ahead, back = ([their_samples(features, pixels + sign * step, stride)[0] for step in steps] for sign in (1, -1))
            zero = torch.zeros_like(z)
            by_point = torch.stack((torch.stack((1 / z, zero, -x / z**2), -1), torch.stack((zero, 1 / z, -y / z**2), -1)), -2)
            turning = torch.stack([torch.cross(axis.expand_as(xyz), xyz, dim=-1) for axis in torch.eye(3)], -1)
            by_pose = focal[:, None] * by_point @ torch.cat((torch.eye(3).expand(len(xyz), 3, 3), turning), -1)
            jacobian, residual = (torch.stack(ahead, -1) - torch.stack(back, -1)) / (2 * stride) @ by_pose, values - wanted
            weight = 1 / (1 + (residual**2).sum(-1) / (2 * 0.1**2)) * valid
            weight = weight * trust * their_samples(torch.sigmoid(-uncertainty), pixels, stride)[0][:, 0]
            hessian = torch.einsum("n,nci,ncj->ij", weight, jacobian, jacobian)
            gradient = torch.einsum("n,nci,nc->i", weight, jacobian, residual)
            step = torch.linalg.solve(hessian + torch.diag(hessian.diagonal() * factors), -gradient)
            turn = torch.linalg.matrix_exp(torch.cross(torch.eye(3), step[3:].expand(3, 3), dim=-1))
            pose = torch.block_diag(turn, torch.ones(1, 1)) @ pose
            pose[:3, 3] += step[:3]
    return pose
