# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The compact network as an ONNX graph, laid out for how CPU kernels work.

Those handle channels in blocks of 8 or 16, so that layers of 1, 4 and 8 channels waste most of what they compute and move. The
first layers are therefore written over cells of several pixels, whose values stand side by side as channels: the same sums
in another order. The graph is made in memory from the weights, for images of any size.
"""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .compact import CompactNetwork

OPSET = 13
"""What the oldest runtimes in use read."""
IR_VERSION = 8
PIXELS = (1, 1)
STEM_CELLS = ((2, 2), (1, 2), (1, 2))
"""Rows and columns of pixels in a cell of the first three layers' output; the fastest of those tried."""


def compact_model(network: CompactNetwork) -> bytes:
    """The graph of `CompactNetwork.robust_levels`, serialized.

    Input float32 [1, 1, H, W] `image`; outputs channels-last `level_k` [1, H_k, W_k, C_k] and, of networks that have them,
    `confidence_k` [1, H_k, W_k, 1].
    """
    graph = _Graph()
    stem = graph.stem(network, "image")
    pooled = graph.add("AveragePool", ["image"], kernel_shape=[4, 4], strides=[4, 4])
    x4 = graph.convolution(network.block1, stem, STEM_CELLS[-1])
    x4 = graph.sequence(network.block2, graph.add("Add", [x4, graph.convolution(network.skip, pooled)]))
    x8 = graph.sequence(network.block3, x4)
    x16 = graph.sequence(network.block4, x8)
    x32 = graph.sequence(network.block5, x16)
    fused = graph.add("Add", [graph.add("Add", [x8, graph.enlarge(x16, 2)]), graph.enlarge(x32, 4)])
    for k, level in enumerate((x32, graph.sequence(network.fusion, fused), x4)):
        graph.output(level, f"level_{k}")
        if network.confidence is not None:
            graph.output(graph.add("Sigmoid", [graph.convolution(network.confidence[k], level)]), f"confidence_{k}")
    return graph.serialize()


def over_cells(
    weight: torch.Tensor, bias: torch.Tensor, stride: int, cells_in: tuple[int, int], cells_out: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int], tuple[int, int, int, int]]:
    """A convolution [out, in, k, k], padded by k // 2, as one between tensors over cells.

    cells_in, cells_out: rows and columns of pixels of a cell; their values stand as channels (row, column, channel). Returns
    weight, bias, strides and pads (top, left, bottom, right), in cells.
    """
    outputs, inputs, size, _ = weight.shape
    reach = size // 2
    strides = tuple(out * stride // into for out, into in zip(cells_out, cells_in))
    first = tuple(-reach // into for into in cells_in)
    last = tuple(((out - 1) * stride + size - 1 - reach) // into for out, into in zip(cells_out, cells_in))
    (rows_in, columns_in), (rows_out, columns_out) = cells_in, cells_out
    spread = weight.new_zeros(
        rows_out, columns_out, outputs, rows_in, columns_in, inputs, *(b - a + 1 for a, b in zip(first, last))
    )
    for row, column, y, x in np.ndindex(rows_out, columns_out, size, size):
        cell_y, in_y = divmod(row * stride + y - reach, rows_in)
        cell_x, in_x = divmod(column * stride + x - reach, columns_in)
        spread[row, column, :, in_y, in_x, :, cell_y - first[0], cell_x - first[1]] = weight[:, :, y, x]
    pads = (-first[0], -first[1], last[0] - strides[0] + 1, last[1] - strides[1] + 1)
    return (
        spread.reshape(rows_out * columns_out * outputs, rows_in * columns_in * inputs, *spread.shape[-2:]),
        bias.repeat(rows_out * columns_out),
        strides,
        pads,
    )


class _Graph:
    """Nodes in the order they are added; a tensor is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.outputs: list[str] = []

    def add(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def output(self, tensor: str, name: str) -> None:
        self.nodes.append(helper.make_node("Transpose", [tensor], [name], perm=[0, 2, 3, 1]))
        self.outputs.append(name)

    def stem(self, network: CompactNetwork, image: str) -> str:
        cells = PIXELS
        for layer, cells_out in zip(network.stem, STEM_CELLS):
            image, cells = self.convolution(layer, image, cells, cells_out), cells_out
        return image

    def sequence(self, layers: nn.Sequential, tensor: str) -> str:
        if isinstance(layers[0], nn.Conv2d):
            return self.convolution(layers, tensor)
        for layer in layers:
            tensor = self.convolution(layer, tensor)
        return tensor

    def convolution(
        self, layer: nn.Module, tensor: str, cells_in: tuple[int, int] = PIXELS, cells_out: tuple[int, int] = PIXELS
    ) -> str:
        """A Conv2d, or a Sequential of one and a ReLU."""
        conv = layer if isinstance(layer, nn.Conv2d) else layer[0]
        weight, bias, strides, pads = over_cells(
            conv.weight.detach().float().cpu(), conv.bias.detach().float().cpu(), conv.stride[0], cells_in, cells_out
        )
        tensor = self.add(
            "Conv",
            [tensor, self._constant(weight.numpy()), self._constant(bias.numpy())],
            kernel_shape=list(weight.shape[-2:]),
            strides=list(strides),
            pads=list(pads),
        )
        return tensor if layer is conv else self.add("Relu", [tensor])

    def enlarge(self, tensor: str, times: int) -> str:
        scales = self._constant(np.array([1, 1, times, times], np.float32))
        return self.add("Resize", [tensor, "", scales], mode="linear", coordinate_transformation_mode="half_pixel")

    def serialize(self) -> bytes:
        def value(name: str, shape: list[object]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "compact",
            [value("image", [1, 1, "h", "w"])],
            [value(name, [1, f"{name}_h", f"{name}_w", f"{name}_c"]) for name in self.outputs],
            list(self.constants.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION).SerializeToString()

    def _constant(self, values: np.ndarray) -> str:
        """The name of a constant; one that is there already is used again."""
        key = f"{values.shape} {hash(values.tobytes())}"
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(np.ascontiguousarray(values), f"c{len(self.constants)}")
        return self.constants[key].name
